"""bitsandbytes' serialized layout, as transformers reads and writes it.

Four bits (``nf4``, ``fp4``), for a weight ``W`` of shape (out, in):

    W                                   packed, two indices a byte, shape (out*in/2, 1)
    W.absmax                            float32 (blocks,), or uint8 codes of it (double_quant)
    W.quant_map                         float32 (16,)
    W.nested_absmax, W.nested_quant_map double_quant only: float32 (blocks/256,), (256,)
    W.quant_state.bitsandbytes__nf4     a JSON text as uint8

Eight bits (``int8``): ``W`` int8 (out, in), ``SCB`` float32 (out,), the rows' absmax, and
``weight_format``, a uint8 zero ("row").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod
from types import ModuleType
from typing import Any

import numpy as np

from quantkit.elements import Array
from quantkit.errors import SourceError
from quantkit.formats.base import Encoder, Kept, Write, refuse_nonfinite
from quantkit.kernels import fourbit, int8, nested
from quantkit.kernels.casting import cast
from quantkit.methods import BnbMethod
from quantkit.types import ITEM_BYTES, OutputTensor

#: The longest text of a float32 printed as a Python float, e.g. -1.1754943508222875e-38.
_LONGEST_FLOAT = 24


@dataclass(frozen=True)
class Bnb:
    """NF4, FP4 or LLM.int8 by ``method.quant_type``."""

    method: BnbMethod

    calibrated = False

    def unfit(self, weight: str, shape: tuple[int, int], kind: str) -> None:
        return None

    def unit(self, shape: tuple[int, int]) -> int:
        return shape[1] if self.method.quant_type == "int8" else self.method.block_size

    def outputs(self, weight: str, shape: tuple[int, int], dtype: str) -> tuple[OutputTensor, ...]:
        if self.method.quant_type == "int8":
            return _int8_outputs(weight, shape)
        return _four_bit_outputs(self.method, weight, shape, dtype)

    def encoder(self, weight: str, shape: tuple[int, int], dtype: str, device: str) -> Encoder:
        if self.method.quant_type == "int8":
            return _Int8Encoder(weight, shape, device)
        return _FourBitEncoder(self.method, weight, shape, dtype, device)

    def quantization_config(self, kept: Kept, quantized: Sequence[str]) -> dict[str, Any]:
        method = self.method
        four_bit = method.quant_type != "int8"
        # naming any module replaces the loaders' own rule, so what that keeps is named as well
        skipped = sorted({*kept.rule, *method.ignore}) if method.ignore else None
        return {
            "_load_in_4bit": four_bit,
            "_load_in_8bit": not four_bit,
            # transformers writes its own defaults for 4-bit settings beside int8
            "bnb_4bit_compute_dtype": method.compute_dtype if four_bit else "float32",
            "bnb_4bit_quant_storage": method.quant_storage if four_bit else "uint8",
            "bnb_4bit_quant_type": method.quant_type if four_bit else "fp4",
            "bnb_4bit_use_double_quant": method.double_quant and four_bit,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": skipped,
            "llm_int8_threshold": method.llm_int8_threshold,
            "load_in_4bit": four_bit,
            "load_in_8bit": not four_bit,
            "quant_method": "bitsandbytes",
        }


def _four_bit_outputs(
    method: BnbMethod, weight: str, shape: tuple[int, int], dtype: str
) -> tuple[OutputTensor, ...]:
    count = prod(shape)
    blocks = ceil(count / method.block_size)
    packed = ceil(count / 2)
    storage = method.quant_storage
    if packed % ITEM_BYTES[storage]:
        raise SourceError(
            f"{weight}: {shape[0]} x {shape[1]} packs into {packed} bytes, no multiple of the "
            f"{ITEM_BYTES[storage]} of a {storage}; --set method.quant_storage=uint8"
        )
    state = len(_quant_state(method, shape, dtype, offset=None))
    found = [
        OutputTensor(weight, storage, (packed // ITEM_BYTES[storage], 1), packed),
        OutputTensor(f"{weight}.quant_map", "float32", (16,), 64),
        OutputTensor(
            _state_name(method, weight),
            "uint8",
            (state,),
            state + (_LONGEST_FLOAT if method.double_quant else 0),
            variable=method.double_quant,
        ),
    ]
    if method.double_quant:
        nested_blocks = ceil(blocks / nested.NESTED_BLOCK_SIZE)
        found += [
            OutputTensor(f"{weight}.absmax", "uint8", (blocks,), blocks),
            OutputTensor(f"{weight}.nested_absmax", "float32", (nested_blocks,), 4 * nested_blocks),
            OutputTensor(f"{weight}.nested_quant_map", "float32", (256,), 1024),
        ]
    else:
        found.append(OutputTensor(f"{weight}.absmax", "float32", (blocks,), 4 * blocks))
    return tuple(found)


def _state_name(method: BnbMethod, weight: str) -> str:
    return f"{weight}.quant_state.bitsandbytes__{method.quant_type}"


def _quant_state(
    method: BnbMethod, shape: tuple[int, int], dtype: str, offset: float | None
) -> bytes:
    """bitsandbytes' JSON, keys in its order. An ``offset`` not known yet is left blank: that text
    is for its length alone."""
    state: dict[str, Any] = {
        "quant_type": method.quant_type,
        "blocksize": method.block_size,
        "dtype": dtype,
        "shape": list(shape),
    }
    if method.double_quant:
        state |= {
            "nested_blocksize": nested.NESTED_BLOCK_SIZE,
            "nested_dtype": "float32",
            "nested_offset": offset,
        }
    text = json.dumps(state)
    return (text if offset is not None else text.replace("null", "")).encode()


class _FourBitEncoder:
    """Packs pieces as they come; holds the absmax back where double quantization needs them all."""

    def __init__(
        self, method: BnbMethod, weight: str, shape: tuple[int, int], dtype: str, device: str
    ) -> None:
        self._method, self._weight, self._shape, self._dtype = method, weight, shape, dtype
        kernels = _cuda() if device == "cuda" else None
        self._kernel = kernels.quantize_4bit if kernels else fourbit.quantize_4bit
        self._nested = kernels.quantize_absmax if kernels else nested.quantize_absmax
        self._packed_at = 0
        self._absmax_at = 0
        self._held: list[Array] = []

    def feed(self, piece: Array) -> Iterator[Write]:
        made = self._kernel(piece, self._quant_type, self._method.block_size)
        refuse_nonfinite(self._weight, made.nonfinite)
        yield Write(self._weight, self._packed_at, made.packed)
        self._packed_at += made.packed.size
        if self._method.double_quant:
            self._held.append(made.absmax)
        else:
            yield Write(f"{self._weight}.absmax", self._absmax_at, made.absmax)
            self._absmax_at += made.absmax.nbytes

    def finish(self) -> Iterator[Write]:
        code = fourbit.NF4_CODE if self._quant_type == "nf4" else fourbit.FP4_CODE
        yield Write(f"{self._weight}.quant_map", 0, code)
        offset = None
        if self._method.double_quant:
            made = self._nested(np.concatenate(self._held))
            offset = float(made.offset)
            yield Write(f"{self._weight}.absmax", 0, made.codes)
            yield Write(f"{self._weight}.nested_absmax", 0, made.nested_absmax)
            yield Write(f"{self._weight}.nested_quant_map", 0, nested.dynamic_map())
        state = _quant_state(self._method, self._shape, self._dtype, offset)
        name = _state_name(self._method, self._weight)
        yield Write(name, 0, np.frombuffer(state, np.uint8))

    @property
    def _quant_type(self) -> fourbit.QuantType:
        return "nf4" if self._method.quant_type == "nf4" else "fp4"


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def _int8_outputs(weight: str, shape: tuple[int, int]) -> tuple[OutputTensor, ...]:
    module = _module(weight)
    return (
        OutputTensor(weight, "int8", shape, prod(shape)),
        OutputTensor(f"{module}.SCB", "float32", (shape[0],), 4 * shape[0]),
        OutputTensor(f"{module}.weight_format", "uint8", (), 1),
    )


class _Int8Encoder:
    """Whole rows at a time, each with a scale of its own. bitsandbytes casts to float16 first."""

    def __init__(self, weight: str, shape: tuple[int, int], device: str) -> None:
        self._weight, self._columns = weight, shape[1]
        self._kernel = _cuda().quantize_int8 if device == "cuda" else int8.quantize_int8
        self._row = 0

    def feed(self, piece: Array) -> Iterator[Write]:
        made = self._kernel(cast(piece, "float16").reshape(-1, self._columns))
        advice = "int8 is made from float16, whatever method.dtype; leave it out by method.ignore"
        refuse_nonfinite(self._weight, made.nonfinite, advice)
        yield Write(self._weight, self._row * self._columns, made.rows)
        yield Write(f"{_module(self._weight)}.SCB", 4 * self._row, made.absmax)
        self._row += made.rows.shape[0]

    def finish(self) -> Iterator[Write]:
        yield Write(f"{_module(self._weight)}.weight_format", 0, np.zeros((), np.uint8))


def _cuda() -> ModuleType:
    from quantkit.kernels import cuda  # imports torch, which a CPU's formats do without

    return cuda
