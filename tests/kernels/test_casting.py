"""Casts and counts of elements against torch, bit for bit, over every half-precision pattern."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantkit.elements import (
    Array,
    bits,
    count_nonfinite,
    dtype_of,
    from_torch,
    row_major,
    to_torch,
)
from quantkit.kernels import casting
from quantkit.kernels.casting import cast
from quantkit.types import FLOAT_DTYPES, ITEM_BYTES

HALVES = ("float16", "bfloat16")


def patterns(dtype: str) -> Array:
    return np.arange(1 << 16, dtype=np.uint16).view(dtype_of(dtype))


def around(dtype: str) -> Array:
    """Each value of a half-precision type, each midpoint between two, and float32's neighbours."""
    values = np.sort(patterns(dtype).astype(np.float32))
    values = values[np.isfinite(values)]
    wide = values.astype(np.float64)
    middle = ((wide[1:] + wide[:-1]) / 2).astype(np.float32)
    beyond = np.array([65519.996, 65520.0, 65536.0, 3.4e38, np.inf, 1e-45], np.float32)
    each = np.concatenate([values, middle, beyond, -beyond])
    with np.errstate(over="ignore"):
        return np.concatenate(
            [each, np.nextafter(each, np.float32(9e9)), np.nextafter(each, np.float32(-9e9))]
        )


def assert_as_torch(values: Array, dtype: str) -> None:
    made = cast(values, dtype)
    wanted = from_torch(to_torch(values).to(getattr(torch, dtype)))
    nan = torch.isnan(to_torch(wanted)).numpy()
    assert made.dtype == dtype_of(dtype)
    assert np.array_equal(torch.isnan(to_torch(made)).numpy(), nan)
    assert np.array_equal(bits(made)[~nan], bits(wanted)[~nan])


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("source", HALVES)
def test_every_half(source: str, dtype: str) -> None:
    assert_as_torch(patterns(source), dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("instruction", [True, False])
def test_float32_rounds_to_the_nearest(
    dtype: str, instruction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not instruction:
        monkeypatch.setattr(casting, "has_half_instruction", lambda: False)
    assert_as_torch(around(dtype), dtype)
    assert_as_torch(np.random.default_rng(0).normal(0, 1e-3, 100_003).astype(np.float32), dtype)


def test_a_cast_that_cuts_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(values: Array, halves: Array) -> None:
        whole = values.view(np.uint32) & np.uint32(0xFFFFE000)
        halves[:] = whole.view(np.float32).astype(np.float16).view(np.uint16)

    monkeypatch.setattr(casting, "has_half_instruction", lambda: True)
    monkeypatch.setattr(casting, "_NARROW", cut)
    with pytest.raises(AssertionError), np.errstate(over="ignore"):
        assert_as_torch(around("float16"), "float16")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_nonfinite_are_counted(dtype: str) -> None:
    values = np.zeros(5000, dtype_of(dtype))
    assert count_nonfinite(values) == 0
    values[:] = float(torch.finfo(getattr(torch, dtype)).max)
    assert count_nonfinite(-values) == 0
    values[[0, 77, 4998, 4999]] = [np.inf, -np.inf, np.nan, -np.nan]
    assert count_nonfinite(values) == 4
    assert count_nonfinite(values[:0]) == 0


def test_whole_numbers_are_finite() -> None:
    assert count_nonfinite(np.full(9, -1, np.int64)) == 0


@pytest.mark.parametrize("dtype", ITEM_BYTES)
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (0, 4)])
def test_torch_and_back(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(6)[: int(np.prod(shape))].reshape(shape).to(getattr(torch, dtype))
    values = from_torch(tensor)
    assert values.dtype == dtype_of(dtype)
    assert values.shape == shape
    assert values.itemsize == ITEM_BYTES[dtype]
    assert torch.equal(to_torch(values), tensor)
    assert values.astype(np.int64).tolist() == tensor.long().tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_of_a_strided_tensor(dtype: str) -> None:
    whole = torch.arange(12, dtype=getattr(torch, dtype)).reshape(3, 4)
    for tensor in (whole.T, whole[::2], whole[:, 1:2], whole[1:, ::3]):
        storage = from_torch(whole).tobytes()[tensor.storage_offset() * whole.itemsize :]
        values = row_major(memoryview(storage), dtype, tensor.shape, tensor.stride())
        assert values.flags.c_contiguous
        assert torch.equal(to_torch(values), tensor.reshape(-1))
