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


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _round_rows(  # type: ignore[no-untyped-def]
    weights, scales, zeros, codes, errors, losses, passing, cost, groups, shrinks, grid
):
    top, middle, _, group_size, _, known, _ = grid
    count = weights.shape[1]
    room = (np.empty(count, weights.dtype), np.empty_like(shrinks), np.empty_like(shrinks))
    for row in range(weights.shape[0]):
        line = weights[row]
        scale, zero, loss = middle, middle, top - top  # numba's way to a typed zero
        for at in range(count):
            group = groups[at]
            if at == 0 or group != groups[at - 1]:
                if not known:
                    here = slice(at, at + group_size)
                    found = _find_scale(
                        line[here], passing[here, here], cost[here], shrinks, grid, room
                    )
                    scales[row, group], zeros[row, group] = found
                scale, zero = scales[row, group], zeros[row, group]
            code = _code(line[at], top / top / scale, zero, top)
            error = line[at] - scale * (code - zero)
            codes[row, at] = np.uint8(code)
            errors[row, at] = error
            loss += cost[at] * error * error
            _pass_on(line[at + 1 :], passing[at, at + 1 :], error)
        losses[row] = loss


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _find_scale(weights, passing, cost, shrinks, grid, room):  # type: ignore[no-untyped-def]
    """The scale and the zero point of least loss for one group of one row."""
    top, middle, least, _, sym, _, tried = grid
    trial, likely, scales = room
    nothing = top - top
    low, high = nothing, nothing
    for value in weights:
        low, high = min(low, value), max(high, value)
    if sym:
        high = max(-low, high)
        low = -high
    if low == high:
        high = top / top
        low = -high
    for at in range(shrinks.size):
        scales[at] = _float16_scale((high - low) * shrinks[at] / top, trial[:1])
        zero = middle if sym else _zero(low * shrinks[at], scales[at], least, top)
        likely[at] = _loss_alone(weights, cost, scales[at], zero, top)
    best, best_scale, best_zero = nothing, nothing, middle
    for _ in range(tried):
        chosen = np.argmin(likely)
        scale = scales[chosen]
        zero = middle if sym else _zero(low * shrinks[chosen], scale, least, top)
        likely[chosen] = np.inf
        loss = _loss(weights, trial, passing, cost, scale, zero, top)
        if best_scale == 0 or loss < best:
            best, best_scale, best_zero = loss, scale, zero
    return best_scale, best_zero


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _loss_alone(weights, cost, scale, zero, top):  # type: ignore[no-untyped-def]
    """What rounding costs when no error is passed on."""
    loss, inverse = top - top, top / top / scale
    for at in range(weights.size):
        error = weights[at] - scale * (_code(weights[at], inverse, zero, top) - zero)
        loss += cost[at] * error * error
    return loss


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _loss(weights, trial, passing, cost, scale, zero, top):  # type: ignore[no-untyped-def]
    """What rounding costs, each error passed on inside the group."""
    loss, inverse = top - top, top / top / scale
    trial = trial[: weights.size]
    trial[:] = weights
    for at in range(trial.size):
        error = trial[at] - scale * (_code(trial[at], inverse, zero, top) - zero)
        loss += cost[at] * error * error
        _pass_on(trial[at + 1 :], passing[at, at + 1 :], error)
    return loss


@njit(cache=True, nogil=True, fastmath=_FAST)
def _pass_on(later, shares, error):  # type: ignore[no-untyped-def]
    for at in range(later.size):
        later[at] -= error * shares[at]


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _code(value, inverse, zero, top):  # type: ignore[no-untyped-def]
    return min(max(np.rint(value * inverse) + zero, top - top), top)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _zero(low, scale, least, top):  # type: ignore[no-untyped-def]
    return min(max(np.rint(-low / scale), least), top)


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
