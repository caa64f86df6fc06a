"""Rows of eight-bit integers: the loops of :mod:`quantkit.kernels.int8`."""

from __future__ import annotations

import numpy as np

from quantkit.kernels.loops import loop
from quantkit.kernels.loops.floats import float16_to_word


@loop
def quantize_rows(bits, rows, absmax):  # type: ignore[no-untyped-def]
    """Quantize row by row; returns how many elements are not finite."""
    nonfinite = 0
    for row in range(bits.shape[0]):
        largest = _largest(bits[row])
        peak = np.uint32(float16_to_word(largest)).view(np.float32)
        absmax[row] = peak
        if largest >= np.uint16(0x7C00):
            nonfinite += _count_nonfinite(bits[row])
        if 0 < peak < np.inf:
            _round_row(bits[row], np.float32(127.0) * (np.float32(1.0) / peak), rows[row])
        else:
            rows[row] = 0
    return nonfinite


@loop
def _largest(bits):  # type: ignore[no-untyped-def]
    """The bit pattern of the largest magnitude: patterns without a sign bit are in order."""
    largest = np.uint16(0)
    for i in range(bits.size):
        largest = max(largest, np.uint16(bits[i] & np.uint16(0x7FFF)))
    return largest


@loop
def _count_nonfinite(bits):  # type: ignore[no-untyped-def]
    """How many float16 bit patterns are infinities or NaN."""
    count = 0
    for i in range(bits.size):
        if np.uint16(bits[i] & np.uint16(0x7FFF)) >= np.uint16(0x7C00):
            count += 1
    return count


@loop
def _round_row(bits, factor, row):  # type: ignore[no-untyped-def]
    """Scale one row of float16 bit patterns and round it, halves to even."""
    for i in range(bits.size):
        value = np.uint32(float16_to_word(bits[i])).view(np.float32)
        row[i] = np.int32(np.rint(value * factor))
