"""Bit patterns of half precision: numba computes in no float16 on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quantkit.compiled import has_half_instruction
from quantkit.kernels.loops import loop


@intrinsic  # type: ignore[untyped-decorator]
def _widened(typing: Any, bits: Any) -> Any:
    """A float16 bit pattern, uint16, as float32: numba has no float16 of its own."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic  # type: ignore[untyped-decorator]
def _narrowed(typing: Any, value: Any) -> Any:
    """A float32 as the bit pattern, uint16, of the nearest float16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@loop
def float32_to_half(value):  # type: ignore[no-untyped-def]
    """The float16 bit pattern, uint16, nearest to a float32; only with the CPU's instruction."""
    return _narrowed(np.float32(value))


@loop
def _word_by_instruction(bits):  # type: ignore[no-untyped-def]
    return np.float32(_widened(np.uint16(bits))).view(np.uint32)


@loop
def float16_word_by_hand(bits):  # type: ignore[no-untyped-def]
    """:func:`float16_to_word` in whole numbers, for CPUs without an instruction for it."""
    magnitude = np.uint32(bits) & np.uint32(0x7FFF)
    # Move exponent and mantissa into place and correct the exponent's bias from 15 to 127;
    # the highest exponent, of infinity and NaN, must become 255.
    word = (magnitude << np.uint32(13)) + np.uint32(112 << 23)
    if magnitude >= np.uint32(0x7C00):
        word += np.uint32(112 << 23)
    # Denormals are multiples of 2**-24. (Scaling the shifted bits by 2**112 would do too,
    # but passes through float32 denormals, slow on some CPUs and flushed to zero on others.)
    if magnitude < np.uint32(0x0400):
        word = np.float32(np.float32(magnitude) * np.float32(2.0**-24)).view(np.uint32)
    return np.uint32(word | ((np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16)))


#: The float32 bit pattern, uint32, of a float16 bit pattern, uint16. Exact; infinities stay what
#: they are, NaN stays NaN.
float16_to_word = _word_by_instruction if has_half_instruction() else float16_word_by_hand
