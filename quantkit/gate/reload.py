"""Level ``reload``: transformers opens the folder, and its weights are the source's.

Quantized weights are decoded by the library's own code, never by quantkit's, and
compared with the source module by module; all others must be equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantkit.gate.models import Reloaded
from quantkit.gate.report import Failure, Level, judged
from quantkit.recipe import GateSection

#: The furthest that a decoded element may lie from its source, in units of its block's (or
#: row's) largest magnitude: half the widest gap between codes, with room for rounding. It
#: catches one bad block among thousands.
_MAX_BLOCK_ERROR = {"nf4": 0.20, "fp4": 0.22, "int8": 0.01}

#: Where the absmax is quantized too, a small one beside large ones loses more; a block that
#: is zeroed or doubled is off by 1 even so.
_MAX_NESTED_BLOCK_ERROR = 0.5


@dataclass(frozen=True)
class _Error:
    """How far one parameter is from its source. ``block`` in units of its bound."""

    relative: float
    block: float = 0.0
    table: bool = True


def check_reload(reloaded: Reloaded, reference: Any, limits: GateSection) -> Level:
    """The loading report is empty, and every weight is what was meant."""
    failures = list(_loading_report(reloaded))
    with torch.inference_mode():
        errors = _weight_errors(reloaded.model, reference)
    quantized = {name: error for name, error in errors.items() if error is not None}
    failures += [
        Failure("reload", "weight", "differs from the source", "equal", name)
        for name, error in errors.items()
        if error is None
    ]
    failures += [
        Failure("reload", "quant_map", "another table", "the library's", name)
        for name, error in quantized.items()
        if not error.table
    ]
    worst = max(quantized, key=lambda name: quantized[name].relative, default="")
    worst_block = max(quantized, key=lambda name: quantized[name].block, default="")
    if worst and not quantized[worst].relative <= limits.max_weight_error:
        value = quantized[worst].relative
        failures.append(Failure("reload", "weight error", value, limits.max_weight_error, worst))
    if worst_block and not quantized[worst_block].block <= 1:
        value = quantized[worst_block].block
        failures.append(Failure("reload", "block error, of its bound", value, 1.0, worst_block))
    measures = {
        "modules_compared": len(errors),
        "modules_quantized": sum(error.relative > 0 for error in quantized.values()),
        "max_weight_error": quantized[worst].relative if worst else 0.0,
        "worst_module": worst if worst and quantized[worst].relative else "",
    }
    return judged("reload", measures, failures)


def _loading_report(reloaded: Reloaded) -> Iterator[Failure]:
    for kind in ("missing", "unexpected", "mismatched"):
        names = getattr(reloaded, kind)
        if names:
            yield Failure("reload", f"{kind} weights", str(len(names)), "0", names[0])


def _weight_errors(saved: Any, reference: Any) -> dict[str, _Error | None]:
    """By parameter; ``None`` for one that should be equal and is not."""
    from transformers.pytorch_utils import Conv1D

    modules = dict(saved.named_modules())
    others = dict(saved.named_parameters())
    errors: dict[str, _Error | None] = {}
    for name, wanted in reference.named_parameters():
        module_name, _, leaf = name.rpartition(".")
        decoded = _decode(modules.get(module_name)) if leaf == "weight" else None
        if decoded is not None:
            transposed = isinstance(reference.get_submodule(module_name), Conv1D)
            errors[name] = _error(decoded, wanted.T if transposed else wanted)
        else:
            got = others.get(name)
            errors[name] = _Error(0.0) if got is not None and _same(got, wanted) else None
    return errors


@dataclass(frozen=True)
class _Decoded:
    """A quantized weight, float32 (out, in), as the library decodes it."""

    weight: Tensor
    block_size: int
    bound: float
    table: bool


def _decode(module: Any) -> _Decoded | None:
    """``None`` for a module that is not quantized."""
    from bitsandbytes import functional, nn

    if isinstance(module, nn.Linear4bit):
        state = getattr(module.weight, "quant_state", None)
        if state is None:
            return None
        weight = functional.dequantize_4bit(module.weight.data, state).float()
        code = functional.get_4bit_type(state.quant_type, device=state.code.device)
        bound = _MAX_NESTED_BLOCK_ERROR if state.nested else _MAX_BLOCK_ERROR[state.quant_type]
        return _Decoded(weight, state.blocksize, bound, torch.equal(state.code, code))
    if isinstance(module, nn.Linear8bitLt):
        scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        weight = functional.int8_vectorwise_dequant(module.weight.data, scales)
        return _Decoded(weight, weight.shape[1], _MAX_BLOCK_ERROR["int8"], True)
    return None


def _error(decoded: _Decoded, wanted: Tensor) -> _Error:
    """Over the whole weight, and over its worst block; infinite for another shape."""
    if decoded.weight.shape != wanted.shape:
        return _Error(float("inf"), float("inf"), decoded.table)
    source = wanted.float()
    difference = decoded.weight.to(source.device) - source
    size = torch.linalg.vector_norm(source)
    relative = torch.linalg.vector_norm(difference) / size if size else difference.abs().amax()
    largest, error = (_block_peaks(each, decoded.block_size) for each in (source, difference))
    # a block of zeros decodes to zeros: any error there is infinite
    in_blocks = torch.where(error > 0, error / largest, error).amax()
    return _Error(float(relative), float(in_blocks) / decoded.bound, decoded.table)


def _block_peaks(values: Tensor, block_size: int) -> Tensor:
    """The largest magnitude of each run of ``block_size`` elements, row-major."""
    flat = values.reshape(-1).abs()
    short = -flat.numel() % block_size
    return torch.nn.functional.pad(flat, (0, short)).reshape(-1, block_size).amax(-1)


def _same(got: Tensor, wanted: Tensor) -> bool:
    return got.shape == wanted.shape and torch.equal(got.to(wanted.device), wanted.to(got.dtype))
