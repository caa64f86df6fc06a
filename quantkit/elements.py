"""Elements of tensors as numpy arrays: what the one pass reads, quantizes and writes.

numpy has no bfloat16; ml_dtypes gives it one, so that an array's data type is always that of
its values. torch would do, but takes longer to import than most models take to quantize.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

#: Of any data type that :data:`quantkit.types.ITEM_BYTES` names.
Array = npt.NDArray[Any]

#: Without its sign bit, a pattern from this one on is infinite or NaN.
_INFINITY = {
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float32": 0x7F80_0000,
    "float64": 0x7FF0_0000_0000_0000,
}


def dtype_of(name: str) -> np.dtype[Any]:
    """numpy's data type of one of our names."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def row_major(
    data: memoryview, dtype: str, shape: Sequence[int], stride: Sequence[int] | None
) -> Array:
    """The bytes of a tensor, or of a piece of a row-major one, as elements: 1-D, row-major.

    With ``stride``, in elements, ``data`` is the whole of it, of ``shape``, and is copied.
    """
    values = np.frombuffer(data, dtype_of(dtype))
    if stride is None:
        return values
    steps = [each * values.itemsize for each in stride]
    view = np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False)
    return np.ascontiguousarray(view).reshape(-1)


def bits(values: Array) -> Array:
    """The bit patterns as unsigned integers, in the same memory."""
    return values.view(f"u{values.itemsize}")


def count_nonfinite(values: Array) -> int:
    """How many elements are NaN or infinite."""
    infinity = _INFINITY.get(values.dtype.name)
    if infinity is None or not values.size:
        return 0
    patterns = bits(values)
    sign = np.iinfo(patterns.dtype).max // 2 + 1
    # in order, those of negative numbers come last: no array of magnitudes is needed to see both
    if patterns.view(f"i{values.itemsize}").max() < infinity and patterns.max() < sign + infinity:
        return 0
    magnitudes = patterns & patterns.dtype.type(sign - 1)
    return int(np.count_nonzero(magnitudes >= infinity))


def from_torch(tensor: Tensor) -> Array:
    """The same elements, in the same memory where that is contiguous and the host's."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.view(dtype_of(str(tensor.dtype).removeprefix("torch."))).reshape(tensor.shape)


def to_torch(values: Array) -> Tensor:
    """The inverse of :func:`from_torch`: in the same memory, which must be contiguous."""
    import torch

    flat = torch.from_numpy(values.reshape(-1).view(np.uint8))
    return flat.view(getattr(torch, values.dtype.name)).reshape(values.shape)
