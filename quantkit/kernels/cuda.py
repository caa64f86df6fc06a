"""The same arithmetic on a CUDA device, through bitsandbytes' own kernels.

On CUDA the reference *is* bitsandbytes: what it computes on the device is what
transformers would write there, down to the sign of fp4's zeros. The functions mirror
:mod:`fourbit`, :mod:`int8` and :mod:`nested`; tensors stay on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.kernels.fourbit import FourBit, QuantType
from quantkit.kernels.int8 import Int8Rows
from quantkit.kernels.nested import NestedAbsmax


def quantize_4bit(weight: Tensor, quant_type: QuantType, block_size: int) -> FourBit:
    """``weight`` 1-D on the device -> packed uint8 and absmax float32, on the device."""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight, blocksize=block_size, quant_type=quant_type)
    return FourBit(packed.reshape(-1), state.absmax, _nonfinite(weight))


def quantize_int8(weight: Tensor) -> Int8Rows:
    """``weight`` (rows, columns) on the device -> int8 rows and their absmax."""
    from bitsandbytes import functional

    half = weight.to(torch.float16)
    rows, absmax, _ = functional.int8_vectorwise_quant(half)
    return Int8Rows(rows, absmax, _nonfinite(half))


def quantize_absmax(absmax: Tensor) -> NestedAbsmax:
    """A whole weight's absmax on the device -> 8-bit codes, their absmax, and the offset."""
    from bitsandbytes import functional

    offset = absmax.mean()
    codes, state = functional.quantize_blockwise(absmax - offset, blocksize=256)
    return NestedAbsmax(codes, state.absmax, offset)


def _nonfinite(weight: Tensor) -> int:
    return weight.numel() - int(torch.isfinite(weight).sum())
