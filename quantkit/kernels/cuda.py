"""The same arithmetic on a CUDA device, through bitsandbytes' own kernels.

On CUDA the reference *is* bitsandbytes: what it computes on the device is what
transformers would write there, down to the sign of fp4's zeros. The functions mirror
:mod:`fourbit`, :mod:`int8` and :mod:`nested`: arrays come from the host and go back to it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from quantkit.elements import Array, from_torch, to_torch
from quantkit.kernels.fourbit import FourBit, QuantType
from quantkit.kernels.int8 import Int8Rows
from quantkit.kernels.nested import NESTED_BLOCK_SIZE, NestedAbsmax


def quantize_4bit(weight: Array, quant_type: QuantType, block_size: int) -> FourBit:
    """``weight`` 1-D -> packed uint8 and absmax float32."""
    from bitsandbytes import functional

    there = _on_device(weight)
    packed, state = functional.quantize_4bit(there, blocksize=block_size, quant_type=quant_type)
    return FourBit(from_torch(packed.reshape(-1)), from_torch(state.absmax), _nonfinite(there))


def quantize_int8(weight: Array) -> Int8Rows:
    """``weight`` (rows, columns) float16 -> int8 rows and their absmax."""
    from bitsandbytes import functional

    there = _on_device(weight)
    rows, absmax, _ = functional.int8_vectorwise_quant(there)
    return Int8Rows(from_torch(rows), from_torch(absmax), _nonfinite(there))


def quantize_absmax(absmax: Array) -> NestedAbsmax:
    """A whole weight's absmax -> 8-bit codes, their absmax, and the offset."""
    from bitsandbytes import functional

    there = _on_device(absmax)
    offset = there.mean()
    codes, state = functional.quantize_blockwise(there - offset, blocksize=NESTED_BLOCK_SIZE)
    return NestedAbsmax(from_torch(codes), from_torch(state.absmax), np.float32(offset.item()))


def _on_device(values: Array) -> Tensor:
    return to_torch(values).to("cuda")


def _nonfinite(weight: Tensor) -> int:
    return weight.numel() - int(torch.isfinite(weight).sum())
