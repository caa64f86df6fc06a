"""GPTQ: weights rounded column by column, each error made good by the columns still to come.

Frantar et al., arXiv 2210.17323, minimize ``(w - d) H (w - d)`` row by row, over ``d`` on a
grid, where ``H`` is the Hessian ``sum of x x^T`` over a module's inputs ``x``. The paper
factors ``H^-1 = U^T U`` and passes the error of each column on to all later ones, ``-error *
U_jk / U_jj``; what stays of it costs ``(error / U_jj)^2``. Here ``H = R R^T`` is factored,
``R = U^-1`` upper triangular, and no inverse is made but of blocks on the diagonal: what the
columns before a block lack is ``d``, and moves the block by ``d R`` (Chen et al., arXiv
2507.18553, on Babai's nearest plane); inside the block errors are passed on as in the paper,
with ``U`` there the inverse of the block of ``R``. The integers are the paper's. Unlike it:

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
from quantkit.kernels.grid import Grid
from quantkit.kernels.rounding import Block

#: Columns between two large products; a multiple of every group size but the whole row.
COLUMN_BLOCK = 128

#: Below this many columns a symmetric product is computed whole.
_LEAF = 128

#: Rows of a matrix that are worked on at once.
_STRIPE = 512

#: How often the dampening is multiplied by ten before a Hessian is given up.
_RETRIES = 3

Order = Literal["source", "diagonal", "grouped"]


@dataclass(frozen=True)
class Factor:
    """One input's Hessian, factored; shared by all modules that see that input.

    ``order``: int64 (columns,), the column rounded at each step; what follows is in that
    order. ``passing``: (columns, columns), ``R_jk / R_kk``, so ones on its diagonal.
    ``cost``: (columns,), ``R_kk^2``. ``damp_percent`` is what was used in the end; ``dead``
    counts inputs that were always zero; ``usable`` is false where the Hessian was not finite
    or could not be factored: all columns then weigh alike, and none makes good another's error.
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

    By halves, so that little more than half of the products are computed, and without a
    second copy of the inputs. Both float32.
    """
    columns = hessian.shape[0]
    if columns <= _LEAF:
        hessian.addmm_(inputs.T, inputs)
        return
    first, last = slice(columns // 2), slice(columns // 2, columns)
    accumulate(hessian[first, first], inputs[:, first])
    accumulate(hessian[last, last], inputs[:, last])
    hessian[first, last].addmm_(inputs[:, first].T, inputs[:, last])


def factorize(hessian: Tensor, damp_percent: float, order: Order, group_size: int) -> Factor:
    """Dampen and factor ``hessian`` (columns, columns), whose upper triangle is read.

    ``damp_percent`` of the mean diagonal is added to the diagonal, ten times as much each
    time that the factorization fails. ``hessian`` is used up: the factor is made in its place,
    with little beside it.
    """
    diagonal = hessian.diagonal().clone()
    dead = diagonal == 0
    if not bool(torch.isfinite(diagonal).all()):
        return _unusable(hessian, int(dead.sum()))
    visited = visiting_order(diagonal, order, group_size)
    mean = diagonal.mean()
    diagonal[dead] = 1.0 if bool(dead.all()) else mean
    mirror(hessian)
    permute(hessian, visited)
    used = damp_percent
    for _ in range(_RETRIES + 1):
        hessian.diagonal().copy_(diagonal[visited] + used * mean)
        if factor_upper(hessian):
            hessian.triu_()
            peaks = hessian.diagonal().clone()
            hessian /= peaks
            return Factor(visited, hessian, peaks.square(), used, int(dead.sum()), usable=True)
        mirror(hessian.mT)  # the lower triangle is as it was
        used *= 10
    return _unusable(hessian, int(dead.sum()))


def mirror(matrix: Tensor) -> None:
    """Copy the upper triangle onto the lower one, in place."""
    for here in _stripes(matrix):
        matrix[here.stop :, here] = matrix[here, here.stop :].T
        square = matrix[here, here]
        square.copy_(square.triu() + square.triu(1).T)


def permute(matrix: Tensor, order: Tensor) -> None:
    """Put rows and columns in another order, in place."""
    for here in _stripes(matrix):
        matrix[:, here] = matrix[:, here].index_select(0, order)
    for here in _stripes(matrix):
        matrix[here] = matrix[here].index_select(1, order)


def factor_upper(matrix: Tensor) -> bool:
    """``R`` with ``R R^T = matrix`` in the place of its upper triangle; false if there is none.

    The lower triangle, without the diagonal, stays. By blocks, from the last to the first.
    """
    for here in reversed(_stripes(matrix)):
        square, above = matrix[here, here], matrix[: here.start, here]
        lower, failed = torch.linalg.cholesky_ex(square.flip(0, 1))
        if int(failed) or not bool(torch.isfinite(lower.diagonal()).all()):
            return False
        upper = lower.flip(0, 1)
        square.copy_(upper + square.tril(-1))
        above.copy_(torch.linalg.solve_triangular(upper.mT, above, upper=False, left=False))
        for rows in _stripes(matrix[: here.start]):
            stripe, later = above[rows], above[rows.stop :]
            matrix[rows, rows] -= (stripe @ stripe.T).triu_()
            matrix[rows, rows.stop : here.start].addmm_(stripe, later.T, alpha=-1.0)
    return True


def _stripes(matrix: Tensor) -> list[slice]:
    rows = matrix.shape[0]
    return [slice(at, min(at + _STRIPE, rows)) for at in range(0, rows, _STRIPE)]


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


def _unusable(hessian: Tensor, dead: int) -> Factor:
    columns = hessian.shape[0]
    identity = torch.eye(columns, dtype=hessian.dtype, device=hessian.device)
    order = torch.arange(columns, device=hessian.device)
    return Factor(order, identity, torch.ones_like(identity[0]), 0.0, dead, usable=False)


def make_good(lacking: Tensor, factor: Factor, share: float) -> Tensor:
    """By how much a weight's columns move, in visiting order, so that its outputs make good what
    they lack.

    ``lacking`` (rows, columns) is the sum of ``(y - y~) x^T`` over inputs ``x``, for wanted
    outputs ``y`` and present ones ``y~``; the least-squares answer is to add ``lacking H^-1``,
    of which ``share`` is taken, as calibration inputs are few (GPTAQ, arXiv 2504.02692, has
    the idea, and weighs it alike). The result, for :func:`quantize`, is that times ``passing``:
    where each column is rounded when those before it are as they were. Nothing where the
    Hessian is of no use.
    """
    if not factor.usable:
        return torch.zeros_like(lacking)
    return _solve(factor.passing.mT, lacking[:, factor.order], upper=False).mul_(
        share / factor.cost
    )


def quantize(weight: Tensor, factor: Factor, grid: Grid, moved: Tensor | None = None) -> Quantized:
    """Round ``weight`` (rows, columns) of any float type, on the factor's device.

    ``moved`` is what :func:`make_good` gives. Computed in the factor's type. Memory: the
    weight in that type twice, and its codes.
    """
    kind, device = factor.passing.dtype, factor.passing.device
    rows, columns = weight.shape
    source = weight.to(kind).index_select(1, factor.order)
    missing = torch.empty_like(source)  # what each was less what it became
    groups = _groups(factor.order, grid)
    scales = torch.ones(rows, columns // grid.group_size, dtype=kind, device=device)
    zeros = torch.full_like(scales, grid.middle)
    known = grid.static or grid.group_size > COLUMN_BLOCK
    if known and moved is not None:
        source += _solve(factor.passing, moved, upper=True)
        moved = None
    if known:
        _find_all(source, factor, grid, groups, scales, zeros)
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=device)
    losses = torch.zeros(rows, dtype=torch.float64, device=device)
    solve = rounding_cpu.round_block if device.type == "cpu" else rounding.round_block
    for start in range(0, columns, COLUMN_BLOCK):
        stop = min(start + COLUMN_BLOCK, columns)
        here = slice(start, stop)
        passed = missing[:, :start] @ factor.passing[:start, here]
        if moved is not None:
            passed += moved[:, here]
        own = factor.passing[here, here]
        within = _solve(own, torch.eye(*own.shape, dtype=kind, device=device), upper=True)
        block = Block(
            torch.addmm(source[:, here], passed, within),
            within,
            factor.cost[here].contiguous(),
            groups[here].contiguous(),
            scales,
            zeros,
            known,
        )
        codes[:, here], errors, lost = solve(block, grid)
        losses += lost
        missing[:, here] = (errors - passed) @ within
    back = torch.argsort(factor.order)
    return Quantized(
        codes[:, back], scales, zeros.to(torch.uint8), groups[back].int(), float(losses.sum())
    )


def _solve(triangle: Tensor, wanted: Tensor, *, upper: bool) -> Tensor:
    """``wanted`` times the inverse of a triangle with ones on its diagonal."""
    found: Tensor = torch.linalg.solve_triangular(
        triangle, wanted, upper=upper, left=False, unitriangular=True
    )
    return found


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
        own = weight[:, columns]
        found = rounding.find_scales(own, alone, factor.cost[columns], grid)
        scales[:, group], zeros[:, group] = found
