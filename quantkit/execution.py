"""The staged output: converted now, or by an earlier run whose gate failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.calibration import Calibration
from quantkit.carried import carried_files
from quantkit.checkpoint.reading import stamp_of
from quantkit.checkpoint.shards import flush
from quantkit.clock import Clock
from quantkit.conversion import Converted, nonfinite_guard, run
from quantkit.devices import count_threads
from quantkit.digests import digest_file
from quantkit.errors import CheckpointError, GateError
from quantkit.formats import Gptq, format_of
from quantkit.plans import Plan
from quantkit.recipe import Recipe
from quantkit.registry import Registry
from quantkit.source import Source
from quantkit.staging import (
    LAYERS,
    NOTE,
    Staging,
    check_room,
    drop_layers,
    empty,
    read_note,
    write_note,
)
from quantkit.types import Digested, Event, FileDigest, Listener
from quantkit.verification import Policy, digest_source, settle

if TYPE_CHECKING:
    from quantkit.layerwise import Calibrated


#: What the bytes of an output depend on, as far as a version tells.
_LIBRARIES = (
    "torch",
    "transformers",
    "bitsandbytes",
    "numba",
    "numpy",
    "ml_dtypes",
    "sentencepiece",
    "tokenizers",
)


@cache
def library_versions() -> Mapping[str, str]:
    """The version of each library that computes, reads or writes something of an output."""
    return {name: version(name) for name in _LIBRARIES}


@dataclass(frozen=True)
class Job:
    """All that a conversion is given: the plan, the source, what is let pass, the place."""

    plan: Plan
    source: Source
    recipe: Recipe
    registry: Registry
    policy: Policy
    calibration: Calibration | None
    place: Staging
    device: str
    listener: Listener
    clock: Clock

    @property
    def identity(self) -> dict[str, Any]:
        """What the staged bytes depend on, beside the source's."""
        ids = self.calibration.ids_sha256 if self.calibration else None
        return {
            "plan": self.plan.digest,
            "device": self.device,
            "calibration": ids,
            "set of versions": {"quantkit": version("quantkit"), **library_versions()},
        }


@dataclass(frozen=True)
class Staged:
    """A conversion that lies in ``OUT.partial``, by this run or an earlier one."""

    converted: Converted
    outputs: tuple[FileDigest, ...]
    note: Mapping[str, Any]

    @property
    def ungated(self) -> str:
        """Why no gate has run, and what an earlier gate found wrong."""
        failures = dict(self.note.get("gate", {})).get("failures", [])
        return "; ".join(["--no-gate", *(f"an earlier gate failed: {each}" for each in failures)])


def stage(job: Job) -> Staged:
    """Convert, unless an earlier run's staged files are this plan's, whole and unchanged."""
    found = _reuse(job)
    staged = found if isinstance(found, Staged) else _convert(job, found)
    drop_layers(job.place)
    return staged


def _convert(job: Job, why: str) -> Staged:
    """Convert from the start; ``why`` says why an earlier run's files, if any, are not used."""
    place, listener = job.place, job.listener
    if {path.name for path in place.partial.iterdir()} - {NOTE, LAYERS}:
        again = "writing the files again" if _finished_bytes(job) else "starting over"
        listener(Event("resume", message=f"{place.partial}: {why}; {again}"))
        empty(place)
        write_note(place, {"state": "running"})  # the old one spoke of files that are gone
    check_room(place, job.plan.output_bytes + _layer_bytes(job))
    calibrated = _calibrate(job)
    if calibrated is not None:
        _check_touched(job, calibrated.source)
    with job.clock.measure("convert"):
        converted = run(
            job.plan,
            job.source,
            job.recipe,
            job.registry,
            place.partial,
            ready=calibrated.writes if calibrated else None,
            proven=calibrated.source if calibrated else None,
            device=job.device,
            listener=listener,
        )
        outputs, identity = _flush_and_digest(job, converted.written)
    note = {
        "state": "staged",
        "identity": identity,
        "source": _found(converted.source),
        "companions": _companions(job.source),
        "underflows": dict(converted.underflows),
        "tokenizer": converted.tokenizer,
        "threads": count_threads() if job.plan.computes_in_torch else None,
        "modules": [asdict(each) for each in calibrated.modules] if calibrated else [],
        "outputs": [asdict(each) for each in outputs],
        "files": sorted(path.name for path in place.partial.iterdir()),
    }
    write_note(place, note)
    return Staged(converted, outputs, note)


def _flush_and_digest(
    job: Job, written: Mapping[str, str]
) -> tuple[tuple[FileDigest, ...], Mapping[str, Any]]:
    """Have the disk take the output; meanwhile find what it depends on, and digest the files that
    were not digested as they were ``written``.
    """
    folder = job.place.partial
    with ThreadPoolExecutor(1, "flush") as thread:
        flushed = thread.submit(_flush_all, folder)
        found = _digest_output(folder, job.plan, written), job.identity
        flushed.result()
    return found


def _flush_all(folder: Path) -> None:
    for path in filter(Path.is_file, folder.rglob("*")):
        flush(path)


def _digest_output(folder: Path, plan: Plan, written: Mapping[str, str]) -> tuple[FileDigest, ...]:
    """SHA-256 of every staged file, weight files marked; ``written`` has those known already."""
    weights = {shard.name for shard in plan.shards}
    staged = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return tuple(
        FileDigest(name, path.stat().st_size, written[name], None, is_weight=True)
        if name in written
        else digest_file(path, name, is_weight=name in weights)
        for name, path in staged.items()
        if path.is_file() and not name.startswith("quantkit-")
    )


def _layer_bytes(job: Job) -> int:
    """What a calibration's layers will take beside the output, until it is whole."""
    if job.calibration is None:
        return 0
    made = job.plan.with_action("quantize")
    needed = sum(output.nbytes for each in made for output in each.outputs)
    return max(0, needed - _finished_bytes(job))


def _finished_bytes(job: Job) -> int:
    return sum(path.stat().st_size for path in (job.place.partial / LAYERS).glob("*.safetensors"))


def _calibrate(job: Job) -> Calibrated | None:
    """Quantize layer by layer, once the source is proven: what takes long comes after."""
    form = format_of(job.recipe.method)
    if job.calibration is None or not isinstance(form, Gptq):
        return None
    with ThreadPoolExecutor(1, "import") as side, job.clock.measure("verify"):
        # takes seconds; torch alone, as one thread may see half done what the other imports
        side.submit(import_module, "torch")
        look = nonfinite_guard(job.plan)
        found = digest_source(job.source, job.registry, job.listener, look, recall=True)
        digests = settle(job.source, found, job.recipe, job.registry, job.policy).digested
    from quantkit.layerwise import calibrate

    threads = count_threads()  # the order of sums, and so the bytes, depends on it
    with job.clock.measure("convert"):
        return calibrate(
            job.plan,
            job.source,
            form,
            job.calibration,
            job.place.partial / LAYERS,
            {**job.identity, "threads": threads},
            digests,
            device=job.device,
            listener=job.listener,
        )


def _check_touched(job: Job, proven: Digested) -> None:
    """Digest a weight file again where the system noted a change since. A link or other permissions
    change no byte; but a writer may set the time of its last write back.
    """
    source = job.source
    for each in proven.files:
        path, then = source.folder / each.name, source.checkpoint.stamps[each.name]
        try:
            touched = stamp_of(path).changed_ns != then.changed_ns
            changed = touched and digest_file(path).sha256 != each.sha256
        except OSError as error:
            raise CheckpointError(
                f"{path}: it was there when layers were calibrated, and cannot be read now: "
                f"{error.strerror}; put it back, and run again: the layers are kept"
            ) from None
        if changed:
            drop_layers(job.place)
            raise CheckpointError(
                f"{path}: it was changed while layers were calibrated; see that nothing writes to "
                "it, and run again"
            )


def _reuse(job: Job) -> Staged | str:
    """What an earlier run staged, if it is this plan's and neither it nor the source changed;
    else why it is not used."""
    note = read_note(job.place)
    if "outputs" not in note:
        return "unfinished"
    was = note.get("identity", {})
    if others := [key for key, own in job.identity.items() if was.get(key) != own]:
        return f"made with another {' and '.join(others)}"
    if note.get("companions") != _companions(job.source):
        return "the source's small files changed since"
    empty(job.place, keep=note["files"])  # a card goes, and what an earlier gate said
    with job.clock.measure("verify"):
        outputs = _digest_output(job.place.partial, job.plan, written={})
        if [asdict(each) for each in outputs] != note["outputs"]:
            return "its files changed since"
        job.listener(Event("resume", message="judging the staged files again; not quantizing"))
        digests = digest_source(job.source, job.registry, job.listener, recall=True)
    if _found(digests) != note.get("source"):
        return "the source changed since"
    return Staged(Converted(digests, note["underflows"], note["tokenizer"]), outputs, note)


def _found(digests: Digested) -> dict[str, Any]:
    """What a source is, in JSON; not whether its digests were recalled."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(digests)))
    del found["recalled"]
    return found


def _companions(source: Source) -> dict[str, str]:
    """SHA-256 of each small file that the output carries on."""
    folder = source.folder
    return {name: digest_file(folder / name).sha256 for name in carried_files(folder)}


def mark_failed(place: Staging, staged: Staged, manifest: Mapping[str, Any]) -> None:
    """Leave the staged files to be judged again, and stop.

    Raises:
        GateError: always; its message says which measures failed.
    """
    report = manifest["gate"]
    write_note(place, dict(staged.note) | {"state": "failed", "gate": report})
    raise GateError(
        f"gate failed: {'; '.join(report['failures'])}; the files stay in {place.partial}: a rerun "
        "judges them again without quantizing, by other thresholds where you --set gate.KEY=VALUE",
        manifest,
    )
