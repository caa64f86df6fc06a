"""One input's Hessian: gathered, put in order, dampened, and factored.

``H`` is the sum of ``x x^T`` over a module's inputs ``x``. Its factor, upper triangular ``R`` with
``H = R R^T``, is what :mod:`gptq` rounds by, under the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: Below this many columns a symmetric product is computed whole: a device is idle in small ones.
_LEAF = {"cpu": 128, "cuda": 2048}

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


def accumulate(hessian: Tensor, inputs: Tensor) -> None:
    """Add ``inputs^T inputs`` to ``hessian``'s upper triangle; ``inputs`` (tokens, columns).

    By halves, so that little more than half of the products are computed, and without a
    second copy of the inputs. Both float32.
    """
    columns = hessian.shape[0]
    if columns <= _LEAF[hessian.device.type]:
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
    """Put ``R`` with ``R R^T = matrix`` in place of the upper triangle; false if there is none.

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
