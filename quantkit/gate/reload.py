"""Level ``reload``: transformers opens the folder, and its weights are the source's.

Quantized weights are decoded by the library's own code, never by quantkit's, and
compared with the source module by module; all others must be equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from quantkit.gate.models import Reloaded
from quantkit.gate.report import Failure, Level, judged
from quantkit.recipe import GateSection


def check_reload(reloaded: Reloaded, reference: Any, limits: GateSection) -> Level:
    """The loading report is empty, and every weight is what was meant."""
    failures = list(_loading_report(reloaded))
    with torch.inference_mode():
        errors = _weight_errors(reloaded.model, reference)
    failures += [
        Failure("reload", "weight", "differs from the source", "equal", name)
        for name, error in errors.items()
        if error is None
    ]
    relative = {name: error for name, error in errors.items() if error}
    worst = max(relative, key=lambda name: relative[name], default="")
    if worst and not relative[worst] <= limits.max_weight_error:
        failures.append(
            Failure("reload", "weight error", relative[worst], limits.max_weight_error, worst)
        )
    measures = {
        "modules_compared": len(errors),
        "modules_quantized": len(relative),
        "max_weight_error": relative.get(worst, 0.0),
        "worst_module": worst,
    }
    return judged("reload", measures, failures)


def _loading_report(reloaded: Reloaded) -> Iterator[Failure]:
    for kind in ("missing", "unexpected", "mismatched"):
        names = getattr(reloaded, kind)
        if names:
            yield Failure("reload", f"{kind} weights", str(len(names)), "0", names[0])


def _weight_errors(saved: Any, reference: Any) -> dict[str, float | None]:
    """By parameter: 0 if equal, the relative RMS error if quantized, ``None`` if it differs."""
    from transformers.pytorch_utils import Conv1D

    modules = dict(saved.named_modules())
    others = dict(saved.named_parameters())
    errors: dict[str, float | None] = {}
    for name, wanted in reference.named_parameters():
        module_name, _, leaf = name.rpartition(".")
        decoded = _decoded(modules.get(module_name)) if leaf == "weight" else None
        if decoded is not None:
            transposed = isinstance(reference.get_submodule(module_name), Conv1D)
            target = wanted.T if transposed else wanted
            errors[name] = _relative_error(decoded.to(wanted.device), target)
        else:
            got = others.get(name)
            errors[name] = 0.0 if got is not None and _same(got, wanted) else None
    return errors


def _decoded(module: Any) -> Tensor | None:
    """A quantized module's weight as float32 (out, in), by bitsandbytes; else ``None``."""
    from bitsandbytes import functional, nn

    if isinstance(module, nn.Linear4bit):
        weight = module.weight
        if getattr(weight, "quant_state", None) is None:
            return None
        decoded: Tensor = functional.dequantize_4bit(weight.data, weight.quant_state).float()
        return decoded
    if isinstance(module, nn.Linear8bitLt):
        scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        rows: Tensor = functional.int8_vectorwise_dequant(module.weight.data, scales)
        return rows
    return None


def _relative_error(got: Tensor, wanted: Tensor) -> float:
    """RMS of the difference over the RMS of the source; infinite for another shape."""
    if got.shape != wanted.shape:
        return float("inf")
    size = torch.linalg.vector_norm(wanted.float())
    difference = torch.linalg.vector_norm(got.float() - wanted.float())
    if size == 0:
        return float(difference != 0)
    return float(difference / size)


def _same(got: Tensor, wanted: Tensor) -> bool:
    return got.shape == wanted.shape and torch.equal(got.to(wanted.device), wanted.to(got.dtype))
