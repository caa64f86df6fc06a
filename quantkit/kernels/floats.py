"""Bit patterns of half precision, for kernels: numba computes in no float16 on a CPU.

numba's cache watches the file of the kernel that it compiled and not the files which
that kernel calls: after a change here, delete ``quantkit/kernels/__pycache__``.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def float16_to_word(bits):  # type: ignore[no-untyped-def]
    """The float32 bit pattern, uint32, of a float16 bit pattern, uint16.

    Exact; infinities and NaN stay what they are.
    """
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
