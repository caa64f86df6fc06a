"""NF4 and FP4 against bitsandbytes' own CPU implementation, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from torch import Tensor
from torchwise import code_of, dequantize_4bit, quantize_4bit

from quantkit.elements import Array
from quantkit.kernels import fourbit
from quantkit.kernels.fourbit import BLOCK_SIZES, FourBit

QUANT_TYPES = ("nf4", "fp4")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

each_type = pytest.mark.parametrize("quant_type", QUANT_TYPES)
each_block = pytest.mark.parametrize("block_size", BLOCK_SIZES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def oracle(weight: Tensor, quant_type: str, block_size: int) -> tuple[Tensor, Tensor]:
    packed, state = bnb.quantize_4bit(weight, blocksize=block_size, quant_type=quant_type)
    return packed.view(-1), state.absmax


def differs(weight: Tensor, quant_type: str, block_size: int) -> str | None:
    """What, if anything, differs from bitsandbytes in any bit."""
    ours = quantize_4bit(weight, quant_type, block_size)
    packed, absmax = oracle(weight, quant_type, block_size)
    if not torch.equal(ours.packed, packed):
        return "packed"
    if not torch.equal(ours.absmax.view(torch.int32), absmax.view(torch.int32)):
        return "absmax"
    return None


def random_weight(count: int, dtype: torch.dtype, seed: int = 0, scale: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator) * scale).to(dtype)


def finite_float16() -> Tensor:
    patterns = torch.arange(65536).to(torch.uint16).view(torch.float16)
    return patterns[torch.isfinite(patterns)]


def neighbours(values: Tensor) -> Tensor:
    up = torch.nextafter(values, torch.full_like(values, 9.0))
    down = torch.nextafter(values, torch.full_like(values, -9.0))
    return torch.cat((down, values, up))


@each_type
def test_codes_are_bitsandbytes(quant_type: str) -> None:
    code = code_of(quant_type)
    expected = bnb.get_4bit_type(quant_type, device="cpu")
    assert code.dtype == torch.float32
    assert torch.equal(code.view(torch.int32), expected.view(torch.int32))


@each_dtype
@each_block
@each_type
def test_random(quant_type: str, block_size: int, dtype: torch.dtype) -> None:
    for seed, scale in enumerate((0.02, 1.0, 1e-5, 1e3)):
        weight = random_weight(5 * 4096, dtype, seed, scale)
        assert differs(weight, quant_type, block_size) is None


@each_dtype
@each_type
def test_a_million_values(quant_type: str, dtype: torch.dtype) -> None:
    assert differs(random_weight(1 << 20, dtype, seed=7), quant_type, 64) is None


@each_dtype
@each_block
@each_type
def test_lengths_that_end_inside_a_block(
    quant_type: str, block_size: int, dtype: torch.dtype
) -> None:
    lengths = {1, 2, 31, block_size - 1, block_size, block_size + 1, 2 * block_size + 7}
    lengths |= {4095, 4096, 4097, 8191, 3 * 4096 + block_size + 5}
    for length in sorted(lengths):
        weight = random_weight(length, dtype, seed=length)
        assert differs(weight, quant_type, block_size) is None, length


@each_type
def test_the_tail_is_divided_not_multiplied(quant_type: str) -> None:
    """Long tails that differ between the two, so that the distinction is tested at all."""
    bounds, _ = fourbit._decision_tables(quant_type)
    peaks = torch.arange(1.0, 2.0, 1 / 64)
    multiplied_differs = 0
    for peak in peaks:
        tail = torch.cat((peak.view(1), neighbours(torch.from_numpy(bounds) * peak)))
        assert differs(tail, quant_type, 64) is None
        bound = torch.from_numpy(bounds)
        by_division = torch.bucketize(tail / peak, bound)
        multiplied_differs += int((by_division != torch.bucketize(tail * (1 / peak), bound)).sum())
    assert multiplied_differs > 0


@each_dtype
@each_type
def test_extreme_blocks(quant_type: str, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    denormal = info.smallest_normal / 8
    rows = [0.0, -0.0, 1.0, -1.0, info.max, -info.max, info.smallest_normal, denormal, -denormal]
    constant = torch.tensor(rows, dtype=dtype).repeat_interleave(64)
    assert differs(constant, quant_type, 64) is None
    for scale in (info.max / 8, denormal, info.smallest_normal):
        weight = (random_weight(64 * 40, torch.float64, 3, 1.0) * scale).to(dtype)
        assert torch.isfinite(weight).all()
        assert differs(weight, quant_type, 64) is None
        assert differs(weight[:-9], quant_type, 64) is None
    for single in rows:
        assert differs(torch.tensor([single], dtype=dtype), quant_type, 64) is None


@each_type
def test_float32_near_its_ends(quant_type: str) -> None:
    """Absmax whose reciprocal is denormal, and absmax below the floor of 1e-38."""
    for magnitude in (3.4e38, 1.7e38, 2e-38, 1.0e-38, 0.99e-38, 1e-40, 1.5e-45):
        weight = random_weight(64 * 20, torch.float32, seed=5, scale=1.0).clamp(-1, 1) * magnitude
        weight[::64] = magnitude
        assert differs(weight, quant_type, 64) is None
        assert differs(weight[:-1], quant_type, 64) is None


@each_block
@each_type
def test_every_finite_float16(quant_type: str, block_size: int) -> None:
    patterns = finite_float16()
    assert patterns.numel() == 63488
    generator = torch.Generator().manual_seed(11)
    for weight in (patterns, patterns[torch.randperm(63488, generator=generator)]):
        assert differs(weight, quant_type, block_size) is None


@each_type
def test_every_finite_bfloat16(quant_type: str) -> None:
    patterns = torch.arange(65536).to(torch.uint16).view(torch.bfloat16)
    patterns = patterns[torch.isfinite(patterns)]
    generator = torch.Generator().manual_seed(12)
    for weight in (patterns, patterns[torch.randperm(patterns.numel(), generator=generator)]):
        assert differs(weight, quant_type, 64) is None


def ties(quant_type: str, peak: float) -> Tensor:
    """Blocks of 64: ``peak``, then every bound times it and that value's neighbours."""
    bounds = torch.from_numpy(fourbit._decision_tables(quant_type)[0])
    block = torch.zeros(64)
    block[0] = peak
    block[1:46] = neighbours(bounds * peak)
    return block


@each_type
def test_exact_ties(quant_type: str) -> None:
    unit = ties(quant_type, 1.0)
    bounds = torch.from_numpy(fourbit._decision_tables(quant_type)[0])
    assert torch.equal(unit[16:31], bounds), "these must be ties, not nearly so"
    weight = torch.cat([ties(quant_type, peak) for peak in (1.0, 2.0, 0.3, 3.1415, 1e-3, 7e4)])
    assert differs(weight, quant_type, 64) is None
    assert differs(weight[:-20], quant_type, 64) is None


@each_type
def test_a_bound_moved_by_one_ulp_is_noticed(
    quant_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_tables = fourbit._decision_tables
    weight = ties(quant_type, 1.0)
    for k in range(15):
        for towards in (-9.0, 9.0):
            bounds, names = true_tables(quant_type)
            moved = torch.from_numpy(bounds.copy())
            moved[k] = torch.nextafter(moved[k], torch.tensor(towards))
            tables = (moved.numpy(), names)
            monkeypatch.setattr(fourbit, "_decision_tables", lambda _, tables=tables: tables)
            assert differs(weight, quant_type, 64) == "packed", (k, towards)


@each_dtype
@each_type
def test_nonfinite_elements_are_counted(quant_type: str, dtype: torch.dtype) -> None:
    """Counted exactly; their blocks are bitsandbytes' too, but for the bits of a NaN absmax."""
    weight = random_weight(3 * 4096 + 70, dtype, seed=2)
    assert quantize_4bit(weight, quant_type, 64).nonfinite == 0
    places = torch.tensor([0, 1, 63, 64, 4095, 4096, 9000, weight.numel() - 1])
    bad = torch.tensor([float("inf"), float("-inf"), float("nan"), float("nan")] * 2)
    weight[places] = bad.to(dtype)
    for block_size in BLOCK_SIZES:
        ours = quantize_4bit(weight, quant_type, block_size)
        packed, absmax = oracle(weight, quant_type, block_size)
        assert ours.nonfinite == 8
        assert torch.equal(ours.packed, packed)
        assert torch.equal(ours.absmax.nan_to_num(nan=-1.0), absmax.nan_to_num(nan=-1.0))


def test_every_nonfinite_float16_is_counted() -> None:
    patterns = torch.arange(65536).to(torch.uint16).view(torch.float16)
    assert quantize_4bit(patterns, "nf4", 64).nonfinite == 65536 - 63488


def test_another_byte_order_is_refused() -> None:
    with pytest.raises(ValueError, match="weight must be"):
        fourbit.quantize_4bit(np.ones(128, ">f2"), "nf4", 64)


def test_parts_of_whole_blocks_are_the_whole() -> None:
    weight = random_weight(4 * 640, torch.bfloat16)
    whole = quantize_4bit(weight, "nf4", 64)
    parts = [quantize_4bit(each, "nf4", 64) for each in weight.split(640)]
    assert torch.equal(torch.cat([each.packed for each in parts]), whole.packed)
    assert torch.equal(torch.cat([each.absmax for each in parts]), whole.absmax)


def test_threads_do_not_disturb_each_other() -> None:
    weights = [random_weight(100_001, torch.float16, seed) for seed in range(8)]
    expected = [quantize_4bit(weight, "nf4", 64) for weight in weights]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda weight: quantize_4bit(weight, "nf4", 64), weights))
    for one, other in zip(results, expected, strict=True):
        assert torch.equal(one.packed, other.packed)
        assert torch.equal(one.absmax, other.absmax)


def test_nothing_is_quantized_to_nothing() -> None:
    result = quantize_4bit(torch.empty(0, dtype=torch.float16), "nf4", 64)
    assert result.packed.shape == (0,)
    assert result.absmax.shape == (0,)
    assert result.nonfinite == 0


def bad_calls() -> dict[str, dict[str, object]]:
    good: Array = np.zeros(128, np.float16)
    return {
        "matrix": {"weight": good.reshape(2, 64)},
        "strided": {"weight": good[::2]},
        "float64": {"weight": good.astype(np.float64)},
        "integers": {"weight": good.astype(np.int16)},
        "quant type": {"weight": good, "quant_type": "int4"},
        "block size": {"weight": good, "block_size": 48},
    }


@pytest.mark.parametrize("name", bad_calls())
def test_bad_arguments_are_refused(name: str) -> None:
    arguments = {"quant_type": "nf4", "block_size": 64} | bad_calls()[name]
    with pytest.raises(ValueError, match=name.split(maxsplit=1)[0] if " " in name else "weight"):
        fourbit.quantize_4bit(**arguments)


@pytest.mark.parametrize(
    ("part", "given"),
    [
        ("packed", np.zeros(64, np.int8)),
        ("packed", np.zeros(63, np.uint8)),
        ("packed", np.zeros(128, np.uint8)[::2]),
        ("absmax", np.zeros(2, np.float64)),
        ("absmax", np.zeros(1, np.float32)),
    ],
)
def test_parts_that_are_none_are_refused(part: str, given: Array) -> None:
    parts = {"packed": np.zeros(64, np.uint8), "absmax": np.zeros(2, np.float32), part: given}
    with pytest.raises(ValueError, match=f"{part} must be"):
        fourbit.dequantize_4bit(**parts, quant_type="nf4", block_size=64, count=128)


def decoded(quantized: FourBit, quant_type: str, block_size: int, count: int) -> Tensor:
    return dequantize_4bit(quantized.packed, quantized.absmax, quant_type, block_size, count)


@each_block
@each_type
def test_dequantize(quant_type: str, block_size: int) -> None:
    """Equal in value; bitsandbytes' paths disagree about the sign of FP4's second zero."""
    for count in (4 * 4096, 2 * 4096 + 38, 4096 + 77, 1):
        weight = random_weight(count, torch.float32, seed=count)
        packed, state = bnb.quantize_4bit(weight, blocksize=block_size, quant_type=quant_type)
        # bitsandbytes compiles its fallback for odd lengths, which takes a minute and a
        # C++ compiler; the same code runs eagerly.
        with torch.compiler.set_stance("force_eager"):
            expected = bnb.dequantize_4bit(packed, state).view(-1)
        quantized = quantize_4bit(weight, quant_type, block_size)
        assert torch.equal(decoded(quantized, quant_type, block_size, count), expected), count


@each_type
def test_decoding_finds_the_nearest_code(quant_type: str) -> None:
    """Without the oracle: no other code is closer to the scaled weight."""
    weight = random_weight(64 * 64, torch.float32, seed=9)
    quantized = quantize_4bit(weight, quant_type, 64)
    error = (decoded(quantized, quant_type, 64, weight.numel()) - weight).abs()
    code = code_of(quant_type)
    candidates = code.view(16, 1, 1) * quantized.absmax.view(1, 64, 1)
    best = (candidates - weight.view(1, 64, 64)).abs().amin(0).view(-1)
    assert (error <= best + 1e-7).all()


@each_type
def test_swapped_nibbles_are_noticed(quant_type: str) -> None:
    weight = random_weight(640, torch.float16, seed=4)
    quantized = quantize_4bit(weight, quant_type, 64)
    swapped = FourBit(quantized.packed << 4 | quantized.packed >> 4, quantized.absmax, 0)
    values = decoded(quantized, quant_type, 64, 640)
    assert not torch.equal(decoded(swapped, quant_type, 64, 640), values)
    pairs = decoded(swapped, quant_type, 64, 640).view(-1, 2)
    assert torch.equal(pairs.flip(1).reshape(-1), values)
