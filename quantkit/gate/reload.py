"""Level ``reload``: transformers opens the folder, and its weights are the source's.

Quantized weights are decoded by the library's own code (or, for formats whose library is
not here, by :mod:`quantkit.gate.decoding`), never by the writer's, and compared with the
source module by module; all others must be equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log10
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.gate.decoding import DECODERS
from quantkit.gate.models import LoadingReport
from quantkit.gate.opened import Opened
from quantkit.gate.report import Failure, Level, judged
from quantkit.gate.stated import overridden
from quantkit.recipe import GateSection

#: The furthest that a decoded element may lie from its source, in units of its block's (or
#: row's) largest magnitude: half the widest gap between codes, with room for rounding. It
#: catches one bad block among thousands.
_MAX_BLOCK_ERROR = {"nf4": 0.20, "fp4": 0.22, "int8": 0.01}

#: Where the absmax is quantized too, a small one beside large ones loses more; a block that
#: is zeroed or doubled is off by 1 even so.
_MAX_NESTED_BLOCK_ERROR = 0.5

#: How many elements are cast for a comparison at a time.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class WeightError:
    """How far one parameter is from its source.

    ``relative`` is of a whole weight, ``block`` of its worst block, in units of its bound.
    ``table`` says whether its code table is the library's. ``equal`` is ``None`` for a quantized
    one; for any other whether it is the source's.
    """

    name: str
    relative: float = 0.0
    block: float = 0.0
    table: bool = True
    equal: bool | None = None

    @property
    def fits(self) -> bool:
        """Whether anything but the recipe's own limit speaks against it."""
        return self.equal is not False and self.table and self.block <= 1


def check_reload(
    report: LoadingReport, errors: Sequence[WeightError], limits: GateSection
) -> Level:
    """The loading report is empty, and every weight is what was meant."""
    failures = list(_loading_report(report))
    quantized = [each for each in errors if each.equal is None]
    failures += [
        Failure("reload", "weight", "differs from the source", "equal", each.name)
        for each in errors
        if each.equal is False
    ]
    failures += [
        Failure("reload", "quant_map", "another table", "the library's", each.name)
        for each in quantized
        if not each.table
    ]
    worst = max(quantized, key=lambda each: each.relative, default=WeightError(""))
    worst_block = max(quantized, key=lambda each: each.block, default=WeightError(""))
    if not worst.relative <= limits.max_weight_error:
        bound = limits.max_weight_error
        failures.append(Failure("reload", "weight error", worst.relative, bound, worst.name))
    if not worst_block.block <= 1:
        value = worst_block.block
        failures.append(
            Failure("reload", "block error, of its bound", value, 1.0, worst_block.name)
        )
    measures = {
        "modules_compared": len(errors),
        "modules_quantized": len(quantized),
        "max_weight_error": worst.relative,
        "min_snr_db": snr_db(worst.relative) if worst.relative else None,
        "worst_module": worst.name if worst.relative else "",
        "modules": [
            {"name": each.name, "error": each.relative, "snr_db": snr_db(each.relative)}
            for each in quantized
        ],
    }
    return judged("reload", measures, failures)


def snr_db(relative: float) -> float:
    """Signal-to-noise in decibels of a relative RMS error."""
    return -20 * log10(relative) if relative > 0 else inf


def _loading_report(report: LoadingReport) -> Iterator[Failure]:
    for kind in ("missing", "unexpected", "mismatched"):
        names = getattr(report, kind)
        if names:
            yield Failure("reload", f"{kind} weights", str(len(names)), "0", names[0])


@torch.no_grad()
def weight_errors(
    saved: nn.Module, reference: nn.Module, prefix: str, opened: Opened
) -> list[WeightError]:
    """Every parameter of a piece of the source that is in memory, against the saved piece."""
    errors = []
    modules = dict(saved.named_modules())
    # GPTQModel keeps a module's bias as a buffer
    others = dict(saved.named_buffers()) | dict(saved.named_parameters(remove_duplicate=False))
    stored = opened.architecture.parameters
    buffers = (each for each in reference.named_buffers() if f"{prefix}{each[0]}" in stored)
    for local, wanted in (*reference.named_parameters(), *buffers):
        if wanted.is_meta:
            continue
        name, got = f"{prefix}{local}", others.get(local)
        decoded = _decode(name, modules.get(local.rpartition(".")[0]), got, opened)
        if decoded is not None:
            transposed = decoded.transposed
            errors.append(_error(name, decoded, wanted.T if transposed else wanted))
        else:
            equal = got is not None and _same(got, wanted)
            errors.append(WeightError(name, equal=equal))
    return errors


@dataclass(frozen=True)
class _Decoded:
    """A quantized weight, float32 (out, in), as the library decodes it.

    ``bound`` is the most that a block may err. With ``peaks`` that is its largest error, as a
    share of its largest element; else its error's norm, as a share of its own norm.
    """

    weight: Tensor
    block_size: int
    bound: float
    table: bool = True
    peaks: bool = True
    transposed: bool = False


def _decode(name: str, module: Any, got: Tensor | None, opened: Opened) -> _Decoded | None:
    """``None`` for a parameter that is not quantized."""
    if not name.endswith(".weight") or not opened.is_quantized(name):
        return None
    transposed = opened.is_transposed(name)
    if opened.method == "bitsandbytes":
        found = _decode_library(module)
        return None if found is None else _Decoded(*found, transposed=transposed)
    weight = _decoded_weight(name, module, got, opened, transposed=transposed)
    settings, _ = overridden(opened, name)
    decoder = DECODERS[opened.method]
    bits, size = map(int, decoder.grid(settings))
    bound = decoder.bounds.get(bits, inf)
    in_blocks = size if 0 < size < weight.shape[1] else weight.shape[1]
    return _Decoded(weight, in_blocks, bound, peaks=False, transposed=transposed)


def _decoded_weight(
    name: str, module: Any, got: Tensor | None, opened: Opened, *, transposed: bool
) -> Tensor:
    """Float32 (out, in): as GPTQModel's own module decodes it, else as it was decoded for a
    plain one, else, where a library's module has neither, decoded here."""
    if hasattr(module, "dequantize_weight"):
        own: Tensor = module.dequantize_weight()
        return own.T.float()
    plain = opened.load([name], "float32")[name] if got is None else got.float()
    return plain.T if transposed else plain


def _decode_library(module: Any) -> tuple[Tensor, int, float, bool] | None:
    from bitsandbytes import functional
    from bitsandbytes import nn as library

    if isinstance(module, library.Linear4bit):
        state = getattr(module.weight, "quant_state", None)
        if state is None:
            return None
        weight = functional.dequantize_4bit(module.weight.data, state).float()
        code = functional.get_4bit_type(state.quant_type, device=state.code.device)
        bound = _MAX_NESTED_BLOCK_ERROR if state.nested else _MAX_BLOCK_ERROR[state.quant_type]
        # the library makes its table in torch's default data type, which a caller may have set
        return weight, state.blocksize, bound, torch.equal(state.code.to(code.dtype), code)
    if isinstance(module, library.Linear8bitLt):
        scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        weight = functional.int8_vectorwise_dequant(module.weight.data, scales)
        return weight, weight.shape[1], _MAX_BLOCK_ERROR["int8"], True
    return None


def _error(name: str, decoded: _Decoded, wanted: Tensor) -> WeightError:
    """Over the whole weight, and over its worst block; infinite for another shape."""
    if decoded.weight.shape != wanted.shape:
        return WeightError(name, inf, inf, decoded.table)
    source = wanted.float()
    difference = decoded.weight.to(source.device) - source
    size = torch.linalg.vector_norm(source)
    relative = torch.linalg.vector_norm(difference) / size if size else difference.abs().amax()
    measure = _block_peaks if decoded.peaks else _block_norms
    largest, error = (measure(each, decoded.block_size) for each in (source, difference))
    # a block of zeros decodes to zeros: any error there is infinite
    in_blocks = torch.where(error > 0, error / largest, error).amax()
    relative, in_blocks = (
        torch.nan_to_num(each, nan=inf, posinf=inf) for each in (relative, in_blocks)
    )
    return WeightError(name, float(relative), float(in_blocks) / decoded.bound, decoded.table)


def _blocks(values: Tensor, block_size: int) -> Tensor:
    """Runs of ``block_size`` elements, row-major, the last one padded with zeros."""
    flat = values.reshape(-1)
    if short := -flat.numel() % block_size:
        flat = nn.functional.pad(flat, (0, short))
    return flat.reshape(-1, block_size)


def _block_peaks(values: Tensor, block_size: int) -> Tensor:
    """The largest magnitude of each block."""
    peaks: Tensor = torch.linalg.vector_norm(_blocks(values, block_size), ord=inf, dim=-1)
    return peaks


def _block_norms(values: Tensor, block_size: int) -> Tensor:
    """The norm of each block."""
    norms: Tensor = torch.linalg.vector_norm(_blocks(values, block_size), dim=-1)
    return norms


def _same(got: Tensor, wanted: Tensor) -> bool:
    """Whether both are equal, some elements at a time: an embedding's copy would be large."""
    if got.shape != wanted.shape:
        return False
    parts = zip(*(torch.split(each.reshape(-1), _AT_ONCE) for each in (got, wanted)), strict=True)
    return all(torch.equal(a.to(b.device), b.to(a.dtype)) for a, b in parts)
