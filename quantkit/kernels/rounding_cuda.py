"""GPTQ's inner loop on a CUDA device, compiled by Triton: a block of columns in one launch.

The same as :mod:`rounding`, which explains it. Each program holds a few whole rows of the block
in registers and goes through their columns one by one; torch would launch some ten kernels for
each column, and as many again for each scale that is tried. The two give the same codes but
where the order of a sum decides.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quantkit.kernels.grid import Grid
from quantkit.kernels.rounding import Block

#: Rows of one program: few, so that a narrow weight keeps all of a device at work too.
_ROWS = 16

#: Added and taken away again it leaves a float32's nearest integer, halves to even.
_ROUNDING = tl.constexpr(1.5 * 2**23)

#: float16's least number above zero.
_TINY = tl.constexpr(2.0**-24)


def round_block(block: Block, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`rounding.round_block`, in float32; ``weights`` stay as they are."""
    rows, count = block.weights.shape
    device = block.weights.device
    codes = torch.empty(rows, count, dtype=torch.uint8, device=device)
    errors = torch.empty(rows, count, dtype=torch.float32, device=device)
    losses = torch.empty(rows, dtype=torch.float32, device=device)
    shrinks = torch.tensor(grid.shrinks, dtype=torch.float32, device=device)
    _round_rows[(triton.cdiv(rows, _ROWS),)](
        block.weights.contiguous(), block.passing.contiguous(), block.cost, block.groups,
        block.scales, block.zero_points, codes, errors, losses, shrinks,
        rows, count, block.scales.shape[1], len(grid.shrinks),
        TOP=grid.top, MIDDLE=grid.middle, LEAST=grid.least_zero, SYM=grid.sym,
        KNOWN=block.known, GROUP=count if block.known else grid.group_size, TRIED=grid.tried,
        ROWS=_ROWS, COLUMNS=triton.next_power_of_2(count),
        TRIALS=triton.next_power_of_2(len(grid.shrinks)),
    )  # fmt: skip
    return codes, errors, losses


@triton.jit  # type: ignore[untyped-decorator]
def _round_rows(  # type: ignore[no-untyped-def]
    weights, passing, cost, groups, scales, zeros, codes, errors, losses, shrinks,
    rows, count, groups_all, trials,
    TOP: tl.constexpr, MIDDLE: tl.constexpr, LEAST: tl.constexpr, SYM: tl.constexpr,
    KNOWN: tl.constexpr, GROUP: tl.constexpr, TRIED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TRIALS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    live, inside = row < rows, column < count
    at = row[:, None] * count + column[None, :]
    left = tl.load(weights + at, mask=live[:, None] & inside[None, :], other=0.0)
    price = tl.load(cost + column, mask=inside, other=0.0)
    loss = tl.zeros((ROWS,), tl.float32)
    scale = tl.full((ROWS,), 1.0, tl.float32)
    zero = tl.full((ROWS,), 0.0, tl.float32)
    for start in range(0, count, GROUP):
        if not KNOWN:
            scale, zero = _find_scales(
                left, passing, price, shrinks, start, count, trials,
                TOP, MIDDLE, LEAST, SYM, GROUP, TRIED, ROWS, COLUMNS, TRIALS,
            )  # fmt: skip
            group = row * groups_all + tl.load(groups + start)
            tl.store(scales + group, scale, mask=live)
            tl.store(zeros + group, zero, mask=live)
        for own in range(start, start + GROUP):
            if KNOWN:
                group = row * groups_all + tl.load(groups + own)
                scale = tl.load(scales + group, mask=live, other=1.0)
                zero = tl.load(zeros + group, mask=live, other=0.0)
            left, code, error = _round_column(left, own, column, inside, passing, count,
                                              scale, zero, TOP)  # fmt: skip
            loss += tl.load(cost + own) * error * error
            tl.store(codes + row * count + own, code.to(tl.uint8), mask=live)
            tl.store(errors + row * count + own, error, mask=live)
    tl.store(losses + row, loss, mask=live)


@triton.jit  # type: ignore[untyped-decorator]
def _round_column(left, own, column, inside, passing, count, scale, zero, TOP: tl.constexpr):  # type: ignore[no-untyped-def]
    """One column's codes and errors, the errors passed on to the columns to come."""
    value = tl.sum(tl.where(column[None, :] == own, left, 0.0), axis=1)
    code = _code(tl.div_rn(value, scale), zero, TOP)
    error = value - scale * (code - zero)
    share = tl.load(passing + own * count + column, mask=inside & (column > own), other=0.0)
    return left - error[:, None] * share[None, :], code, error


@triton.jit  # type: ignore[untyped-decorator]
def _code(steps, zero, TOP: tl.constexpr):  # type: ignore[no-untyped-def]
    rounded = (steps + _ROUNDING) - _ROUNDING
    return tl.minimum(tl.maximum(rounded + zero, 0.0), TOP * 1.0)


@triton.jit  # type: ignore[untyped-decorator]
def _find_scales(  # type: ignore[no-untyped-def]
    left, passing, price, shrinks, start, count, trials,
    TOP: tl.constexpr, MIDDLE: tl.constexpr, LEAST: tl.constexpr, SYM: tl.constexpr,
    GROUP: tl.constexpr, TRIED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TRIALS: tl.constexpr,
):  # fmt: skip
    """As :func:`rounding.find_scales`, of the ``GROUP`` columns from ``start`` on."""
    column, trial = tl.arange(0, COLUMNS), tl.arange(0, TRIALS)
    own = (column >= start) & (column < start + GROUP)
    values = tl.where(own[None, :], left, 0.0)
    low, high = tl.min(values, axis=1), tl.max(values, axis=1)
    if SYM:
        high = tl.maximum(-low, high)
        low = -high
    empty = low == high
    low, high = tl.where(empty, -1.0, low), tl.where(empty, 1.0, high)
    likely = tl.full((ROWS, TRIALS), float("inf"), tl.float32)
    for each in range(trials):
        scale, zero = _candidate(low, high, tl.load(shrinks + each), TOP, MIDDLE, LEAST, SYM)
        inverse = tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), scale)
        code = _code(values * inverse[:, None], zero[:, None], TOP)
        error = values - scale[:, None] * (code - zero[:, None])
        alone = tl.sum(tl.where(own, price, 0.0)[None, :] * error * error, axis=1)
        likely = tl.where(trial[None, :] == each, alone[:, None], likely)
    parts = tl.load(shrinks + trial, mask=trial < trials, other=0.0)
    best = tl.full((ROWS,), float("inf"), tl.float32)
    best_scale = best
    best_zero = tl.full((ROWS,), 0.0, tl.float32)
    for _ in range(TRIED):
        chosen = tl.argmin(likely, axis=1)
        taken = trial[None, :] == chosen[:, None]
        likely = tl.where(taken, float("inf"), likely)
        part = tl.sum(tl.where(taken, parts[None, :], 0.0), axis=1)
        scale, zero = _candidate(low, high, part, TOP, MIDDLE, LEAST, SYM)
        loss = tl.zeros((ROWS,), tl.float32)
        tried = values
        for at in range(start, start + GROUP):
            tried, _code_of, error = _round_column(tried, at, column, own, passing, count,
                                                   scale, zero, TOP)  # fmt: skip
            loss += tl.sum(tl.where(column == at, price, 0.0), axis=0) * error * error
        better = loss < best
        best = tl.where(better, loss, best)
        best_scale = tl.where(better, scale, best_scale)
        best_zero = tl.where(better, zero, best_zero)
    return best_scale, best_zero


@triton.jit  # type: ignore[untyped-decorator]
def _candidate(  # type: ignore[no-untyped-def]
    low, high, part, TOP: tl.constexpr, MIDDLE: tl.constexpr, LEAST: tl.constexpr,
    SYM: tl.constexpr,
):  # fmt: skip
    """A float16 scale for a part of the range, and its zero point."""
    wanted = tl.div_rn((high - low) * part, tl.full(low.shape, TOP * 1.0, tl.float32))
    half = wanted.to(tl.float16).to(tl.float32)
    scale = tl.where(half == 0.0, tl.where(wanted < 0.0, -_TINY, _TINY), half)
    if SYM:
        zero = tl.full(low.shape, MIDDLE * 1.0, tl.float32)
    else:
        steps = (tl.div_rn(-low * part, scale) + _ROUNDING) - _ROUNDING
        zero = tl.minimum(tl.maximum(steps, LEAST * 1.0), TOP * 1.0)
    return scale, zero
