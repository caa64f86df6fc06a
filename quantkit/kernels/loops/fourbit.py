"""Blocks of four-bit indices: the loops of :mod:`quantkit.kernels.fourbit`."""

from __future__ import annotations

import numpy as np

from quantkit.kernels.loops import loop
from quantkit.kernels.loops.floats import float16_to_word

#: How an element's bits are read.
_FLOAT32, _FLOAT16, _BFLOAT16 = 0, 1, 2


@loop
def quantize(bits, kind, block_size, tables, scratch, outputs):  # type: ignore[no-untyped-def]
    """Quantize all elements tile by tile; returns how many are not finite.

    ``tables``: the bounds between codes, float32, shape (15,), ascending; and the byte of two
    indices for each byte of two ranks, uint8, shape (256,), or (0,) where a rank is its index.
    ``scratch``: float32 and int32, of one tile's size, which is a multiple of the block size.
    """
    bounds, renamed = tables
    scaled, ranks = scratch
    packed, absmax = outputs
    count, tile = bits.size, scaled.size
    nonfinite = 0
    for start in range(0, count, tile):
        size = min(tile, count - start)
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
        _rank(scaled[:even], bounds, ranks)
        _pack(ranks[:even], packed[start // 2 : (start + even) // 2])
        if renamed.size:
            _rename(packed[start // 2 : (start + even) // 2], renamed)
    return nonfinite


@loop
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


@loop
def _peak(words):  # type: ignore[no-untyped-def]
    """The largest magnitude among float32 bit patterns; NaN if there is one.

    Without their sign bit, patterns are ordered as the magnitudes are, NaN above
    infinity; integers have a vectorized maximum, which floats lack without fastmath.
    """
    largest = np.uint32(0)
    for i in range(words.size):
        largest = max(largest, words[i] & np.uint32(0x7FFFFFFF))
    return np.uint32(largest).view(np.float32)


@loop
def _count_nonfinite(words):  # type: ignore[no-untyped-def]
    """How many float32 bit patterns are infinities or NaN."""
    count = 0
    for i in range(words.size):
        if (words[i] & np.uint32(0x7FFFFFFF)) >= np.uint32(0x7F800000):
            count += 1
    return count


@loop
def _at_least_tiny(peak):  # type: ignore[no-untyped-def]
    """``peak`` but no less than 1e-38, whose reciprocal is finite; NaN stays NaN."""
    tiny = np.float32(1e-38)
    return tiny if peak < tiny else peak


@loop
def _multiply(values, factor):  # type: ignore[no-untyped-def]
    """Scale a full block in place."""
    for i in range(values.size):
        values[i] *= factor


@loop
def _divide(values, divisor):  # type: ignore[no-untyped-def]
    """Scale in place the block cut short at the end."""
    for i in range(values.size):
        values[i] /= divisor


@loop
def _rank(scaled, bounds, ranks):  # type: ignore[no-untyped-def]
    """Write which of the codes, in ascending order, is nearest to each value; ties to the lower.

    bitsandbytes clamps to [-1, 1] first, which changes nothing: the outermost bounds lie
    inside. NaN, in blocks that hold one or an infinity, passes every bound, as there.
    """
    # A binary search without memory or jumps: each comparison halves the bounds that are left,
    # for all of them at once. LLVM makes vectors of it; bounds held in registers are blended.
    a0, a1, a2, a3, a4, a5, a6, middle = (
        bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5], bounds[6], bounds[7],
    )  # fmt: skip
    b0, b1, b2, b3, b4, b5, b6 = (
        bounds[8], bounds[9], bounds[10], bounds[11], bounds[12], bounds[13], bounds[14],
    )  # fmt: skip
    none = np.int32(0)
    for i in range(scaled.size):
        value = scaled[i]
        low = value <= middle
        c0, c1, c2 = a0 if low else b0, a1 if low else b1, a2 if low else b2
        c3, c4 = a3 if low else b3, a4 if low else b4
        c5, c6 = a5 if low else b5, a6 if low else b6
        rank = none if low else np.int32(8)
        low = value <= c3
        d0, d1, d2 = c0 if low else c4, c1 if low else c5, c2 if low else c6
        rank += none if low else np.int32(4)
        low = value <= d1
        rank += none if low else np.int32(2)
        ranks[i] = rank + (none if value <= (d0 if low else d2) else np.int32(1))


@loop
def _pack(indices, packed):  # type: ignore[no-untyped-def]
    """Join two neighbouring indices in one byte, the earlier one in the high nibble."""
    for i in range(packed.size):
        packed[i] = (indices[2 * i] << 4 | indices[2 * i + 1]) & 0xFF


@loop
def _rename(packed, names):  # type: ignore[no-untyped-def]
    """Replace each byte by what ``names``, uint8 of shape (256,), has for it."""
    for i in range(packed.size):
        packed[i] = names[packed[i]]


@loop
def dequantize(packed, absmax, code, block_size, values):  # type: ignore[no-untyped-def]
    """Write each element's code times its block's absmax."""
    for block in range(absmax.size):
        scale = absmax[block]
        for i in range(block * block_size, min((block + 1) * block_size, values.size)):
            byte = np.int64(packed[i >> 1])
            values[i] = code[byte & 15 if i & 1 else byte >> 4] * scale
