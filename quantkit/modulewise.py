"""How the modules of a calibrated model came out, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log10

from torch import Tensor

from quantkit.formats import Gptq
from quantkit.kernels.gptq import Quantized
from quantkit.kernels.hessian import Factor
from quantkit.methods import GptqMethod
from quantkit.plans import TensorPlan


@dataclass(frozen=True)
class ModuleReport:
    """How one module came out.

    ``loss`` is the squared error per output and token, weighted by the dampened Hessian,
    ``snr_db`` the weight's own signal to noise, ``None`` where there is no noise. ``note`` says
    what was out of the ordinary.
    """

    module: str
    bits: int
    group_size: int
    loss: float
    snr_db: float | None
    tokens: int
    damp_percent: float
    dead: int
    note: str


def notes(factor: Factor, tokens: int, columns: int, method: GptqMethod) -> Iterator[str]:
    """What was out of the ordinary."""
    if not tokens:
        yield "no window reached it: rounded to nearest"
    elif not factor.usable:
        yield "its Hessian is not finite or not positive definite: rounded to nearest"
    elif factor.damp_percent > method.damp_percent:
        yield f"dampened by {factor.damp_percent:g}, since less did not factor"
    if factor.dead:
        yield f"{factor.dead} inputs were always zero: their columns are rounded to nearest"
    if 0 < tokens < columns:
        yield f"fewer tokens ({tokens}) than input columns ({columns})"


def report_of(
    weight: Tensor,
    item: TensorPlan,
    form: Gptq,
    made: Quantized,
    decoded: Tensor,
    factor: Factor,
    tokens: int,
) -> ModuleReport:
    """What is told of a module whose ``weight`` (rows, columns) became ``made``, ``decoded``."""
    noise = float((weight - decoded).norm().square())
    signal = float(weight.norm().square())
    grid = form.grid(item.source.name, weight.shape[1])
    return ModuleReport(
        module=item.source.name.removesuffix(".weight"),
        bits=grid.bits,
        group_size=grid.group_size,
        loss=made.loss / max(1, tokens * weight.shape[0]),
        snr_db=10 * log10(signal / noise) if signal and noise else None,
        tokens=tokens,
        damp_percent=factor.damp_percent,
        dead=factor.dead,
        note="; ".join(notes(factor, tokens, weight.shape[1], form.method)),
    )
