"""Absmax in eight bits: the loops of :mod:`quantkit.kernels.nested`."""

from __future__ import annotations

import numpy as np

from quantkit.kernels.loops import loop

_LAST_STEP = 65535


@loop
def quantize_blocks(values, step_codes, size, codes, nested_absmax):  # type: ignore[no-untyped-def]
    """Write the code of each value, and the largest magnitude of each block of ``size``."""
    for block in range(nested_absmax.size):
        start = block * size
        stop = min(start + size, values.size)
        peak = np.float32(0.0)
        for i in range(start, stop):
            peak = max(peak, abs(values[i]))
        nested_absmax[block] = peak
        if peak == 0:
            codes[start:stop] = 0  # as bitsandbytes; decoded, it is the offset all the same
        else:
            inverse = np.float32(1.0) / peak
            for i in range(start, stop):
                codes[i] = step_codes[nearest_step(values[i] * inverse)]


@loop
def nearest_step(scaled):  # type: ignore[no-untyped-def]
    """Which of the 65536 steps over [-1, 1] the float32 ``scaled`` is rounded to.

    Two roundings where the library's fused multiply-add has one: the step is the same
    for every float32 share there is, which the tests try. NaN, from 0 times the infinite
    reciprocal of a denormal, is step 0.
    """
    if np.isnan(scaled):
        return 0
    clamped = min(max(scaled, np.float32(-1.0)), np.float32(1.0))
    share = np.float32(np.float32(clamped + np.float32(1.0)) * np.float32(0.5))
    return int(np.float32(share * np.float32(_LAST_STEP)) + np.float32(0.5))
