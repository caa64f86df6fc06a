"""The staged output: converted now, or by an earlier run whose gate failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.clock import Clock
from quantkit.conversion import Converted, digest_output, run, settle_output
from quantkit.digests import digest_file
from quantkit.errors import GateError
from quantkit.plans import Plan
from quantkit.recipe import Recipe
from quantkit.registry import Registry
from quantkit.source import COMPANION_FILES, TOKENIZER_FILES, Source
from quantkit.staging import NOTE, Staging, check_room, empty, read_note, write_note
from quantkit.types import Event, FileDigest, Listener
from quantkit.verification import digest_source


@dataclass(frozen=True)
class Staged:
    """A conversion that lies in ``OUT.partial``, by this run or an earlier one."""

    converted: Converted
    outputs: tuple[FileDigest, ...]
    note: Mapping[str, Any]

    @property
    def ungated(self) -> str:
        """Why a run without the gate has none; an earlier gate's failure is not forgotten."""
        failures = dict(self.note.get("gate", {})).get("failures", [])
        return "; ".join(["--no-gate", *(f"an earlier gate failed: {each}" for each in failures)])


def stage(
    plan: Plan,
    source: Source,
    recipe: Recipe,
    registry: Registry,
    place: Staging,
    device: str,
    listener: Listener,
    clock: Clock,
) -> Staged:
    """Convert, unless an earlier run's staged files are this plan's, whole and unchanged."""
    earlier = _reuse(plan, source, registry, place, device, listener, clock)
    if earlier is not None:
        return earlier
    if {path.name for path in place.partial.iterdir()} - {NOTE}:
        listener(Event("resume", message=f"{place.partial}: unfinished, starting over"))
        empty(place)
    check_room(place, plan.output_bytes)
    with clock.measure("convert"):
        converted = run(
            plan, source, recipe, registry, place.partial, device=device, listener=listener
        )
        outputs = settle_output(place.partial, plan)
    note = {
        "state": "staged",
        "plan": plan.digest,
        "device": device,
        "source": [asdict(each) for each in converted.source_files],
        "companions": _companions(source),
        "underflows": dict(converted.underflows),
        "tokenizer": converted.tokenizer,
        "outputs": [asdict(each) for each in outputs],
    }
    write_note(place, note)
    return Staged(converted, outputs, note)


def _reuse(
    plan: Plan,
    source: Source,
    registry: Registry,
    place: Staging,
    device: str,
    listener: Listener,
    clock: Clock,
) -> Staged | None:
    """What an earlier run staged, if it was this plan's and neither it nor the source changed."""
    note = read_note(place)
    if note.get("plan") != plan.digest or note.get("device") != device:
        return None
    if note.get("companions") != _companions(source):
        return None
    with clock.measure("verify"):
        outputs = digest_output(place.partial, plan)
        if [asdict(each) for each in outputs] != note.get("outputs"):
            return None
        listener(Event("resume", message="judging the staged files again; not quantizing"))
        digests = digest_source(source, registry, listener)
    if [asdict(each) for each in digests] != note.get("source"):
        return None
    return Staged(Converted(digests, note["underflows"], note["tokenizer"]), outputs, note)


def _companions(source: Source) -> dict[str, str]:
    """SHA-256 of each small file that the output carries on."""
    names = source.present((*TOKENIZER_FILES, *COMPANION_FILES))
    return {name: digest_file(source.folder / name).sha256 for name in names}


def mark_failed(place: Staging, staged: Staged, report: Mapping[str, Any]) -> None:
    """Leave the staged files to be judged again, and stop.

    Raises:
        GateError: always; its message says which measures failed.
    """
    write_note(place, dict(staged.note) | {"state": "failed", "gate": report})
    raise GateError(
        f"gate failed: {'; '.join(report['failures'])}; the files stay in {place.partial}: rerun "
        "with other thresholds (--set gate.KEY=VALUE) to judge them again without quantizing"
    )
