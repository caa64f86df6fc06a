"""What scale.py found, as records, as tables and as a plot."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: As published models go, with nothing measured: only its headers are ever made.
FORECAST = {"hidden_size": 5120, "num_hidden_layers": 40, "vocab_size": 50432, "shards": 3}


@dataclass(frozen=True)
class Record:
    """One piece at one size. Seconds and bytes.

    ``how`` says what was measured, and of what the rest was computed; ``whole`` is False
    where ``seconds`` was computed in part. ``floor`` is 0 where none is defined.
    """

    piece: str
    model: str
    container: str
    parameters: int
    source_bytes: int
    output_bytes: int
    seconds: float
    cpu: float
    peak: int
    floor: float
    how: str
    whole: bool = True
    plan_bytes: int = 0
    device_peak: int = 0
    when: str = ""
    machine: str = ""
    versions: str = ""


def parameters(size: Mapping[str, Any]) -> int:
    hidden, layers = size["hidden_size"], size["num_hidden_layers"]
    return layers * (12 * hidden**2 + 13 * hidden) + 2 * hidden * (size["vocab_size"] + 1)


HEAD = (
    "| piece | model | container | parameters | source GB | output GB | wall s | peak MB | "
    "times the floor | how |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


def section(args: argparse.Namespace, found: Sequence[Record]) -> str:
    last = found[-1]
    lines = [
        f"## {last.when} scale.py {args.piece}: GPT-NeoX {last.model}, random weights",
        "",
        f"{last.machine}; {last.versions}.",
        "",
        *HEAD,
        *map(row, found),
    ]
    forecasts = [each for each in found if each.plan_bytes]
    if forecasts:
        lines += ["", *(said_before(each) for each in forecasts)]
    return "\n".join([*lines, ""])


def said_before(record: Record) -> str:
    """The plan's forecast of memory, beside what was measured if it was."""
    text = f"{record.model} {record.piece}: the plan foretells {record.plan_bytes / 1e6:.0f} MB"
    return text if record.model == "13B" else f"{text}, the peak was {record.peak / 1e6:.0f} MB."


def row(record: Record) -> str:
    bound = f"{record.seconds / record.floor:.2f}" if record.floor else ""
    output = f"{record.output_bytes / 1e9:.3f}" if record.output_bytes else ""
    seconds = f"{record.seconds:.2f}" if record.whole else f"*{record.seconds:.0f}, computed*"
    return (
        f"| {record.piece} | {record.model} | {record.container} | "
        f"{record.parameters / 1e9:.2f}e9 | {record.source_bytes / 1e9:.2f} | {output} | "
        f"{seconds} | {record.peak / 1e6:.0f} | {bound} | {record.how} |"
    )


def read_records(path: Path) -> list[Record]:
    """The last record of each piece, size and container, in order of size."""
    found: dict[tuple[str, str, str], Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        each = Record(**json.loads(line))
        found[each.piece, each.model, each.container] = each
    return sorted(found.values(), key=lambda each: (each.piece, each.parameters))


def summary(args: argparse.Namespace, found: Sequence[Record]) -> str:
    lines = [
        f"## {time.strftime('%Y-%m-%d %H:%M')} scale.py table: time and peak memory against size",
        "",
        "From bench/scale.jsonl, the last of each; the runs above say on what. "
        "What is *computed* was measured in part.",
        "",
        *HEAD,
        *map(row, found),
        "",
    ]
    for piece in dict.fromkeys(each.piece for each in found):
        same = [each for each in found if each.piece == piece]
        if len({each.parameters for each in same}) > 2:
            lines.append(f"- {piece}: {line_through(same)}")
    if not args.no_record:
        draw(args.plot, found)
        lines += ["", f"![time and memory against size]({args.plot.name})"]
    return "\n".join([*lines, ""])


def line_through(found: Sequence[Record]) -> str:
    """The least-squares line of time over source bytes, how far off it is, and 13B on it."""
    slope, start = fitted(found)
    off = max(abs(each.seconds / (start + slope * each.source_bytes) - 1) for each in found)
    growth = found[-1].peak / found[0].peak - 1
    at = start + slope * 2 * parameters(FORECAST)
    return (
        f"{start:.2f} s and {slope * 1e9:.2f} s a GB of source, at most {off:.0%} off; peak "
        f"{growth:+.0%} from {found[0].model} to {found[-1].model}; a 13B model on that line: "
        f"{at:.0f} s (a forecast)."
    )


def fitted(found: Sequence[Record]) -> tuple[float, float]:
    line = statistics.linear_regression(
        [each.source_bytes for each in found], [each.seconds for each in found]
    )
    return line.slope, line.intercept


def draw(path: Path, found: Sequence[Record]) -> None:
    """Time on log axes, memory beside it on plain ones; hollow marks are computed in part."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    pieces = [
        each for each in dict.fromkeys(r.piece for r in found) if not each.startswith("plan ")
    ]
    for at, piece in enumerate(pieces):
        same = [each for each in found if each.piece == piece]
        sizes, color = [each.parameters / 1e9 for each in same], f"C{at}"
        for axes, values in (
            (left, [each.seconds for each in same]),
            (right, [each.peak / 1e6 for each in same]),
        ):
            axes.plot(sizes, values, color=color, label=piece)
            for x, y, each in zip(sizes, values, same, strict=True):
                axes.plot([x], [y], "o", color=color, mfc=color if each.whole else "white")
    left.set(xscale="log", yscale="log", xlabel="parameters, 1e9", ylabel="wall seconds")
    left.minorticks_off()
    left.set_xticks([0.3, 1, 3], ["0.3", "1", "3"])
    right.set(xlabel="parameters, 1e9", ylabel="peak MB", ylim=(0, None))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)
