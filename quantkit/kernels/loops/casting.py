"""Casts of half precision: the loops of :mod:`quantkit.kernels.casting`."""

from __future__ import annotations

from quantkit.kernels.loops import loop
from quantkit.kernels.loops.floats import float16_to_word, float32_to_half


@loop
def widen(bits, words):  # type: ignore[no-untyped-def]
    """Write the float32 bit pattern of each float16's."""
    for i in range(bits.size):
        words[i] = float16_to_word(bits[i])


@loop
def narrow(values, bits):  # type: ignore[no-untyped-def]
    """Write the float16 bit pattern of each float32, by the CPU's instruction."""
    for i in range(values.size):
        bits[i] = float32_to_half(values[i])
