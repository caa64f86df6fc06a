"""LLM.int8 rows against bitsandbytes' own CPU implementation, bit for bit."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from torch import Tensor
from torchwise import dequantize_int8, quantize_int8

from quantkit.elements import dtype_of
from quantkit.kernels import int8


def assert_same(weight: Tensor) -> None:
    ours = quantize_int8(weight)
    rows, absmax, _ = bnb.int8_vectorwise_quant(weight.clone())
    assert ours.rows.dtype == torch.int8
    assert torch.equal(ours.rows, rows)
    assert torch.equal(ours.absmax.view(torch.int32), absmax.view(torch.int32))


def random_weight(*shape: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).half()


def finite_float16() -> Tensor:
    patterns = torch.arange(65536).to(torch.uint16).view(torch.float16)
    return patterns[torch.isfinite(patterns)]


@pytest.mark.parametrize("cols", [1, 2, 7, 64, 255, 1000])
@pytest.mark.parametrize("scale", [0.02, 1.0, 1e-6, 1e4])
def test_random(cols: int, scale: float) -> None:
    assert_same(random_weight(50, cols, seed=cols, scale=scale))


def test_a_million_values() -> None:
    assert_same(random_weight(1024, 1024, seed=1))


@pytest.mark.parametrize("cols", [1, 2, 64, 512, 63488])
def test_every_finite_float16(cols: int) -> None:
    patterns = finite_float16()
    generator = torch.Generator().manual_seed(3)
    assert_same(patterns.view(-1, cols))
    assert_same(patterns[torch.randperm(63488, generator=generator)].view(-1, cols))


def test_every_absmax_with_every_level() -> None:
    """Each positive float16 as absmax, beside its multiples by k/254: whole and half steps."""
    peaks = finite_float16()
    peaks = peaks[peaks > 0]
    levels = torch.arange(-254, 255, 5, dtype=torch.float32) / 254
    inside = (peaks.float().unsqueeze(1) * levels).half()
    assert_same(torch.cat((peaks.unsqueeze(1), inside), 1))


def test_halves_round_to_even() -> None:
    weight = torch.cat((torch.tensor([127.0]), torch.arange(-126.5, 127.0, 1.0))).half().view(1, -1)
    scaled = weight.float() * (127.0 * (1.0 / torch.tensor(127.0)))
    assert torch.equal(scaled, weight.float()), "these must be halves, not nearly so"
    assert_same(weight)
    assert quantize_int8(weight).rows[0, 1:5].tolist() == [-126, -126, -124, -124]


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -65504.0, 65504.0, 6e-8, -6e-8, 6.2e-5])
def test_constant_rows(value: float) -> None:
    assert_same(torch.full((3, 70), value, dtype=torch.float16))


def test_a_row_of_zeros_among_others() -> None:
    weight = random_weight(5, 96, seed=8)
    weight[2] = 0
    assert_same(weight)
    result = quantize_int8(weight)
    assert result.rows[2].count_nonzero() == 0
    assert result.absmax[2] == 0
    assert result.nonfinite == 0


def test_nonfinite_elements_are_counted() -> None:
    weight = random_weight(6, 64, seed=6)
    weight[1, 3] = float("inf")
    weight[2, 5] = float("-inf")
    weight[4, 0] = weight[4, 63] = float("nan")
    ours = quantize_int8(weight)
    rows, absmax, _ = bnb.int8_vectorwise_quant(weight.clone())
    assert ours.nonfinite == 4
    assert torch.equal(ours.rows, rows)
    assert torch.equal(ours.absmax.nan_to_num(nan=-1.0), absmax.nan_to_num(nan=-1.0))


def test_empty_matrices() -> None:
    for shape in ((0, 8), (3, 0)):
        result = quantize_int8(torch.empty(shape, dtype=torch.float16))
        assert result.rows.shape == shape
        assert result.absmax.shape == (shape[0],)


def test_bad_arguments_are_refused() -> None:
    good = np.zeros((4, 8), np.float16)
    others = (good.astype(np.float32), good.astype(dtype_of("bfloat16")))
    for weight in (good.reshape(-1), good.T, *others):
        with pytest.raises(ValueError, match="float16 matrix"):
            int8.quantize_int8(weight)


def test_dequantize() -> None:
    quantized = quantize_int8(random_weight(40, 300, seed=2))
    values = dequantize_int8(quantized.rows, quantized.absmax)
    expected = bnb.int8_vectorwise_dequant(quantized.rows, quantized.absmax)
    assert values.dtype == torch.float32
    assert torch.equal(values.view(torch.int32), expected.view(torch.int32))


def test_decoding_is_within_half_a_step() -> None:
    """Without the oracle; and a row given its neighbour's scale is noticed."""
    weight = random_weight(40, 300, seed=5)
    quantized = quantize_int8(weight)
    half_step = quantized.absmax.unsqueeze(1) / 127 / 2 * 1.0001
    error = (dequantize_int8(quantized.rows, quantized.absmax) - weight.float()).abs()
    assert (error <= half_step).all()
    wrong = dequantize_int8(quantized.rows, quantized.absmax.roll(1))
    assert ((wrong - weight.float()).abs() > half_step).any()
