"""What the gate found: levels, measures and failures, ready for the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quantkit.records import REQUIRED, finite

Outcome = Literal["passed", "failed", "not_run"]

#: The levels, in the order in which they are judged.
LEVELS = ("structure", "tokenizer", "reload", "perplexity", "generation")

#: The histogram of the divergence: decades of nats, and bins in each.
LOWEST, HIGHEST, PER_DECADE = -9, 2, 4


@dataclass(frozen=True)
class Failure:
    """One measure beyond its threshold. ``where`` is the worst module or example."""

    level: str
    measure: str
    value: float | str
    threshold: float | str
    where: str = ""

    def __str__(self) -> str:
        at = f" at {self.where}" if self.where else ""
        if isinstance(self.value, float) and isinstance(self.threshold, float):
            return f"{self.level}: {self.measure} {self.value:.4g}{at}, limit {self.threshold:.4g}"
        return f"{self.level}: {self.measure}: {self.value}{at}, expected {self.threshold}"


@dataclass(frozen=True)
class Level:
    """One level's outcome, its measures, and why it failed or did not run."""

    name: str
    outcome: Outcome
    measures: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    reason: str = ""


def judged(name: str, measures: Mapping[str, Any], failures: list[Failure]) -> Level:
    """A level that ran: failed if anything did."""
    return Level(name, "failed" if failures else "passed", measures, tuple(failures))


def not_run(name: str, reason: str) -> Level:
    return Level(name, "not_run", reason=reason)


@dataclass(frozen=True)
class GateReport:
    """All levels."""

    levels: tuple[Level, ...]

    @property
    def status(self) -> Outcome:
        outcomes = {each.name: each.outcome for each in self.levels}
        if "failed" in outcomes.values():
            return "failed"
        if any(outcomes.get(name) != "passed" for name in REQUIRED):
            return "not_run"
        return "passed"

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(failure for each in self.levels for failure in each.failures)

    def level(self, name: str) -> Level:
        return next(each for each in self.levels if each.name == name)


def gate_not_run(reason: str) -> GateReport:
    """A report that says only that nothing was judged."""
    return GateReport(tuple(not_run(name, reason) for name in LEVELS))


def report_json(report: GateReport) -> dict[str, Any]:
    """The report in the shape that the command line and the manifest print."""
    perplexity = finite(report.level("perplexity").measures)
    generation = report.level("generation").measures
    return {
        "status": report.status,
        "levels": {each.name: each.outcome for each in report.levels},
        "reasons": {each.name: each.reason for each in report.levels if each.reason},
        "failures": [str(each) for each in report.failures],
        "tokenizer": dict(report.level("tokenizer").measures) or None,
        "structure": dict(report.level("structure").measures) or None,
        "reload": finite(report.level("reload").measures) or None,
        "perplexity": perplexity.get("perplexity"),
        "kl_divergence": perplexity.get("kl_divergence"),
        "top1_agreement": perplexity.get("top1_agreement"),
        "probability_change_rms": perplexity.get("probability_change_rms"),
        "noise_floor": perplexity.get("noise_floor"),
        "by_text": perplexity.get("by_text") or [],
        "generation": dict(generation) or None,
    }
