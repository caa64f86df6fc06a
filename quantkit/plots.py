"""The report's plots: plain data -> PNG bytes. Readable on a white page and on a dark one.

The background is transparent and every line and letter of a middle tone, so that one file
serves the report, the card and both colour schemes.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _SOURCE, _SAVED, _LIMIT = "#7d8590", "#8a94a3", "#2f81f7", "#d1633c"
_PALETTE = ("#2f81f7", "#2ea06e", "#d1633c", "#a371f7", "#c9a227", "#d6619a", "#3aa6b9", "#8a94a3")
_SIZE = (4.8, 2.8)
_DPI = 170

#: ``layers.12.`` or ``h.12.`` in a module's name.
_DEPTH = re.compile(r"(?:^|\.)(\d+)\.(.+?)(?:\.weight)?$")

#: matplotlib's settings are the whole process's.
_ALONE = Lock()

P = ParamSpec("P")


def import_matplotlib(room: Path) -> None:
    """Import it on any machine. Where matplotlib has no folder of its own that it can write, it
    gets one in ``room`` for the time being. By itself it would make one among the temporary files,
    complain, and leave it there, as quantkit ends without ``atexit``; or give up.
    """
    with _ALONE:
        if "matplotlib" in sys.modules:
            return
        if _has_folders():
            _import_without_backend()
            return
        with TemporaryDirectory(dir=room, prefix=".quantkit-") as lent, _set("MPLCONFIGDIR", lent):
            _import_without_backend()


def _import_without_backend() -> None:
    """A notebook names its own backend to all that it starts; elsewhere that may not be installed,
    and matplotlib refuses to be imported. No plot here needs one."""
    chosen = os.environ.get("MPLBACKEND")
    with _set("MPLBACKEND", ""):
        import matplotlib.font_manager  # it writes a list of fonts
        import matplotlib.style  # it asks for the folder of settings, if nothing has before
    if chosen:
        with suppress(ValueError):  # for plots of others in this process
            matplotlib.rcParams["backend"] = chosen


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    """An environment variable, for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _has_folders() -> bool:
    """Whether matplotlib can write where it keeps its settings and its list of fonts."""
    if chosen := os.environ.get("MPLCONFIGDIR"):
        return _writable(Path(chosen))
    places = (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
    try:
        bases = [Path(os.environ.get(name) or Path.home() / usual) for name, usual in places]
    except RuntimeError:  # no home
        return False
    return all(_writable(base / "matplotlib") for base in bases)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _as_shipped(draw: Callable[P, bytes]) -> Callable[P, bytes]:
    """Drawn with the settings that matplotlib ships.

    A user's ``matplotlibrc``, also one in the current folder, may ask for LaTeX.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        from matplotlib.style import context

        with _ALONE, context("default"):
            return draw(*args, **kwargs)

    return drawn


def _label(name: str) -> str:
    """A name that others chose, in letters that the font has: no formula, and not left out of a
    legend for its underscore."""
    shown = " ".join(name.encode("ascii", "replace").decode().split()).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


@_as_shipped
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
    axes.set_yticks(range(len(rows)), [_label(name) for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("perplexity, quantized / source (95 % interval)")
    return _png(figure)


@_as_shipped
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


@_as_shipped
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
        axes.plot(depths, heights, "o-", color=color, markersize=3, linewidth=1, label=_label(kind))
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    _legend(axes)
    return _png(figure)


@_as_shipped
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


@_as_shipped
def trade_plot(rows: Sequence[tuple[str, int, float]], floor: float | None) -> bytes:
    """Size of the weights against the mean KL divergence, a point a folder."""
    figure, axes = _figure((4.8, 3.4))
    for at, (name, size, divergence) in enumerate(rows):
        color = _PALETTE[at % len(_PALETTE)]
        axes.plot([size / 1e6], [divergence], "o", color=color, label=_label(name))
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
