"""GPTQ's inner loop in torch, on any device: one block of columns, scales found on the way.

Written over columns, all rows at once, which is what a CUDA device wants.
:mod:`rounding_cpu` is the same over rows, compiled; the two give the same codes but where
the order of a sum decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.kernels.grid import Grid


@dataclass(frozen=True)
class Block:
    """``n`` columns rounded together, in visiting order.

    ``weights`` (rows, n) are overwritten by :func:`round_block` of this module, and left alone by
    the compiled ones. ``passing`` (n, n) is how much of each column's error the later ones take;
    ``cost`` (n,) is as in :class:`~quantkit.kernels.hessian.Factor`. ``groups`` int64 (n,) says
    which column of ``scales`` and ``zero_points`` (rows, groups) is each column's. ``known`` says
    that those are found already; otherwise a group of the grid's size begins wherever ``groups``
    changes, and its scale is found there.
    """

    weights: Tensor
    passing: Tensor
    cost: Tensor
    groups: Tensor
    scales: Tensor
    zero_points: Tensor
    known: bool


def round_block(block: Block, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Round a block's columns one by one, each error passed on to the columns to come.

    Returns codes uint8 (rows, n), errors (rows, n) as passed on, losses (rows,).
    """
    weights = block.weights
    codes = torch.empty(weights.shape, dtype=torch.uint8, device=weights.device)
    errors = torch.empty_like(weights)
    losses = torch.zeros_like(weights[:, 0])
    for start, stop in _runs(block.groups):
        columns, group = slice(start, stop), int(block.groups[start])
        passing, cost = block.passing[columns, columns], block.cost[columns]
        if not block.known:
            found = find_scales(weights[:, columns], passing, cost, grid)
            block.scales[:, group], block.zero_points[:, group] = found
        scale, zero = block.scales[:, group], block.zero_points[:, group]
        made = _round_columns(weights[:, columns], passing, cost, scale, zero, grid)
        codes[:, columns], errors[:, columns] = made[0], made[1]
        losses += made[2]
        weights[:, stop:] -= errors[:, columns] @ block.passing[columns, stop:]
    return codes, errors, losses


def find_scales(
    weights: Tensor, passing: Tensor, cost: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """A scale and a zero point (rows,) for the columns of one group, ``weights`` (rows, n).

    Candidates are first ranked by what rounding with them costs when no error is passed on;
    the likeliest are then tried with each error passed on inside the group. Without a search
    the only candidate is the whole range. Where no loss is finite, the scale is infinite.
    """
    low, high = _ranges(weights, grid)
    trials = [_candidate(low, high, part, grid) for part in grid.shrinks]
    scales, zeros = (torch.stack(each, 1) for each in zip(*trials, strict=True))
    alone = [_loss_alone(weights, cost, *each, grid) for each in trials]
    likely = torch.argsort(torch.stack(alone, 1), dim=1, stable=True)[:, : grid.tried]
    best = torch.full_like(low, torch.inf)
    scale, zero = best.clone(), torch.zeros_like(low)
    for at in range(likely.shape[1]):
        chosen = likely[:, at : at + 1]
        trial, middle = scales.gather(1, chosen)[:, 0], zeros.gather(1, chosen)[:, 0]
        loss = _round_columns(weights.clone(), passing, cost, trial, middle, grid)[2]
        better = loss < best
        best = torch.where(better, loss, best)
        scale, zero = torch.where(better, trial, scale), torch.where(better, middle, zero)
    return scale, zero


def _loss_alone(weights: Tensor, cost: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """What rounding costs (rows,) when no error is passed on."""
    scale, zero = scale[:, None], zero[:, None]
    codes = (torch.round(weights / scale) + zero).clamp_(0, grid.top)
    return (weights - scale * (codes - zero)).square_() @ cost


def _runs(groups: Tensor) -> list[tuple[int, int]]:
    """Stretches ``(start, stop)`` of neighbouring columns of one group."""
    names = groups.tolist()
    edges = [at for at in range(1, len(names)) if names[at] != names[at - 1]]
    return list(zip([0, *edges], [*edges, len(names)], strict=True))


def _round_columns(
    weights: Tensor, passing: Tensor, cost: Tensor, scale: Tensor, zero: Tensor, grid: Grid
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns (rows, n) with one scale a row; ``weights`` are overwritten."""
    codes = torch.empty(weights.shape, dtype=torch.uint8, device=weights.device)
    errors = torch.empty_like(weights)
    losses = torch.zeros_like(scale)
    for at in range(weights.shape[1]):
        code = (torch.round(weights[:, at] / scale) + zero).clamp_(0, grid.top)
        codes[:, at] = code.to(torch.uint8)
        error = weights[:, at] - scale * (code - zero)
        losses += cost[at] * error.square()
        errors[:, at] = error
        weights[:, at + 1 :].addr_(error, passing[at, at + 1 :], alpha=-1.0)
    return codes, errors, losses


def _ranges(weights: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """From the least to the largest value of each row, zero inside."""
    low, high = weights.amin(1).clamp(max=0), weights.amax(1).clamp(min=0)
    if grid.sym:
        high = torch.maximum(-low, high)
        low = -high
    empty = low == high
    return torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)


def _candidate(low: Tensor, high: Tensor, part: float, grid: Grid) -> tuple[Tensor, Tensor]:
    scale = float16_scale((high - low) * part / grid.top)
    if grid.sym:
        return scale, torch.full_like(scale, grid.middle)
    return scale, torch.round(-low * part / scale).clamp(grid.least_zero, grid.top)


def float16_scale(scale: Tensor) -> Tensor:
    """The nearest float16 that is not zero, in the type it came in."""
    tiny = 2.0**-24
    half = scale.to(torch.float16).to(scale.dtype)
    return torch.where(half == 0, torch.where(scale < 0, -tiny, tiny), half)
