"""The staged output: converted now, or by an earlier run whose gate failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.clock import Clock
from quantkit.conversion import Converted, digest_output, run, settle_output
from quantkit.errors import GateError
from quantkit.plans import Plan
from quantkit.recipe import Recipe
from quantkit.registry import Registry
from quantkit.source import Source
from quantkit.staging import Staging, check_room, empty, read_note, write_note
from quantkit.types import Event, FileDigest, Listener
from quantkit.verification import digest_source


@dataclass(frozen=True)
class Staged:
    """A conversion that lies in ``OUT.partial``, by this run or an earlier one."""

    converted: Converted
    outputs: tuple[FileDigest, ...]
    note: Mapping[str, Any]


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
    if any(place.partial.iterdir()):
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
        "underflows": dict(converted.underflows),
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
    with clock.measure("verify"):
        outputs = digest_output(place.partial, plan)
        if [asdict(each) for each in outputs] != note.get("outputs"):
            return None
        listener(Event("resume", message="judging the staged files again; not quantizing"))
        digests = digest_source(source, registry, listener)
    if [asdict(each) for each in digests] != note.get("source"):
        return None
    return Staged(Converted(digests, note["underflows"]), outputs, note)


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
