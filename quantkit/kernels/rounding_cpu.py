"""GPTQ's inner loop on the CPU, compiled, many rows side by side.

The same as :mod:`rounding`, which explains it; here ``LANES`` rows stand in the lanes of a
tile (columns, lanes) that stays in the second-level cache, so that every step is one vector
operation over them, and no row's chain of errors waits for itself. Tiles are shared out among
threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from quantkit.kernels.grid import Grid
from quantkit.kernels.rounding import Block

#: Rows that are rounded side by side: enough to outweigh what a loop costs to enter.
LANES = 128

#: Columns whose errors are passed on together to what comes after them.
_TOGETHER = 4

#: Products may be fused; weights are finite, and the sign of a zero does not matter. Sums stay
#: in their order.
_FAST = {"contract", "nnan", "nsz"}

#: float16's least number above zero, and its least with a full significand.
_TINY, _NORMAL = 2.0**-24, 2.0**-14


def round_block(block: Block, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`rounding.round_block`."""
    rows, count = block.weights.shape
    codes = torch.empty(rows, count, dtype=torch.uint8)
    errors = torch.empty_like(block.weights)
    losses = torch.zeros_like(block.weights[:, 0])
    kind = block.weights.numpy().dtype.type
    shared = (
        block.passing.numpy(),
        block.cost.numpy(),
        block.groups.numpy(),
        np.array(grid.shrinks, dtype=kind),
        (
            kind(grid.top),
            kind(grid.middle),
            kind(grid.least_zero),
            grid.sym,
            block.known,
            grid.tried,
        ),
    )
    matrices = (block.weights, block.scales, block.zero_points, codes, errors, losses)
    views = [each.numpy() for each in matrices]

    def work(part: slice) -> None:
        _round_rows(*(view[part] for view in views), *shared)

    with ThreadPoolExecutor(threads := torch.get_num_threads()) as pool:
        step = -(-rows // threads)
        list(pool.map(work, (slice(at, at + step) for at in range(0, rows, step))))
    return codes, errors, losses


@njit(cache=True, nogil=True, error_model="numpy")
def _round_rows(  # type: ignore[no-untyped-def]
    weights, scales, zeros, codes, errors, losses, passing, cost, groups, shrinks, grid
):
    count, kind = weights.shape[1], weights.dtype
    top, _, _, _, known, _ = grid
    tile, tile_codes, tile_errors = _zeros(count, LANES, kind)
    scratch = _zeros(count, LANES, kind)
    for first in range(0, weights.shape[0], LANES):
        live = min(LANES, weights.shape[0] - first)
        for lane in range(live):
            for at in range(count):
                tile[at, lane] = weights[first + lane, at]
        loss = np.zeros(LANES, kind)
        start = 0
        while start < count:
            stop, group = start + 1, groups[start]
            while stop < count and groups[stop] == group:
                stop += 1
            if known:
                scale, zero = np.ones(LANES, kind), np.zeros(LANES, kind)
                scale[:live] = scales[first : first + live, group]
                zero[:live] = zeros[first : first + live, group]
            else:
                scale, zero = _find_scales(tile, start, stop, passing, cost, shrinks, grid, scratch)
                scales[first : first + live, group] = scale[:live]
                zeros[first : first + live, group] = zero[:live]
            _round(
                tile, start, stop, count, passing, cost, scale, zero, top,
                tile_codes, tile_errors, loss,
            )  # fmt: skip
            start = stop
        for lane in range(live):
            losses[first + lane] = loss[lane]
            for at in range(count):
                codes[first + lane, at] = np.uint8(tile_codes[at, lane])
                errors[first + lane, at] = tile_errors[at, lane]


@njit(cache=True, nogil=True, error_model="numpy")
def _find_scales(  # type: ignore[no-untyped-def]
    tile, start, stop, passing, cost, shrinks, grid, scratch
):
    """Scales and zero points (lanes,) of least loss for the columns of one group."""
    top, middle, least, sym, _, tried = grid
    kind, lanes = tile.dtype, tile.shape[1]
    low, high = _ranges(tile[start:stop], sym)
    scales, zeros, likely = _zeros(shrinks.size, lanes, kind)
    room, inverse = np.empty(1, kind), np.empty(lanes, kind)
    for trial in range(shrinks.size):
        for lane in range(lanes):
            wanted = (high[lane] - low[lane]) * shrinks[trial] / top
            scale = scales[trial, lane] = _float16_scale(wanted, room)
            part = low[lane] * shrinks[trial]
            zeros[trial, lane] = middle if sym else min(max(np.rint(-part / scale), least), top)
        for lane in range(lanes):
            inverse[lane] = top / top / scales[trial, lane]  # a 1 of their type
        for at in range(start, stop):
            _add_loss(tile, at, scales, inverse, zeros, trial, cost[at], top, likely)
    best = np.full(lanes, np.inf).astype(kind)
    best_scale, best_zero = best.copy(), np.zeros(lanes, kind)
    scale, zero = np.empty((2, lanes), kind)
    trial_tile, codes, errors = scratch
    for _ in range(tried):
        for lane in range(lanes):
            chosen = np.argmin(likely[:, lane])
            scale[lane], zero[lane] = scales[chosen, lane], zeros[chosen, lane]
            likely[chosen, lane] = np.inf
        trial_tile[start:stop] = tile[start:stop]
        loss = np.zeros(lanes, kind)
        _round(trial_tile, start, stop, stop, passing, cost, scale, zero, top, codes, errors, loss)
        for lane in range(lanes):
            if loss[lane] < best[lane]:
                best[lane], best_scale[lane], best_zero[lane] = loss[lane], scale[lane], zero[lane]
    return best_scale, best_zero


@njit(cache=True, nogil=True)
def _zeros(rows, lanes, kind):  # type: ignore[no-untyped-def]
    """Three matrices. As parts of one, LLVM could not tell them apart and would use no vectors."""
    shape = rows, lanes
    return np.zeros(shape, kind), np.zeros(shape, kind), np.zeros(shape, kind)


@njit(cache=True, nogil=True)
def _ranges(values, sym):  # type: ignore[no-untyped-def]
    """From the least to the largest value of each lane, zero inside."""
    low, high = np.zeros((2, values.shape[1]), values.dtype)
    for at in range(values.shape[0]):
        for lane in range(values.shape[1]):
            low[lane], high[lane] = (
                min(low[lane], values[at, lane]),
                max(high[lane], values[at, lane]),
            )
    for lane in range(values.shape[1]):
        if sym:
            high[lane] = max(-low[lane], high[lane])
            low[lane] = -high[lane]
        if low[lane] == high[lane]:
            low[lane], high[lane] = -1, 1
    return low, high


@njit(cache=True, nogil=True, error_model="numpy")
def _round(  # type: ignore[no-untyped-def]
    tile, start, stop, end, passing, cost, scale, zero, top, codes, errors, loss
):
    """Round columns ``start`` to ``stop``, each error passed on to the columns before ``end``."""
    for first in range(start, stop, _TOGETHER):
        last = min(first + _TOGETHER, stop)
        whole = last == first + _TOGETHER
        for at in range(first, last):
            _round_column(tile, at, scale, zero, cost[at], top, codes, errors, loss)
            for later in range(at + 1, last if whole else end):
                _pass_on(tile, later, errors, at, passing[at, later])
        if whole:
            for later in range(last, end):
                _pass_four(tile, later, errors, first, passing)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _round_column(  # type: ignore[no-untyped-def]
    tile, at, scale, zero, cost, top, codes, errors, loss
):
    for lane in range(tile.shape[1]):
        value = tile[at, lane]
        code = np.rint(value / scale[lane]) + zero[lane]
        code = code if code > top - top else top - top  # numba's way to a typed zero
        code = code if code < top else top
        error = value - scale[lane] * (code - zero[lane])
        codes[at, lane] = code
        errors[at, lane] = error
        loss[lane] += cost * error * error


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _add_loss(  # type: ignore[no-untyped-def]
    tile, at, scales, inverse, zeros, trial, cost, top, losses
):
    """Add what rounding a column costs when no error is passed on."""
    for lane in range(tile.shape[1]):
        value, zero = tile[at, lane], zeros[trial, lane]
        code = np.rint(value * inverse[lane]) + zero
        code = code if code > top - top else top - top
        code = code if code < top else top
        error = value - scales[trial, lane] * (code - zero)
        losses[trial, lane] += cost * error * error


@njit(cache=True, nogil=True, fastmath=_FAST)
def _pass_on(tile, later, errors, at, share):  # type: ignore[no-untyped-def]
    for lane in range(tile.shape[1]):
        tile[later, lane] -= errors[at, lane] * share


@njit(cache=True, nogil=True, fastmath=_FAST)
def _pass_four(tile, later, errors, at, passing):  # type: ignore[no-untyped-def]
    """:func:`_pass_on` for four columns at once: the later column is read and written once."""
    a, b, c, d = (
        passing[at, later],
        passing[at + 1, later],
        passing[at + 2, later],
        passing[at + 3, later],
    )
    for lane in range(tile.shape[1]):
        passed = errors[at, lane] * a + errors[at + 1, lane] * b
        passed += errors[at + 2, lane] * c + errors[at + 3, lane] * d
        tile[later, lane] -= passed


@njit(cache=True, nogil=True)
def _float16_scale(scale, room):  # type: ignore[no-untyped-def]
    """The nearest float16 that is not zero, halves to even; ``room`` (1,) gives it its type."""
    size = np.float32(abs(scale))
    if size < _NORMAL:
        room[0] = max(np.rint(size / _TINY), 1.0) * _TINY
    else:
        word = size.view(np.uint32)
        word = np.uint32(word + np.uint32(0xFFF) + ((word >> np.uint32(13)) & np.uint32(1)))
        room[0] = np.uint32(word & np.uint32(0xFFFFE000)).view(np.float32)
    return -room[0] if scale < 0 else room[0]
