"""The kernels of arrays, called with tensors: their oracles compute in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from quantkit.elements import from_torch, to_torch
from quantkit.kernels import fourbit, int8, nested
from quantkit.kernels.fourbit import FourBit, QuantType
from quantkit.kernels.int8 import Int8Rows
from quantkit.kernels.nested import NestedAbsmax


def _tensors(made: Any, kind: Any) -> Any:
    return kind(
        **{
            name: to_torch(value) if isinstance(value, np.ndarray) else value
            for name, value in vars(made).items()
        }
    )


def quantize_4bit(weight: Tensor, quant_type: QuantType, block_size: int) -> Any:
    return _tensors(fourbit.quantize_4bit(from_torch(weight), quant_type, block_size), FourBit)


def dequantize_4bit(
    packed: Tensor, absmax: Tensor, quant_type: QuantType, block_size: int, count: int
) -> Tensor:
    arrays = from_torch(packed), from_torch(absmax)
    return to_torch(fourbit.dequantize_4bit(*arrays, quant_type, block_size, count))


def code_of(quant_type: str) -> Tensor:
    return to_torch({"nf4": fourbit.NF4_CODE, "fp4": fourbit.FP4_CODE}[quant_type])


def quantize_int8(weight: Tensor) -> Any:
    return _tensors(int8.quantize_int8(from_torch(weight)), Int8Rows)


def dequantize_int8(rows: Tensor, absmax: Tensor) -> Tensor:
    return to_torch(int8.dequantize_int8(from_torch(rows), from_torch(absmax)))


def quantize_absmax(absmax: Tensor) -> Any:
    return _tensors(nested.quantize_absmax(from_torch(absmax)), NestedAbsmax)


def dequantize_absmax(codes: Tensor, nested_absmax: Tensor, offset: np.float32) -> Tensor:
    values = nested.dequantize_absmax(from_torch(codes), from_torch(nested_absmax), offset)
    return to_torch(values)
