"""LLM.int8: rows of eight-bit integers, one scale a row.

The vector-wise quantization of LLM.int8 (Dettmers et al., arXiv 2208.07339): each row of
a weight matrix is scaled so that its largest magnitude (``absmax``) becomes 127, and
rounded to the nearest integer, halves to even. Weights keep no outliers apart; those are
a matter of the activations, at run time.

Bit-identical to bitsandbytes 0.50.2 on CPU, where the factor is 127 times the float32
reciprocal of absmax, each rounded, and a row that gives NaN (all zeros, or not finite)
becomes zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantkit.compiled import Loop
from quantkit.elements import Array

_QUANTIZE_ROWS = Loop("int8", "quantize_rows")

#: The float32 nearest to 1/127 that bitsandbytes dequantizes with.
_INVERSE_127 = np.float32(7.874015718698502e-3)


@dataclass(frozen=True)
class Int8Rows:
    """A matrix as rows of eight-bit integers.

    ``rows``: int8, shape (rows, cols), -127 to 127.
    ``absmax``: float32, shape (rows,), each row's largest magnitude.
    ``nonfinite``: how many of the elements were NaN or infinite.
    """

    rows: npt.NDArray[np.int8]
    absmax: npt.NDArray[np.float32]
    nonfinite: int


def quantize_int8(weight: Array) -> Int8Rows:
    """Quantize ``weight``, shape (rows, cols), contiguous float16.

    Other dtypes are for the caller to cast, as bitsandbytes does: the cast can overflow.
    """
    contiguous = weight.flags.c_contiguous
    if weight.dtype != np.float16 or weight.ndim != 2 or not contiguous:
        kind = "contiguous" if contiguous else "strided"
        found = f"{kind} {weight.dtype.name} of shape {weight.shape}"
        raise ValueError(f"weight must be a contiguous float16 matrix, got {found}")
    rows = np.empty(weight.shape, np.int8)
    absmax = np.empty(weight.shape[0], np.float32)
    nonfinite = _QUANTIZE_ROWS(weight.view(np.uint16), rows, absmax)
    return Int8Rows(rows, absmax, nonfinite)


def dequantize_int8(rows: Array, absmax: Array) -> npt.NDArray[np.float32]:
    """The float32 values, shape (rows, cols), of what :func:`quantize_int8` returns."""
    values: npt.NDArray[np.float32] = rows.astype(np.float32) * absmax[:, None] * _INVERSE_127
    return values
