"""GPTQ: weights rounded column by column, each error made good by the columns still to come.

Frantar et al., arXiv 2210.17323, minimize ``(w - d) H (w - d)`` row by row, over ``d`` on a
grid, where ``H`` is the Hessian ``sum of x x^T`` over a module's inputs ``x``. With
``H^-1 = U^T U``, ``U`` upper triangular, the error of column ``j`` is passed on to a later
column ``k`` as ``-error * U_jk / U_jj``, and what stays of it costs ``(error / U_jj)^2``. As in
the paper: the Cholesky form, dampening, columns in blocks. Not as there:

* ``U`` comes from one Cholesky factor of ``H`` itself (``H = R R^T``, ``U = R^-1``) rather
  than from a factor, an inverse and a factor again;
* one factor serves all modules with the same input;
* dampening grows until the factorization succeeds;
* an input that was always zero leaves its column rounded to nearest, where the paper's code
  zeroes the column;
* scales may be searched (:func:`rounding.find_scales`), columns ordered by their diagonal
  *inside* their groups (``grouped``), and weights moved beforehand towards what the
  unquantized model gives (:func:`make_good`). docs/gptq.md has what each bought.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantkit.kernels import rounding, rounding_cpu
from quantkit.kernels.rounding import Block, Grid

#: Columns between two large products; a multiple of every group size but the whole row.
COLUMN_BLOCK = 128

#: Rows of the Hessian that one product adds to.
_STRIPE = 512

#: Below this many columns a triangle is inverted at once.
_LEAF = 256

#: How often the dampening is multiplied by ten before a Hessian is given up.
_RETRIES = 3

Order = Literal["source", "diagonal", "grouped"]


@dataclass(frozen=True)
class Factor:
    """One input's Hessian, factored; shared by all modules that see that input.

    ``order``: int64 (columns,), the column rounded at each step; what follows is in that
    order. ``passing``: (columns, columns), ``U_jk / U_jj``. ``cost``: (columns,),
    ``1 / U_jj^2``. ``damp_percent`` is what was used in the end; ``dead`` counts inputs that
    were always zero; ``usable`` is false where the Hessian was not finite or could not be
    factored: all columns then weigh alike, and none makes good another's error.
    """

    order: Tensor
    passing: Tensor
    cost: Tensor
    damp_percent: float
    dead: int
    usable: bool


@dataclass(frozen=True)
class Quantized:
    """A weight (rows, columns) as integers, columns in the source's order.

    ``codes``: uint8 (rows, columns). ``scales``: (rows, groups), each exactly a float16.
    ``zero_points``: uint8 (rows, groups). ``g_idx``: int32 (columns,), each column's group.
    ``loss``: the Hessian-weighted squared error, summed over rows.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor
    g_idx: Tensor
    loss: float

    def dequantized(self) -> Tensor:
        """The weight that these stand for, (rows, columns), in the type of ``scales``."""
        groups = self.g_idx.long()
        weight = self.codes.to(self.scales.dtype)
        weight -= self.zero_points[:, groups]
        weight *= self.scales[:, groups]
        return weight


def accumulate(hessian: Tensor, inputs: Tensor) -> None:
    """Add ``inputs^T inputs`` to ``hessian``'s upper triangle; ``inputs`` (tokens, columns).

    In stripes, so that little more than half of the products are computed, and without a
    second copy of the inputs. Both float32.
    """
    for at in range(0, hessian.shape[0], _STRIPE):
        hessian[at : at + _STRIPE, at:].addmm_(inputs[:, at : at + _STRIPE].T, inputs[:, at:])


def factorize(hessian: Tensor, damp_percent: float, order: Order, group_size: int) -> Factor:
    """Dampen and factor ``hessian`` (columns, columns), whose upper triangle is read.

    ``damp_percent`` of the mean diagonal is added to the diagonal, ten times as much each
    time that the factorization fails. ``hessian`` is used up: the factor is made in its place.
    Memory: one matrix of its size beside it.
    """
    diagonal = hessian.diagonal().clone()
    dead = diagonal == 0
    if not bool(torch.isfinite(diagonal).all()):
        return _unusable(hessian, int(dead.sum()))
    visited = visiting_order(diagonal, order, group_size)
    mean = diagonal.mean()
    diagonal[dead] = 1.0 if bool(dead.all()) else mean
    _mirror(hessian)
    # the lower factor of H turned about both its diagonals is the upper one of H
    turned = visited.flip(0)
    full = hessian[turned[:, None], turned]
    lower = hessian.mT  # columns outermost, as LAPACK wants them: made in place
    failed = torch.empty((), dtype=torch.int32, device=hessian.device)
    used = damp_percent
    for _ in range(_RETRIES + 1):
        full.diagonal().copy_(diagonal[turned] + used * mean)
        torch.linalg.cholesky_ex(full, out=(lower, failed))
        if not int(failed) and bool(torch.isfinite(lower.sum())):
            del full
            invert_lower(lower)
            turn(lower)  # now upper, and U
            peaks = lower.diagonal().clone()
            lower /= peaks[:, None]
            return Factor(visited, lower, peaks.pow(-2), used, int(dead.sum()), usable=True)
        used *= 10
    return _unusable(hessian, int(dead.sum()))


def _mirror(hessian: Tensor) -> None:
    """Copy the upper triangle onto the lower one, in place."""
    for at in range(0, hessian.shape[0], _STRIPE):
        end = at + _STRIPE
        hessian[end:, at:end] = hessian[at:end, end:].T
        square = hessian[at:end, at:end]
        square.copy_(square.triu() + square.triu(1).T)


def visiting_order(diagonal: Tensor, order: Order, group_size: int) -> Tensor:
    """In which order columns are rounded: int64 (columns,).

    ``diagonal`` puts the largest first (``desc_act``); ``grouped`` does so inside each
    group, and puts the groups with the largest first, so that every group keeps its columns
    and the file needs no shuffled ``g_idx``.
    """
    columns = diagonal.numel()
    if order == "source":
        return torch.arange(columns, device=diagonal.device)
    if order == "diagonal":
        return torch.argsort(diagonal, descending=True, stable=True)
    grouped = diagonal.reshape(-1, group_size)
    inside = torch.argsort(grouped, dim=1, descending=True, stable=True)
    first = torch.arange(0, columns, group_size, device=diagonal.device)
    groups = torch.argsort(grouped.amax(1), descending=True, stable=True)
    ordered: Tensor = (inside + first[:, None])[groups]
    return ordered.reshape(-1)


def invert_lower(lower: Tensor) -> None:
    """Invert a lower triangular matrix in place, by halves: a third of a full solve's work."""
    size = lower.shape[0]
    if size <= _LEAF:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, last, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    invert_lower(first)
    invert_lower(last)
    below.copy_((last @ below @ first).neg_())


def turn(matrix: Tensor) -> None:
    """Put a square matrix's first row last and its first column last, in place."""
    size = matrix.shape[0]
    for at in range(0, (size + 1) // 2, _STRIPE):
        end = min(at + _STRIPE, (size + 1) // 2)
        first = matrix[at:end].flip(0, 1)
        matrix[at:end] = matrix[size - end : size - at].flip(0, 1)
        matrix[size - end : size - at] = first


def _unusable(hessian: Tensor, dead: int) -> Factor:
    columns = hessian.shape[0]
    identity = torch.eye(columns, dtype=hessian.dtype, device=hessian.device)
    order = torch.arange(columns, device=hessian.device)
    return Factor(order, identity, torch.ones_like(identity[0]), 0.0, dead, usable=False)


def make_good(weight: Tensor, lacking: Tensor, factor: Factor, share: float) -> Tensor:
    """``weight`` (rows, columns) moved so that its outputs make good what they lack.

    ``lacking`` (rows, columns) is the sum of ``(y - y~) x^T`` over inputs ``x``, for wanted
    outputs ``y`` and present ones ``y~``; the least-squares answer is to add ``lacking H^-1``,
    of which ``share`` is taken, as calibration inputs are few (GPTAQ, arXiv 2504.02692, has
    the idea, and weighs it alike). Where the Hessian is of no use the weight stays.
    """
    if not factor.usable or not share:
        return weight
    # H^-1 = P^T C^-1 P with the factor's ``passing`` and ``cost``; in stripes, as half of P is 0
    columns, passing = weight.shape[1], factor.passing
    stripes = [slice(at, at + _STRIPE) for at in range(0, columns, _STRIPE)]
    moved = lacking.index_select(1, factor.order)
    for here in stripes:  # what comes after it is as it was
        moved[:, here] = moved[:, here.start :] @ passing[here, here.start :].T
    moved *= share / factor.cost
    for here in reversed(stripes):
        moved[:, here] = moved[:, : here.stop] @ passing[: here.stop, here]
    return moved.index_select(1, torch.argsort(factor.order)).add_(weight)


def quantize(weight: Tensor, factor: Factor, grid: Grid) -> Quantized:
    """Round ``weight`` (rows, columns) of any float type, on the factor's device.

    Computed in the factor's type. Memory: the weight in that type, and its codes.
    """
    kind, device = factor.passing.dtype, factor.passing.device
    rows, columns = weight.shape
    left = weight.to(kind).index_select(1, factor.order)
    groups = _groups(factor.order, grid)
    scales = torch.ones(rows, columns // grid.group_size, dtype=kind, device=device)
    zeros = torch.full_like(scales, grid.middle)
    known = grid.static or grid.group_size > COLUMN_BLOCK
    if known:
        _find_all(left, factor, grid, groups, scales, zeros)
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=device)
    losses = torch.zeros(rows, dtype=torch.float64, device=device)
    solve = rounding_cpu.round_block if device.type == "cpu" else rounding.round_block
    for start in range(0, columns, COLUMN_BLOCK):
        stop = min(start + COLUMN_BLOCK, columns)
        here = slice(start, stop)
        block = Block(
            left[:, here].contiguous(),
            factor.passing[here, here].contiguous(),
            factor.cost[here].contiguous(),
            groups[here].contiguous(),
            scales,
            zeros,
            known,
        )
        codes[:, here], errors, lost = solve(block, grid)
        losses += lost
        left[:, stop:].addmm_(errors, factor.passing[here, stop:], alpha=-1.0)
    back = torch.argsort(factor.order)
    return Quantized(
        codes[:, back], scales, zeros.to(torch.uint8), groups[back].int(), float(losses.sum())
    )


def _groups(order: Tensor, grid: Grid) -> Tensor:
    """Each visited column's group: its own, unless the order tears groups apart.

    Then groups are made of columns visited one after another, unless scales are static.
    """
    own = order // grid.group_size
    together = bool((own.reshape(-1, grid.group_size) == own[:: grid.group_size, None]).all())
    if together or grid.static:
        return own
    return torch.arange(order.numel(), device=order.device) // grid.group_size


def _find_all(
    weight: Tensor, factor: Factor, grid: Grid, groups: Tensor, scales: Tensor, zeros: Tensor
) -> None:
    """Every group's scale, from the weights as they came; no error is passed on in the search."""
    for group in range(scales.shape[1]):
        columns = torch.nonzero(groups == group).reshape(-1)
        alone = torch.eye(columns.numel(), dtype=weight.dtype, device=weight.device)
        found = rounding.find_scales(weight[:, columns], alone, factor.cost[columns], grid)
        scales[:, group], zeros[:, group] = found
