"""Casts between floating data types, rounded to the nearest, ties to even.

numpy and ml_dtypes cast to and from float16 one element at a time, in software; most CPUs do
eight or more in an instruction. The results are the same.
"""

from __future__ import annotations

import numpy as np

from quantkit.compiled import Loop, has_half_instruction
from quantkit.elements import Array, dtype_of

_WIDEN, _NARROW = Loop("casting", "widen"), Loop("casting", "narrow")


def cast(values: Array, dtype: str) -> Array:
    """``values``, 1-D, as ``dtype``; what it cannot hold becomes infinite, or zero."""
    made: Array
    if values.dtype.name == "float16" and dtype != "float16":
        values = _widened(values)
    if dtype == "float16" and values.dtype.name == "bfloat16":
        values = values.astype(np.float32)
    if dtype == "float16" and values.dtype.name == "float32" and has_half_instruction():
        made = np.empty(values.shape, np.float16)
        _NARROW(values, made.view(np.uint16))
        return made
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        made = values.astype(dtype_of(dtype), copy=False)
    return made


def _widened(values: Array) -> Array:
    made: Array = np.empty(values.shape, np.float32)
    _WIDEN(values.view(np.uint16), made.view(np.uint32))
    return made
