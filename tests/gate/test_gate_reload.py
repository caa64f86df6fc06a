"""The measure of a weight, on single modules: what is off by how little is seen."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes import nn as library
from torch import Tensor, nn

from quantkit.gate import reload
from quantkit.gate.reload import WeightError, weight_errors

#: Four bits of the code that stands for the largest value, and of its neighbour's.
WIDEST = {"nf4": (15, 14), "fp4": (3, 2)}


def quantized(kind: str, wanted: Tensor) -> nn.Module:
    if kind == "int8":
        layer = library.Linear8bitLt(wanted.shape[1], wanted.shape[0], has_fp16_weights=False)
        layer.weight = library.Int8Params(wanted.half(), requires_grad=False).to("cpu")
    else:
        layer = library.Linear4bit(wanted.shape[1], wanted.shape[0], quant_type=kind)
        made = library.Params4bit(
            wanted.clone(), False, blocksize=64, quant_type=kind, compress_statistics=False
        )
        layer.weight = made.to("cpu")
    return layer


def errors(saved: nn.Module, reference: nn.Module) -> list[WeightError]:
    names = [f"layers.3.{name}" for name, _ in reference.named_parameters()]
    opened = SimpleNamespace(
        architecture=SimpleNamespace(parameters=dict.fromkeys(names)),
        is_quantized=lambda name: True,
        is_transposed=lambda name: False,
        method="bitsandbytes",
    )
    pieces = (nn.ModuleDict({"dense": each}) for each in (saved, reference))
    return weight_errors(*pieces, "layers.3.", opened)  # type: ignore[arg-type]


def linear(wanted: Tensor) -> nn.Linear:
    layer = nn.Linear(wanted.shape[1], wanted.shape[0])
    layer.weight = nn.Parameter(wanted)
    return layer


def drawn(rows: int = 64, columns: int = 64) -> Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    values[:, 0] = 5.0  # the first of each block, stored as the code of the largest
    return values


@pytest.mark.parametrize("kind", WIDEST)
def test_one_code_off_by_one_is_seen(kind: str) -> None:
    """Where the codes lie furthest apart, one among thousands."""
    reference = linear(drawn())
    saved = quantized(kind, reference.weight.data)
    saved.bias = reference.bias
    good, bias = errors(saved, reference)
    assert (good.name, good.fits, good.table) == ("layers.3.dense.weight", True, True)
    assert bias == WeightError("layers.3.dense.bias", equal=True)
    largest, next_to_it = WIDEST[kind]
    packed = saved.weight.data.view(-1)
    assert int(packed[0]) >> 4 == largest
    packed[0] = next_to_it << 4 | int(packed[0]) & 15
    bad = errors(saved, reference)[0]
    assert bad.block > 1.3
    assert bad.relative < 0.2
    assert not bad.fits


def test_one_code_of_int8_off_by_three_is_seen() -> None:
    reference = linear(drawn())
    saved = quantized("int8", reference.weight.data)
    assert errors(saved, reference)[0].fits
    saved.weight.data[5, 7] += 3 if saved.weight.data[5, 7] < 0 else -3
    bad = errors(saved, reference)[0]
    assert bad.block > 1.3
    assert bad.relative < 0.1


def test_a_module_of_zeros_is_right_only_as_zeros() -> None:
    reference = linear(torch.zeros(64, 64))
    saved = quantized("nf4", torch.zeros(64, 64))
    assert errors(saved, reference)[0] == WeightError("layers.3.dense.weight")
    assert errors(quantized("nf4", drawn()), reference)[0].block == inf  # no share of nothing


def test_no_number_is_infinitely_wrong() -> None:
    reference = linear(drawn())
    saved = quantized("nf4", reference.weight.data)
    saved.weight.quant_state.absmax[3] = torch.nan
    found = errors(saved, reference)[0]
    assert (found.relative, found.block) == (inf, inf)


def test_a_weight_of_another_shape_is_infinitely_wrong() -> None:
    """Also where the two could be subtracted."""
    found = errors(quantized("nf4", drawn(1)), linear(drawn()))[0]
    assert (found.relative, found.block) == (inf, inf)


def test_the_last_block_may_be_short() -> None:
    """70 elements are a block of 64 and one of six, whose error is its own."""
    weight = torch.ones(10, 7)
    wrong = weight.clone()
    wrong[-1, -1] = 0.0
    for peaks, block in ((True, 1.0), (False, (1 / 6) ** 0.5)):
        found = reload._error("w", reload._Decoded(wrong, 64, 0.5, peaks=peaks), weight)
        assert found.block == pytest.approx(block / 0.5)
        assert found.relative == pytest.approx((1 / 70) ** 0.5)


@pytest.mark.parametrize("at", [0, 4, 9])
def test_a_kept_weight_is_compared_to_its_end(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setattr(reload, "_AT_ONCE", 4)
    wanted = torch.arange(10.0)
    got = wanted.half()
    assert reload._same(got, wanted)
    got[at] += 1
    assert not reload._same(got, wanted)


def test_a_kept_weight_of_another_shape_or_none_is_wrong() -> None:
    assert not reload._same(torch.zeros(2, 3), torch.zeros(3, 2))
    reference = nn.LayerNorm(4)
    assert errors(nn.LayerNorm(4, bias=False), reference) == [
        WeightError("layers.3.dense.weight", equal=True),
        WeightError("layers.3.dense.bias", equal=False),
    ]


def test_what_is_not_in_memory_with_a_piece_is_left_to_another() -> None:
    assert errors(nn.LayerNorm(4), nn.LayerNorm(4, device="meta")) == []


def test_a_librarys_own_decoding_is_taken_first() -> None:
    """GPTQModel's module gives (in, out)."""
    module = SimpleNamespace(dequantize_weight=lambda: torch.ones(2, 3, dtype=torch.float16))
    opened = SimpleNamespace(load=None)
    for transposed in (False, True):
        found = reload._decoded_weight("w", module, None, opened, transposed=transposed)
        assert (found.shape, found.dtype) == ((3, 2), torch.float32)
    plain = torch.ones(2, 3, dtype=torch.float16)
    for transposed, shape in ((False, (2, 3)), (True, (3, 2))):
        found = reload._decoded_weight("w", nn.Module(), plain, opened, transposed=transposed)
        assert (found.shape, found.dtype) == (shape, torch.float32)


def test_a_module_that_the_library_left_alone_is_compared_as_it_is() -> None:
    saved = library.Linear4bit(64, 64, quant_type="nf4")
    reference = linear(saved.weight.data.clone())
    assert errors(saved, reference)[0] == WeightError("layers.3.dense.weight", equal=True)
    reference.weight.data[-1, -1] += 1
    assert errors(saved, reference)[0] == WeightError("layers.3.dense.weight", equal=False)


def test_a_block_whose_scale_is_quantized_too_has_more_room() -> None:
    wanted = linear(drawn())
    simple, nested = quantized("nf4", wanted.weight.data), library.Linear4bit(64, 64)
    made = library.Params4bit(wanted.weight.data.clone(), False, blocksize=64, quant_type="nf4")
    nested.weight = made.to("cpu")
    assert nested.weight.quant_state.nested
    once, twice = (errors(each, wanted)[0].block for each in (simple, nested))
    assert twice == pytest.approx(once * 0.2 / 0.5, rel=0.2)
