"""GPTQ's inner loop on the CPU, compiled, one row at a time.

The same as :mod:`rounding`, which explains it; here a row's block stays in the first-level
cache, and rows are shared out among threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from quantkit.kernels.rounding import Block, Grid

#: Sums may be reordered and products fused: what a compiler needs to use vectors.
_FAST = {"reassoc", "contract"}

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
            grid.group_size,
            grid.sym,
            block.known,
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


@njit(cache=True, nogil=True, fastmath=_FAST)
def _round_rows(  # type: ignore[no-untyped-def]
    weights, scales, zeros, codes, errors, losses, passing, cost, groups, shrinks, grid
):
    top, middle, _, group_size, _, known = grid
    nothing = top - top  # numba's way to a zero of the weights' type
    count = weights.shape[1]
    trial = np.empty(count, weights.dtype)
    for row in range(weights.shape[0]):
        line = weights[row]
        scale, zero, loss = middle, middle, nothing
        for at in range(count):
            group = groups[at]
            if at == 0 or group != groups[at - 1]:
                if not known:
                    found = _find_scale(line, at, group_size, passing, cost, shrinks, grid, trial)
                    scales[row, group], zeros[row, group] = found
                scale, zero = scales[row, group], zeros[row, group]
            code = min(max(np.rint(line[at] / scale) + zero, nothing), top)
            error = line[at] - scale * (code - zero)
            codes[row, at] = np.uint8(code)
            errors[row, at] = error
            loss += cost[at] * error * error
            for later in range(at + 1, count):
                line[later] -= error * passing[at, later]
        losses[row] = loss


@njit(cache=True, nogil=True, fastmath=_FAST)
def _find_scale(line, first, size, passing, cost, shrinks, grid, trial):  # type: ignore[no-untyped-def]
    """The scale and the zero point of least loss for ``line[first : first + size]``."""
    top, middle, least, _, sym, _ = grid
    nothing = top - top
    low, high = nothing, nothing
    for at in range(first, first + size):
        low, high = min(low, line[at]), max(high, line[at])
    if sym:
        high = max(-low, high)
        low = -high
    if low == high:
        high = top / top
        low = -high
    best, best_scale, best_zero = nothing, nothing, middle
    for part in shrinks:
        scale = _float16_scale((high - low) * part / top, trial[:1])
        zero = middle
        if not sym:
            zero = min(max(np.rint(-low * part / scale), least), top)
        for at in range(size):
            trial[at] = line[first + at]
        loss = nothing
        for at in range(size):
            code = min(max(np.rint(trial[at] / scale) + zero, nothing), top)
            error = trial[at] - scale * (code - zero)
            loss += cost[first + at] * error * error
            if best_scale != 0 and loss >= best:
                break
            for later in range(at + 1, size):
                trial[later] -= error * passing[first + at, first + later]
        if best_scale == 0 or loss < best:
            best, best_scale, best_zero = loss, scale, zero
    return best_scale, best_zero


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
