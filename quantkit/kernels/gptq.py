"""GPTQ: weights rounded column by column, each error made good by the columns still to come.

Frantar et al., arXiv 2210.17323, minimize ``(w - d) H (w - d)`` row by row, over ``d`` on a
grid, where ``H`` is the Hessian ``sum of x x^T`` over a module's inputs ``x``. The paper
factors ``H^-1 = U^T U`` and passes the error of each column on to all later ones, ``-error *
U_jk / U_jj``; what stays of it costs ``(error / U_jj)^2``. Here ``H = R R^T`` is factored, with
``R = U^-1`` upper triangular, and only blocks on the diagonal are inverted. What the columns
before a block lack, ``d``, moves the block by ``d R`` (Chen et al., arXiv 2507.18553, on Babai's
nearest plane); inside the block errors are passed on as in the paper, with the inverse of that
block of ``R`` as ``U``. The integers are the paper's. What differs from it:

* one factor serves all modules with the same input;
* dampening grows until the factorization succeeds;
* an input that was always zero leaves its column rounded to nearest, where the paper's code
  zeroes the column;
* scales may be searched (:func:`rounding.find_scales`), columns ordered by their diagonal
  *inside* their groups (``grouped``), and weights moved beforehand towards what the
  unquantized model gives (:func:`make_good`). docs/gptq.md has what each bought.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from quantkit.kernels import rounding, rounding_cpu
from quantkit.kernels.grid import Grid
from quantkit.kernels.hessian import Factor
from quantkit.kernels.rounding import Block

#: Columns between two large products; a multiple of every group size but the whole row.
COLUMN_BLOCK = 128

#: Codes uint8 (rows, n), errors (rows, n), losses (rows,).
Rounded = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Quantized:
    """A weight (rows, columns) as integers, columns in the source's order.

    ``codes``: uint8 (rows, columns). ``scales``: (rows, groups), each exactly a float16.
    ``zero_points``: uint8 (rows, groups). ``g_idx``: int32 (columns,), each column's group.
    ``loss``: the squared error, weighted by the dampened Hessian, summed over rows.
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


def make_good(lacking: Tensor, factor: Factor, share: float) -> Tensor:
    """How far a weight's columns move, in visiting order, to make good what its outputs lack.

    ``lacking`` (rows, columns) is the sum of ``(y - y~) x^T`` over inputs ``x``, for wanted
    outputs ``y`` and present ones ``y~``. The least-squares answer is to add ``lacking H^-1`` to
    the weight; only ``share`` of it is taken, as calibration inputs are few (GPTAQ, arXiv
    2504.02692, has the idea, and weighs it alike). What :func:`quantize` takes is that times
    ``passing``: how far a column moves if those before it stay as they were. Zeros where the
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
    solve = _rounding(device, kind)
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


def _rounding(device: torch.device, kind: torch.dtype) -> Callable[[Block, Grid], Rounded]:
    if device.type == "cpu":
        return rounding_cpu.round_block
    if kind != torch.float32 or find_spec("triton") is None:
        return rounding.round_block
    from quantkit.kernels import rounding_cuda  # imports Triton, which is not everywhere

    return rounding_cuda.round_block


def _solve(triangle: Tensor, wanted: Tensor, *, upper: bool) -> Tensor:
    """``wanted`` times the inverse of a triangle with ones on its diagonal."""
    found: Tensor = torch.linalg.solve_triangular(
        triangle, wanted, upper=upper, left=False, unitriangular=True
    )
    return found


def _groups(order: Tensor, grid: Grid) -> Tensor:
    """The group of each column, in visiting order: the one it lies in.

    Where that order tears groups apart, columns visited one after another make new ones, unless
    scales are static.
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
