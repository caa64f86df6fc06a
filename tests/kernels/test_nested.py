"""Double quantization's absmax against bitsandbytes' compiled library, bit for bit."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import Tensor
from torchwise import dequantize_absmax, quantize_absmax

from quantkit.elements import to_torch
from quantkit.kernels import nested
from quantkit.kernels.loops.nested import nearest_step
from quantkit.kernels.nested import NestedAbsmax, dynamic_map

DYNAMIC_MAP = to_torch(dynamic_map())


def codes_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel alone, without the mean: codes and nested absmax."""
    codes = torch.empty(values.shape, dtype=torch.uint8)
    peaks = torch.empty(-(-values.numel() // 256))
    table = nested.step_codes()
    nested._QUANTIZE_BLOCKS(values.numpy(), table, 256, codes.numpy(), peaks.numpy())
    return codes, peaks


def differs(values: Tensor) -> str | None:
    codes, peaks = codes_of(values)
    expected, state = bnb.quantize_blockwise(values, blocksize=256)
    if not torch.equal(codes, expected):
        return "codes"
    return None if torch.equal(peaks.view(torch.int32), state.absmax.view(torch.int32)) else "peaks"


def blocks_with_peak(values: Tensor, peak: float) -> Tensor:
    """``values``, at most ``peak`` in magnitude, in blocks of 256 that begin with ``peak``."""
    padded = torch.nn.functional.pad(values, (0, -values.numel() % 255)).view(-1, 255)
    return torch.cat((torch.full((padded.shape[0], 1), peak), padded), 1).reshape(-1)


def random(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def neighbours(values: Tensor) -> Tensor:
    up = torch.nextafter(values, torch.full_like(values, 9.0))
    down = torch.nextafter(values, torch.full_like(values, -9.0))
    return torch.cat((down, values, up)).clamp(-1, 1)


def test_map_is_bitsandbytes() -> None:
    expected = bnb.create_dynamic_map()
    assert torch.equal(DYNAMIC_MAP.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("seed", range(4))
def test_a_million_values(seed: int) -> None:
    values = random(1 << 20, seed)
    assert differs(values * 0.01) is None
    assert differs(values**5) is None, "most of these are in the small decades"


def test_uniform_values_and_tails() -> None:
    generator = torch.Generator().manual_seed(5)
    values = torch.rand(300_000, generator=generator) * 2 - 1
    for count in (300_000, 257, 256, 255, 2, 1):
        assert differs(values[:count]) is None, count


def test_codes_and_midpoints_and_their_neighbours() -> None:
    midpoints = (DYNAMIC_MAP[:-1] + DYNAMIC_MAP[1:]) / 2
    values = neighbours(neighbours(torch.cat((DYNAMIC_MAP, midpoints))))
    for peak in (1.0, -1.0, 0.7, 3e-3, 1e-30):
        assert differs(blocks_with_peak(values * abs(peak), peak)) is None, peak


def test_every_step_and_every_edge_between_steps() -> None:
    """Each of the table's 65536 entries, and both sides of where one ends."""
    steps = torch.arange(65536, dtype=torch.float64)
    centres = (steps / 32767.5 - 1).float()
    edges = ((steps[:-1] + 0.5) / 32767.5 - 1).float()
    reached = {nearest_step.py_func(value) for value in centres[::997].numpy()}
    assert reached == set(range(0, 65536, 997))
    for values in (centres, edges):
        assert differs(blocks_with_peak(neighbours(neighbours(values)), 1.0)) is None


@pytest.mark.parametrize(("low", "spacing"), [(0.0, 2.0**-24), (0.5, 2.0**-24), (1.0, 2.0**-23)])
def test_every_share_exhaustively(low: float, spacing: float) -> None:
    """All float32 that scaled value + 1 can be, from ``low`` on: 2**23 of them each."""
    sums = low + torch.arange(1 << 23, dtype=torch.float32) * spacing
    values = sums - 1
    assert torch.equal(values + 1, sums)
    assert differs(blocks_with_peak(values, 1.0)) is None


def test_a_wrong_table_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest code, which the library does not look for, is not the same."""
    values = blocks_with_peak((torch.arange(65536) / 32767.5 - 1).float(), 1.0)
    assert differs(values) is None
    table = nested.step_codes().copy()
    table[40_000] += 1
    monkeypatch.setattr(nested, "step_codes", lambda: table)
    assert differs(values) == "codes"


def test_the_library_does_not_look_for_the_nearest() -> None:
    """Why this kernel has a table. Should this fail, bitsandbytes has changed."""
    values = blocks_with_peak(random(10_000, 3).clamp(-1, 1), 1.0)
    midpoints = (DYNAMIC_MAP[:-1] + DYNAMIC_MAP[1:]) / 2
    nearest = torch.bucketize(values, midpoints).to(torch.uint8)
    expected, _ = bnb.quantize_blockwise(values, blocksize=256)
    assert not torch.equal(nearest, expected)


def test_zeros_constants_and_extremes() -> None:
    for magnitude in (0.0, -0.0, 1.0, -1.0, 3.4e38, 1e-38, -1e-40, 1.5e-45):
        for count in (1, 256, 300):
            assert differs(torch.full((count,), magnitude)) is None, (magnitude, count)
    for scale in (1e38, 1e-38, 1e-40):
        values = random(1000, 4).clamp(-3, 3) * scale
        values[5] = 0.0
        assert differs(values) is None, scale


def assert_same_absmax(absmax: Tensor) -> None:
    """``quantize_absmax`` against what quantize_4bit does with ``compress_statistics``."""
    ours = quantize_absmax(absmax)
    offset = absmax.mean()
    codes, state = bnb.quantize_blockwise(absmax - offset, blocksize=256)
    assert ours.offset.dtype == "float32"
    assert ours.offset == offset.item()
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.nested_absmax.view(torch.int32), state.absmax.view(torch.int32))


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 5000, 100_000])
def test_absmax(count: int) -> None:
    assert_same_absmax(random(count, count).abs() * 0.1)


def test_equal_absmax_leave_nothing_to_quantize() -> None:
    absmax = torch.full((300,), 0.5)
    assert_same_absmax(absmax)
    result = quantize_absmax(absmax)
    assert result.nested_absmax.count_nonzero() == 0
    assert result.codes.count_nonzero() == 0
    assert torch.equal(decoded(result), absmax)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_a_whole_weight(quant_type: str, threads: int) -> None:
    """bitsandbytes' double quantization from the weight on, at either number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weight = (random(64 * 40_000, 2) * 0.02).half()
        plain = bnb.quantize_4bit(weight, quant_type=quant_type)[1]
        state = bnb.quantize_4bit(weight, quant_type=quant_type, compress_statistics=True)[1]
        ours = quantize_absmax(plain.absmax)
    finally:
        torch.set_num_threads(before)
    assert ours.offset == state.offset.item()
    assert torch.equal(ours.codes, state.absmax)
    assert torch.equal(ours.nested_absmax.view(torch.int32), state.state2.absmax.view(torch.int32))


def decoded(quantized: NestedAbsmax) -> Tensor:
    return dequantize_absmax(quantized.codes, quantized.nested_absmax, quantized.offset)


@pytest.mark.parametrize("count", [1, 255, 256, 5000])
def test_dequantize(count: int) -> None:
    quantized = quantize_absmax(random(count, count).abs())
    expected = bnb.dequantize_blockwise(
        quantized.codes, absmax=quantized.nested_absmax, code=DYNAMIC_MAP, blocksize=256
    )
    expected += float(quantized.offset)
    assert torch.equal(decoded(quantized).view(torch.int32), expected.view(torch.int32))


def test_decoding_is_close() -> None:
    """Without the oracle: within half the widest gap between codes, and noticed if shifted."""
    absmax = random(5000, 6).abs()
    quantized = quantize_absmax(absmax)
    tolerance = quantized.nested_absmax.repeat_interleave(256)[:5000] * 0.0071
    assert ((decoded(quantized) - absmax).abs() <= tolerance).all()
    shifted = NestedAbsmax(quantized.codes ^ 8, quantized.nested_absmax, quantized.offset)
    assert ((decoded(shifted) - absmax).abs() > tolerance).any()


def test_empty_and_bad_arguments() -> None:
    assert quantize_absmax(torch.empty(0)).codes.shape == (0,)
    for absmax in (torch.zeros(4, 4), torch.zeros(4, dtype=torch.float16)):
        with pytest.raises(ValueError, match="1-D float32"):
            quantize_absmax(absmax)
