"""The GPTQ kernel against a plain reading of the paper, written here, and its edge cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quantkit.kernels import rounding, rounding_cpu
from quantkit.kernels.gptq import make_good, quantize
from quantkit.kernels.grid import Grid
from quantkit.kernels.hessian import (
    accumulate,
    factor_upper,
    factorize,
    mirror,
    permute,
    visiting_order,
)
from quantkit.kernels.rounding import float16_scale

ROWS, COLUMNS, TOKENS, DAMP = 192, 256, 700, 0.05

COMBINATIONS = list(
    itertools.product((2, 3, 4, 8), (16, 32, 64, 128, -1), (False, True), (False, True))
)


def plain_reading(
    weight: Tensor, hessian: Tensor, bits: int, group: int, desc_act: bool, sym: bool
):
    """arXiv 2210.17323, Algorithm 1 in float64 without its blocks: one column after another.

    Returns the integers in the source's column order, and the loss.
    """
    left, hessian = weight.double().clone(), hessian.double().clone()
    columns, top = left.shape[1], 2**bits - 1
    order = torch.arange(columns)
    if desc_act:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    left, hessian = left[:, order], hessian[order][:, order]
    hessian += torch.eye(columns, dtype=torch.float64) * DAMP * hessian.diagonal().mean()
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    integers, loss = torch.zeros_like(left), 0.0
    for at in range(columns):
        if at % group == 0:
            here = left[:, at : at + group]
            low, high = here.amin(1).clamp(max=0), here.amax(1).clamp(min=0)
            if sym:
                high = torch.maximum(-low, high)
                low = -high
            scale = ((high - low) / top).half().double()
            zero = torch.full_like(scale, 2 ** (bits - 1))
            if not sym:
                zero = torch.round(-low / scale).clamp(0, top)
        integer = (torch.round(left[:, at] / scale) + zero).clamp(0, top)
        error = (left[:, at] - scale * (integer - zero)) / upper[at, at]
        left[:, at:] -= error[:, None] * upper[at, at:][None]
        integers[:, at] = integer
        loss += float(error.square().sum())
    return integers[:, torch.argsort(order)], loss


@pytest.fixture(scope="module")
def layer() -> tuple[Tensor, Tensor]:
    """A random weight and the Hessian of correlated random inputs, both float64."""
    random = torch.Generator().manual_seed(7)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=random, dtype=torch.float64)
    inputs = torch.randn(TOKENS, COLUMNS, generator=random, dtype=torch.float64)
    inputs += inputs @ mixing * 0.1
    weight = torch.randn(ROWS, COLUMNS, generator=random, dtype=torch.float64) * 0.05
    return weight, inputs.T @ inputs


def made(weight, hessian, bits, group, desc_act, sym, *, search=False, grouped=False):
    group = weight.shape[1] if group == -1 else group
    order = "diagonal" if desc_act else "grouped" if grouped else "source"
    factor = factorize(hessian.clone(), DAMP, order, group)
    return quantize(weight, factor, Grid(bits, group, sym, search))


@pytest.mark.parametrize(("bits", "group", "desc_act", "sym"), COMBINATIONS)
def test_the_integers_of_the_paper_in_float64(layer, bits, group, desc_act, sym) -> None:
    weight, hessian = layer
    wanted, loss = plain_reading(
        weight, hessian, bits, COLUMNS if group == -1 else group, desc_act, sym
    )
    got = made(weight, hessian, bits, group, desc_act, sym)
    assert torch.equal(got.codes.double(), wanted)
    assert got.loss == pytest.approx(loss, rel=1e-9)


def test_the_integers_of_the_paper_in_float32(layer) -> None:
    """The order of sums decides a few: at least 99.95 % agree, and losses to 0.1 %.

    Where a group's range tips its float16 scale to the next one, all of that group differs.
    """
    weight, hessian = layer
    same, total = 0, 0
    for bits, group, desc_act, sym in COMBINATIONS:
        own = COLUMNS if group == -1 else group
        wanted, loss = plain_reading(weight, hessian, bits, own, desc_act, sym)
        got = made(weight, hessian.float(), bits, group, desc_act, sym)
        agreeing = int((got.codes.double() == wanted).sum())
        assert agreeing >= 0.998 * wanted.numel()
        assert got.loss == pytest.approx(loss, rel=1e-3)
        same, total = same + agreeing, total + wanted.numel()
    assert same >= 0.9995 * total


@pytest.fixture(scope="module")
def trained(demo: Path) -> list[tuple[Tensor, Tensor]]:
    """Weights of a trained layer, and the Hessians of the text that passes through it; float64."""
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
    layer = model.gpt_neox.layers[3]
    modules = [layer.attention.query_key_value, layer.mlp.dense_4h_to_h]
    hessians = [torch.zeros(each.in_features, each.in_features).double() for each in modules]

    def add(to: Tensor) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs = arguments[0][0].double()
            to.add_(inputs.T @ inputs)

        return hook

    for module, hessian in zip(modules, hessians, strict=True):
        module.register_forward_pre_hook(add(hessian))
    text = (demo / "heldout.txt").read_text(encoding="utf-8")
    ids = SentencePieceProcessor(model_file=str(demo / "spiece.model")).encode(text)
    with torch.inference_mode():
        for at in range(0, len(ids), 256):
            model(torch.tensor([ids[at : at + 256]]))
    return [(m.weight.detach().double(), h) for m, h in zip(modules, hessians, strict=True)]


def test_the_integers_of_the_paper_on_a_trained_layer(trained) -> None:
    """To the last one in float64; in float32 at least 99.9 % of them, and losses to 0.1 %."""
    same, total = 0, 0
    for (weight, hessian), (bits, group, desc_act, sym) in itertools.product(trained, COMBINATIONS):
        wanted, loss = plain_reading(
            weight, hessian, bits, weight.shape[1] if group == -1 else group, desc_act, sym
        )
        exact = made(weight, hessian, bits, group, desc_act, sym)
        assert torch.equal(exact.codes.double(), wanted)
        got = made(weight, hessian.float(), bits, group, desc_act, sym)
        assert got.loss == pytest.approx(loss, rel=1e-3)
        same += int((got.codes.double() == wanted).sum())
        total += wanted.numel()
    assert same >= 0.999 * total


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_torch_and_the_compiled_loop_agree(layer, bits, search, sym, monkeypatch) -> None:
    weight, hessian = layer
    compiled = made(weight, hessian, bits, 64, False, sym, search=search, grouped=True)
    monkeypatch.setattr(rounding_cpu, "round_block", rounding.round_block)
    torch_ = made(weight, hessian, bits, 64, False, sym, search=search, grouped=True)
    assert torch.equal(compiled.codes, torch_.codes)
    assert torch.equal(compiled.scales, torch_.scales)
    assert torch.equal(compiled.zero_points, torch_.zero_points)


def weighted(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    damped = hessian + torch.eye(COLUMNS, dtype=hessian.dtype) * DAMP * hessian.diagonal().mean()
    difference = weight - rounded
    return float((difference @ damped * difference).sum())


@pytest.mark.parametrize(("bits", "group"), itertools.product((2, 3, 4, 8), (32, 128)))
def test_never_worse_than_rounding_to_nearest_and_the_loss_is_true(layer, bits, group) -> None:
    weight, hessian = layer
    alone = factorize(torch.full_like(hessian, torch.nan), DAMP, "source", group)
    nearest = quantize(weight, alone, Grid(bits, group, True, False)).dequantized()
    for search, grouped in itertools.product((False, True), (False, True)):
        got = made(weight, hessian, bits, group, False, True, search=search, grouped=grouped)
        error = weighted(weight, got.dequantized(), hessian)
        assert error == pytest.approx(got.loss, rel=1e-6)
        assert error <= weighted(weight, nearest, hessian)


def test_a_search_lowers_the_loss(layer) -> None:
    weight, hessian = layer
    plain = made(weight, hessian, 4, 64, False, True)
    searched = made(weight, hessian, 4, 64, False, True, search=True)
    assert searched.loss < 0.9 * plain.loss
    assert bool((searched.scales < 0).any()), "negative scales are tried"


def test_a_hessian_that_does_not_factor_is_dampened_more() -> None:
    hessian = torch.ones(32, 32, dtype=torch.float64)  # of rank one
    hessian[0, 0] -= 0.5  # and not even positive
    factor = factorize(hessian.clone(), 0.001, "source", 32)
    assert factor.usable
    assert factor.damp_percent > 0.001


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_hessian_that_is_not_finite_means_rounding_to_nearest(layer, poison) -> None:
    weight, hessian = layer
    broken = hessian.clone()
    broken[3, 5] = poison
    factor = factorize(broken, DAMP, "source", 64)
    assert not factor.usable
    got = quantize(weight, factor, Grid(4, 64, True, False))
    error = (weight - got.dequantized()).abs()
    assert bool(
        (error <= 0.51 * got.scales.abs()[:, got.g_idx.long()] + 1e-9).double().mean() > 0.95
    )


def test_a_dead_input_leaves_its_column_rounded_to_nearest(layer) -> None:
    weight, hessian = layer
    hessian = hessian.clone()
    hessian[:, 9] = hessian[9, :] = 0
    factor = factorize(hessian.clone(), DAMP, "source", 64)
    assert factor.dead == 1
    got = quantize(weight, factor, Grid(8, 64, False, False))
    error = (weight - got.dequantized())[:, 9].abs()
    assert bool((error <= got.scales[:, 0] * 0.51).all())


def test_groups_keep_their_columns_when_ordered_inside() -> None:
    diagonal = torch.tensor([1.0, 4.0, 9.0, 2.0, 3.0, 8.0])
    assert visiting_order(diagonal, "grouped", 3).tolist() == [2, 1, 0, 5, 4, 3]
    assert visiting_order(diagonal, "diagonal", 3).tolist() == [2, 5, 1, 4, 3, 0]


def test_shuffled_groups_are_told_by_g_idx(layer) -> None:
    weight, hessian = layer
    shuffled = made(weight, hessian, 4, 64, True, True)
    assert shuffled.g_idx.tolist() != sorted(shuffled.g_idx.tolist())
    ordered = made(weight, hessian, 4, 64, False, True, grouped=True)
    assert ordered.g_idx.tolist() == [at // 64 for at in range(COLUMNS)]


def test_static_groups_are_the_sources_own(layer) -> None:
    weight, hessian = layer
    factor = factorize(hessian.clone(), DAMP, "diagonal", 64)
    got = quantize(weight, factor, Grid(4, 64, True, True, static=True))
    assert got.g_idx.tolist() == [at // 64 for at in range(COLUMNS)]


def test_halves_sum_the_upper_triangle() -> None:
    inputs = torch.randn(40, 1100, generator=torch.Generator().manual_seed(0))
    hessian = torch.zeros(1100, 1100)
    accumulate(hessian, inputs[:20])
    accumulate(hessian, inputs[20:])
    torch.testing.assert_close(hessian.triu(), (inputs.T @ inputs).triu(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7, 512, 1100])
def test_an_upper_factor_is_made_in_place(size) -> None:
    inputs = torch.randn(size, size + 9, generator=torch.Generator().manual_seed(1)).double()
    matrix = inputs @ inputs.T
    made = matrix.clone()
    assert factor_upper(made)
    upper = made.triu()
    torch.testing.assert_close(upper @ upper.T, matrix)
    assert torch.equal(made.tril(-1), matrix.tril(-1))


@pytest.mark.parametrize("place", [0, 300, 700])
def test_a_matrix_without_a_factor_can_be_restored(place) -> None:
    matrix = torch.eye(701, dtype=torch.float64) * 3 + 0.001
    matrix[place, place] = -1
    made = matrix.clone()
    assert not factor_upper(made)
    made.diagonal().copy_(matrix.diagonal())
    mirror(made.mT)
    assert torch.equal(made, matrix)


def test_rows_and_columns_are_put_in_order_in_place() -> None:
    matrix, order = torch.randn(1100, 1100), torch.randperm(1100)
    made = matrix.clone()
    permute(made, order)
    assert torch.equal(made, matrix[order][:, order])


@pytest.mark.parametrize("order", ["source", "diagonal", "grouped"])
def test_what_outputs_lack_is_made_good(layer, order) -> None:
    """Inputs that earlier rounding changed: the moved weight is ridge regression's."""
    weight, _ = layer
    random = torch.Generator().manual_seed(3)
    wanted = torch.randn(TOKENS, COLUMNS, generator=random, dtype=torch.float64)
    given = wanted + 0.1 * torch.randn(TOKENS, COLUMNS, generator=random, dtype=torch.float64)
    hessian, lacking = given.T @ given, ((wanted - given) @ weight.T).T @ given
    factor = factorize(hessian.clone(), DAMP, order, 64)
    damped = hessian + torch.eye(COLUMNS) * DAMP * hessian.diagonal().mean()
    expected = weight + torch.linalg.solve(damped, lacking.T).T
    moved = make_good(lacking, factor, 1.0)
    for group, static in ((64, False), (64, True), (COLUMNS, False)):
        grid = Grid(8, group, False, False, static)
        got, wanted_ = quantize(weight, factor, grid, moved), quantize(expected, factor, grid)
        assert torch.equal(got.codes, wanted_.codes)
        assert got.loss == pytest.approx(wanted_.loss, rel=1e-9)

    def distance(moved: Tensor) -> float:
        return float((wanted @ weight.T - given @ moved.T).norm())

    assert distance(got.dequantized()) < 0.9 * distance(weight)
    assert not make_good(lacking, factor, 0.0).any()


def test_nothing_is_made_good_by_a_hessian_of_no_use(layer) -> None:
    weight, hessian = layer
    factor = factorize(torch.full_like(hessian, torch.nan), DAMP, "source", 64)
    assert not make_good(weight, factor, 1.0).any()


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("loop", [rounding, rounding_cpu])
def test_a_row_whose_every_loss_overflows_has_no_finite_scale(loop, search) -> None:
    """So that it is refused; the rows beside it are rounded as they are without it."""
    weights, scales = torch.randn(200, 16, generator=torch.Generator().manual_seed(2)), []
    for large in (1.0, 1e25):
        given = weights.clone()
        given[3] *= large
        block = rounding.Block(
            given, torch.eye(16), torch.ones(16), torch.zeros(16, dtype=torch.int64),
            torch.ones(200, 1), torch.zeros(200, 1), known=False,
        )  # fmt: skip
        loop.round_block(block, Grid(4, 16, True, search))
        scales.append(block.scales[:, 0])
    usual, beside = scales
    assert torch.isinf(beside[3])
    others = torch.arange(200) != 3
    assert torch.equal(usual[others], beside[others])


def test_scales_are_float16_and_never_zero() -> None:
    scales = torch.tensor([0.0, 1e-12, -1e-12, 3e-8, 7.7e-6, 0.1, 333.3])
    rounded = float16_scale(scales)
    assert torch.equal(rounded.half().float(), rounded)
    assert bool((rounded != 0).all())
    compiled = [
        rounding_cpu._float16_scale(each, torch.zeros(1).numpy()) for each in scales.numpy()
    ]
    assert compiled == rounded.tolist()
