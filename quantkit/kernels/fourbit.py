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
from typing import Literal

import numpy as np
import numpy.typing as npt
from numba import njit

from quantkit.elements import Array, bits
from quantkit.kernels.floats import float16_to_word

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

#: How the kernel reads an element's bits, by dtype.
_FLOAT32, _FLOAT16, _BFLOAT16 = 0, 1, 2
_KINDS = {"float32": _FLOAT32, "float16": _FLOAT16, "bfloat16": _BFLOAT16}

#: Elements worked on at a time: a multiple of every block size, small enough that the
#: scratch arrays stay in the first-level cache.
_TILE = 4096

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


def quantize_4bit(
    weight: Array,
    quant_type: QuantType,
    block_size: int,
    *,
    packed: Array | None = None,
    absmax: Array | None = None,
) -> FourBit:
    """Quantize ``weight``, 1-D and contiguous float16, bfloat16 or float32 of any length.

    ``packed`` and ``absmax``, if given, are written into and returned; they must have
    the dtype and shape that :class:`FourBit` names.
    """
    _check_quant(quant_type, block_size)
    kind = _KINDS.get(weight.dtype.name)
    if kind is None or weight.ndim != 1 or not weight.flags.c_contiguous:
        raise ValueError(f"weight must be 1-D contiguous floats, got {_describe(weight)}")
    count = weight.size
    packed = _buffer(packed, -(-count // 2), np.uint8, "packed")
    absmax = _buffer(absmax, -(-count // block_size), np.float32, "absmax")
    tables = _decision_tables(quant_type)
    nonfinite = _quantize(bits(weight), kind, block_size, tables, (packed, absmax))
    return FourBit(packed, absmax, int(nonfinite))


def dequantize_4bit(
    packed: Array, absmax: Array, quant_type: QuantType, block_size: int, count: int
) -> npt.NDArray[np.float32]:
    """The float32 values, shape (count,), of the first ``count`` elements in ``packed``.

    ``packed`` and ``absmax`` are as :class:`FourBit` describes them.
    """
    _check_quant(quant_type, block_size)
    packed = _buffer(packed, -(-count // 2), np.uint8, "packed")
    absmax = _buffer(absmax, -(-count // block_size), np.float32, "absmax")
    values = np.empty(count, np.float32)
    _dequantize(packed, absmax, _CODES[quant_type], block_size, values)
    return values


def _check_quant(quant_type: str, block_size: int) -> None:
    if quant_type not in _CODES:
        raise ValueError(f"quant_type must be one of {sorted(_CODES)}, got {quant_type!r}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be one of {BLOCK_SIZES}, got {block_size}")


def _buffer(given: Array | None, count: int, dtype: type[np.generic], name: str) -> Array:
    """``given`` if it is a contiguous (count,) of ``dtype``, or a new one if there is none."""
    if given is None:
        return np.empty(count, dtype)
    if given.dtype != dtype or given.shape != (count,) or not given.flags.c_contiguous:
        raise ValueError(
            f"{name} must be contiguous {dtype.__name__} of shape ({count},), "
            f"got {_describe(given)}"
        )
    return given


def _describe(values: Array) -> str:
    kind = "contiguous" if values.flags.c_contiguous else "strided"
    return f"{kind} {values.dtype.name} of shape {values.shape}"


def _decision_tables(
    quant_type: str,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Where one index ends and the next begins, for values scaled to [-1, 1].

    Returns the 15 bounds, midway between neighbouring codes, ascending; and 16 steps:
    the lowest code's index, then what to add on passing each bound.
    """
    order = np.array(_ORDER[quant_type], np.int32)
    ascending = _CODES[quant_type][order]
    bounds = (ascending[:-1] + ascending[1:]) / np.float32(2)
    return bounds, np.diff(order, prepend=np.int32(0))


@njit(cache=True, nogil=True)
def _quantize(bits, kind, block_size, tables, outputs):  # type: ignore[no-untyped-def]
    """Quantize all elements tile by tile; returns how many are not finite."""
    bounds, steps = tables
    packed, absmax = outputs
    count = bits.size
    scaled = np.empty(_TILE, np.float32)
    indices = np.zeros(_TILE, np.int32)
    nonfinite = 0
    for start in range(0, count, _TILE):
        size = min(_TILE, count - start)
        _widen(bits[start : start + size], kind, scaled.view(np.uint32))
        first, full = start // block_size, size // block_size
        for block in range(full):
            chunk = scaled[block * block_size : (block + 1) * block_size]
            peak = _peak(chunk.view(np.uint32))
            absmax[first + block] = peak
            if not peak < np.inf:
                nonfinite += _count_nonfinite(chunk.view(np.uint32))
            _multiply(chunk, np.float32(1.0) / _at_least_tiny(peak))
        if full * block_size < size:
            chunk = scaled[full * block_size : size]
            peak = _at_least_tiny(_peak(chunk.view(np.uint32)))
            absmax[first + full] = peak
            if not peak < np.inf:
                nonfinite += _count_nonfinite(chunk.view(np.uint32))
            _divide(chunk, peak)
        if size % 2:
            scaled[size] = 0.0  # the nibble that no element fills holds a zero's index
        even = size + size % 2
        _find_indices(scaled[:even], bounds, steps, indices)
        _pack(indices[:even], packed[start // 2 : (start + even) // 2])
    return nonfinite


@njit(cache=True, nogil=True)
def _widen(bits, kind, wide):  # type: ignore[no-untyped-def]
    """Write the float32 bit patterns of ``bits``: exact, infinities and NaN included."""
    if kind == _FLOAT32:
        for i in range(bits.size):
            wide[i] = bits[i]
    elif kind == _BFLOAT16:
        for i in range(bits.size):
            wide[i] = np.uint32(bits[i]) << np.uint32(16)
    else:
        for i in range(bits.size):
            wide[i] = float16_to_word(bits[i])


@njit(cache=True, nogil=True)
def _peak(words):  # type: ignore[no-untyped-def]
    """The largest magnitude among float32 bit patterns; NaN if there is one.

    Without their sign bit, patterns are ordered as the magnitudes are, NaN above
    infinity; integers have a vectorized maximum, which floats lack without fastmath.
    """
    largest = np.uint32(0)
    for i in range(words.size):
        largest = max(largest, words[i] & np.uint32(0x7FFFFFFF))
    return np.uint32(largest).view(np.float32)


@njit(cache=True, nogil=True)
def _count_nonfinite(words):  # type: ignore[no-untyped-def]
    """How many float32 bit patterns are infinities or NaN."""
    count = 0
    for i in range(words.size):
        if (words[i] & np.uint32(0x7FFFFFFF)) >= np.uint32(0x7F800000):
            count += 1
    return count


@njit(cache=True, nogil=True)
def _at_least_tiny(peak):  # type: ignore[no-untyped-def]
    """``peak`` but no less than 1e-38, whose reciprocal is finite; NaN stays NaN."""
    tiny = np.float32(1e-38)
    return tiny if peak < tiny else peak


@njit(cache=True, nogil=True)
def _multiply(values, factor):  # type: ignore[no-untyped-def]
    """Scale a full block in place."""
    for i in range(values.size):
        values[i] *= factor


@njit(cache=True, nogil=True)
def _divide(values, divisor):  # type: ignore[no-untyped-def]
    """Scale in place the block cut short at the end."""
    for i in range(values.size):
        values[i] /= divisor


@njit(cache=True, nogil=True)
def _find_indices(scaled, bounds, steps, indices):  # type: ignore[no-untyped-def]
    """Write the index of the code nearest to each scaled value; ties to the lower code.

    bitsandbytes clamps to [-1, 1] first, which changes nothing: the outermost bounds lie
    inside. NaN, in blocks that hold one or an infinity, passes every bound, as there.
    """
    # Five bounds a pass, over numbers as wide as the values, in the first-level cache: LLVM
    # makes vectors of this loop, not of the one that holds all 15 bounds of an element.
    none = np.int32(0)
    for i in range(scaled.size):
        indices[i] = steps[0]
    for k in range(0, 15, 5):
        a, b, c, d, e = bounds[k], bounds[k + 1], bounds[k + 2], bounds[k + 3], bounds[k + 4]
        p, q, r = steps[k + 1], steps[k + 2], steps[k + 3]
        s, t = steps[k + 4], steps[k + 5]
        for i in range(scaled.size):
            value = scaled[i]
            passed = (none if value <= a else p) + (none if value <= b else q)
            passed += (none if value <= c else r) + (none if value <= d else s)
            indices[i] += passed + (none if value <= e else t)


@njit(cache=True, nogil=True)
def _pack(indices, packed):  # type: ignore[no-untyped-def]
    """Join two neighbouring indices in one byte, the earlier one in the high nibble."""
    for i in range(packed.size):
        packed[i] = (indices[2 * i] << 4 | indices[2 * i + 1]) & 0xFF


@njit(cache=True, nogil=True)
def _dequantize(packed, absmax, code, block_size, values):  # type: ignore[no-untyped-def]
    """Write each element's code times its block's absmax."""
    for block in range(absmax.size):
        scale = absmax[block]
        for i in range(block * block_size, min((block + 1) * block_size, values.size)):
            byte = np.int64(packed[i >> 1])
            values[i] = code[byte & 15 if i & 1 else byte >> 4] * scale
