"""NF4 and FP4: blocks of elements that share one absmax, four bits an element.

NF4 is the 4-bit NormalFloat of QLoRA (Dettmers et al., arXiv 2305.14314): 16 quantiles
of the normal distribution, scaled to [-1, 1]. FP4 has a sign, two exponent bits and one
mantissa bit, scaled to [-1, 1] too. An element is divided by its block's largest
magnitude (``absmax``) and becomes the index of the nearest code; two indices share a
byte, the earlier one in the high nibble.

Bit-identical to bitsandbytes 0.50.2 on CPU, which fixes details that look arbitrary:
a full block is multiplied by the float32 reciprocal of its absmax, while the block cut
short at the end is divided by it, and stores an absmax of at least 1e-38.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from quantkit.compiled import Loop
from quantkit.elements import Array, bits

QuantType = Literal["nf4", "fp4"]

#: The values of NF4's indices 0 to 15; shape (16,), float32, ascending.
# fmt: off
NF4_CODE: npt.NDArray[np.float32] = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], dtype=np.float32)
# fmt: on

_FP4_MAGNITUDES = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
#: The values of FP4's indices 0 to 15; shape (16,), float32, in the order of their bit
#: patterns. Index 8 stands for a second, positive zero.
FP4_CODE: npt.NDArray[np.float32] = np.array(
    _FP4_MAGNITUDES + [0.0 - magnitude for magnitude in _FP4_MAGNITUDES], dtype=np.float32
) / np.float32(max(_FP4_MAGNITUDES))

_CODES: dict[str, npt.NDArray[np.float32]] = {"nf4": NF4_CODE, "fp4": FP4_CODE}

#: The indices of each type by ascending value, FP4's two zeros as 0, then 8.
_ORDER: dict[str, list[int]] = {
    "nf4": list(range(16)),
    "fp4": [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
}

#: How the loop reads an element's bits, by dtype.
_KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}

#: Elements worked on at a time, a multiple of the block sizes up to it, or one block where that
#: is larger: few enough that the scratch arrays, 8 bytes for each, stay in the first-level cache.
_TILE = 2048

_QUANTIZE, _DEQUANTIZE = Loop("fourbit", "quantize"), Loop("fourbit", "dequantize")

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class FourBit:
    """``n`` elements as four-bit indices.

    ``packed``: uint8, shape (ceil(n / 2),), the earlier element in the high nibble.
    ``absmax``: float32, shape (ceil(n / block_size),), each block's largest magnitude.
    ``nonfinite``: how many of the elements were NaN or infinite. If any were, their
    blocks hold nothing of use.
    """

    packed: npt.NDArray[np.uint8]
    absmax: npt.NDArray[np.float32]
    nonfinite: int


def quantize_4bit(weight: Array, quant_type: QuantType, block_size: int) -> FourBit:
    """Quantize ``weight``, 1-D and contiguous float16, bfloat16 or float32 of any length."""
    _check_quant(quant_type, block_size)
    kind = _KINDS.get(weight.dtype.name) if weight.dtype.isnative else None
    if kind is None or weight.ndim != 1 or not weight.flags.c_contiguous:
        raise ValueError(f"weight must be 1-D contiguous floats, got {_describe(weight)}")
    count = weight.size
    packed = np.empty(-(-count // 2), np.uint8)
    absmax = np.empty(-(-count // block_size), np.float32)
    tables = _decision_tables(quant_type)
    tile = max(_TILE, block_size)
    scratch = np.empty(tile, np.float32), np.empty(tile, np.int32)
    nonfinite = _QUANTIZE(bits(weight), kind, block_size, tables, scratch, (packed, absmax))
    return FourBit(packed, absmax, nonfinite)


def dequantize_4bit(
    packed: Array, absmax: Array, quant_type: QuantType, block_size: int, count: int
) -> npt.NDArray[np.float32]:
    """The float32 values, shape (count,), of the first ``count`` elements in ``packed``.

    ``packed`` and ``absmax`` are as :class:`FourBit` describes them.
    """
    _check_quant(quant_type, block_size)
    _check_part(packed, -(-count // 2), np.uint8, "packed")
    _check_part(absmax, -(-count // block_size), np.float32, "absmax")
    values = np.empty(count, np.float32)
    _DEQUANTIZE(packed, absmax, _CODES[quant_type], block_size, values)
    return values


def _check_quant(quant_type: str, block_size: int) -> None:
    if quant_type not in _CODES:
        raise ValueError(f"quant_type must be one of {sorted(_CODES)}, got {quant_type!r}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be one of {BLOCK_SIZES}, got {block_size}")


def _check_part(given: Array, count: int, dtype: type[np.generic], name: str) -> None:
    if given.dtype != dtype or given.shape != (count,) or not given.flags.c_contiguous:
        raise ValueError(
            f"{name} must be contiguous {dtype.__name__} of shape ({count},), "
            f"got {_describe(given)}"
        )


def _describe(values: Array) -> str:
    kind = "contiguous" if values.flags.c_contiguous else "strided"
    return f"{kind} {values.dtype.name} of shape {values.shape}"


@cache
def _decision_tables(quant_type: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """The tables by which a value scaled to [-1, 1] becomes the index of its code.

    Returns the 15 bounds, midway between neighbouring codes, ascending; and for each byte of two
    codes' ranks the byte of their indices, empty where a code's rank is its index.
    """
    order = np.array(_ORDER[quant_type], np.uint8)
    ascending = _CODES[quant_type][order]
    bounds = (ascending[:-1] + ascending[1:]) / np.float32(2)
    if np.array_equal(order, np.arange(16)):
        return bounds, np.empty(0, np.uint8)
    return bounds, np.add.outer(order << 4, order).reshape(-1)
