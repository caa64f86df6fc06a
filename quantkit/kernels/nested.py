"""Double quantization: the absmax of a four-bit tensor, themselves in eight bits.

QLoRA's (Dettmers et al., arXiv 2305.14314): subtract the mean of all absmax, then
quantize in blocks of 256 with the dynamic data type of "8-Bit Approximations for
Parallelism in Deep Learning" (Dettmers, arXiv 1511.04561), whose fraction gains a bit
for every decimal exponent that the value is closer to 1.

Bit-identical to bitsandbytes 0.50.2 on CPU. Its compiled library does not look for the
nearest of the 256 values: it rounds the scaled value to one of 65536 steps over [-1, 1]
and looks the step's code up in a table, so that values near a midpoint between two
codes, and most magnitudes below 1e-5, get a code that is not the nearest. And the mean
is torch's, which depends on torch's number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from quantkit.compiled import Loop
from quantkit.elements import Array

#: Absmax values that share a nested absmax; bitsandbytes fixes it.
NESTED_BLOCK_SIZE = 256

_QUANTIZE_BLOCKS = Loop("nested", "quantize_blocks")

_DECADES = 7
_LAST_STEP = 65535


@cache
def dynamic_map() -> npt.NDArray[np.float32]:
    """The dynamic data type's values, ascending: shape (256,), float32, in (-1, 1].

    In the decade below 10**-k lie 2**(6-k) values, midway between equally spaced marks
    from a tenth to one, and their negatives; zero and one complete the 256.
    """
    import torch  # its linspace rounds in a way of its own

    magnitudes = []
    for decade in range(_DECADES):
        marks = torch.linspace(0.1, 1.0, 2**decade + 1, dtype=torch.float32)
        magnitudes.append(10 ** (decade + 1 - _DECADES) * ((marks[:-1] + marks[1:]) / 2.0))
    positive = torch.cat(magnitudes)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float32)
    values = torch.cat((-positive, ends, positive)).sort().values
    made: npt.NDArray[np.float32] = values.numpy()
    return made


@cache
def step_codes() -> npt.NDArray[np.uint8]:
    """The code of each of the 65536 steps: the nearest, ties to the lower; uint8."""
    values = dynamic_map()
    bounds = (values[:-1] + values[1:]) * np.float32(0.5)
    steps = np.arange(_LAST_STEP + 1, dtype=np.float32)
    scaled = np.float32(2.0) * steps / np.float32(_LAST_STEP) - np.float32(1.0)
    return np.searchsorted(bounds, scaled).astype(np.uint8)


@dataclass(frozen=True)
class NestedAbsmax:
    """``n`` absmax values in eight bits.

    ``codes``: uint8, shape (n,), indices into :func:`dynamic_map`.
    ``nested_absmax``: float32, shape (ceil(n / 256),), each block's largest magnitude.
    ``offset``: the float32 mean that was subtracted.
    """

    codes: npt.NDArray[np.uint8]
    nested_absmax: npt.NDArray[np.float32]
    offset: np.float32


def quantize_absmax(absmax: Array) -> NestedAbsmax:
    """Quantize ``absmax``, 1-D float32 and finite."""
    if absmax.dtype != np.float32 or absmax.ndim != 1:
        found = f"{absmax.dtype.name} of shape {absmax.shape}"
        raise ValueError(f"absmax must be 1-D float32, got {found}")
    offset = _mean(absmax)
    codes = np.empty(absmax.shape, np.uint8)
    nested_absmax = np.empty(-(-absmax.size // NESTED_BLOCK_SIZE), np.float32)
    _QUANTIZE_BLOCKS(absmax - offset, step_codes(), NESTED_BLOCK_SIZE, codes, nested_absmax)
    return NestedAbsmax(codes, nested_absmax, offset)


def _mean(values: Array) -> np.float32:
    import torch  # the order of its sum is the library's

    return np.float32(torch.from_numpy(values).mean().item())


def dequantize_absmax(
    codes: Array, nested_absmax: Array, offset: np.float32
) -> npt.NDArray[np.float32]:
    """The float32 absmax, shape (n,), of what :func:`quantize_absmax` returns."""
    scales = nested_absmax.repeat(NESTED_BLOCK_SIZE)[: codes.size]
    values: npt.NDArray[np.float32] = dynamic_map()[codes] * scales + offset
    return values
