"""The report's plots: plain data -> PNG bytes. Readable on a white page and on a dark one.

The background is transparent and every line and letter of a middle tone, so that one file
serves the report, the card and both colour schemes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _SOURCE, _SAVED, _LIMIT = "#7d8590", "#8a94a3", "#2f81f7", "#d1633c"
_PALETTE = ("#2f81f7", "#2ea06e", "#d1633c", "#a371f7", "#c9a227", "#d6619a", "#3aa6b9", "#8a94a3")
_SIZE = (4.8, 2.8)
_DPI = 170

#: ``layers.12.`` or ``h.12.`` in a module's name.
_DEPTH = re.compile(r"(?:^|\.)(\d+)\.(.+?)(?:\.weight)?$")


def ratio_plot(rows: Sequence[tuple[str, float, Sequence[float] | None]], limit: float) -> bytes:
    """Perplexity ratios with their intervals, a row each, and the most that is allowed."""
    figure, axes = _figure((4.8, 1.2 + 0.36 * len(rows)))
    for at, (_, ratio, interval) in enumerate(rows):
        color = _SAVED if at == 0 else _SOURCE
        if interval is not None:
            axes.plot(interval, [at, at], color=color, linewidth=3, solid_capstyle="butt")
        axes.plot([ratio], [at], "o", color=color)
    axes.axvline(1.0, color=_INK, linewidth=1)
    known = [each for _, ratio, inside in rows for each in (ratio, *(inside or ()))]
    if limit <= 1 + 4 * max(abs(each - 1) for each in known):
        axes.axvline(limit, color=_LIMIT, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("perplexity, quantized / source (95 % interval)")
    return _png(figure)


def divergence_plot(
    counts: Sequence[int], floor: Sequence[int] | None, lowest: int, per_decade: int
) -> bytes:
    """Share of tokens by KL divergence on a log axis, beside the noise floor's."""
    figure, axes = _figure(_SIZE)
    edges = [10 ** (lowest + at / per_decade) for at in range(len(counts) + 1)]
    axes.stairs(_shares(counts), edges, color=_SAVED, fill=True, alpha=0.35)
    axes.stairs(_shares(counts), edges, color=_SAVED, linewidth=1.5, label="quantized")
    if floor is not None and any(floor):
        axes.stairs(_shares(floor), edges, color=_LIMIT, linewidth=1.5, label="noise floor")
    axes.set_xscale("log")
    axes.set_xlabel("KL divergence of one token, nats")
    axes.set_ylabel("share of tokens")
    _legend(axes)
    return _png(figure)


def depth_plot(values: Sequence[tuple[str, float]], label: str, *, log: bool = False) -> bytes:
    """A value of every module by its name along depth, a line a kind of module."""
    figure, axes = _figure(_SIZE)
    kinds: dict[str, list[tuple[int, float]]] = {}
    for name, value in values:
        found = _DEPTH.search(name)
        depth, kind = (int(found[1]), found[2]) if found else (0, name)
        kinds.setdefault(kind, []).append((depth, value))
    for at, (kind, points) in enumerate(sorted(kinds.items())):
        points.sort()
        depths, heights = zip(*points, strict=True)
        color = _PALETTE[at % len(_PALETTE)]
        axes.plot(depths, heights, "o-", color=color, markersize=3, linewidth=1, label=kind)
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    _legend(axes)
    return _png(figure)


def size_plot(rows: Sequence[tuple[str, int]]) -> bytes:
    """Bytes of the weights, a bar each."""
    figure, axes = _figure((4.8, 1.0 + 0.36 * len(rows)))
    largest = max(size for _, size in rows)
    unit, name = next(
        ((each, name) for each, name in ((1e9, "GB"), (1e6, "MB")) if largest >= each), (1e3, "kB")
    )
    values = [size / unit for _, size in rows]
    colors = [_SOURCE, *[_SAVED] * (len(rows) - 1)]
    bars = axes.barh(range(len(rows)), values, color=colors, height=0.6)
    axes.bar_label(bars, [f"{each:.3g} {name}" for each in values], padding=4, color=_INK)
    axes.set_yticks(range(len(rows)), [each for each, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, max(values) * 1.2)
    axes.set_xlabel(f"weights, {name}")
    return _png(figure)


def trade_plot(rows: Sequence[tuple[str, int, float]], floor: float | None) -> bytes:
    """Size of the weights against the mean KL divergence, a point a folder."""
    figure, axes = _figure((4.8, 3.4))
    for at, (name, size, divergence) in enumerate(rows):
        color = _PALETTE[at % len(_PALETTE)]
        axes.plot([size / 1e6], [divergence], "o", color=color, label=name)
    if floor is not None and floor > 0:
        axes.axhline(floor, color=_INK, linewidth=1, linestyle="--", label="noise floor")
    if all(divergence > 0 and math.isfinite(divergence) for *_, divergence in rows):
        axes.set_yscale("log")
    axes.set_xlabel("weights, MB")
    axes.set_ylabel("mean KL divergence, nats")
    _legend(axes)
    return _png(figure)


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # without pyplot: no windows, no state

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK)
    axes.tick_params(which="both", colors=_INK, labelcolor=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.grid(color=_INK, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=_INK, fontsize=8)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [each / total for each in counts]


def _png(figure: Figure) -> bytes:
    held = io.BytesIO()
    figure.savefig(
        held, format="png", transparent=True, bbox_inches="tight", metadata={"Software": None}
    )
    return held.getvalue()
