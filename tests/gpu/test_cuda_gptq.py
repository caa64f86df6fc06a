"""GPTQ on a CUDA device: its own loop, where activations lie, and whole conversions."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from quantkit import activations, convert, layerwise
from quantkit.activations import Activations, Nearby
from quantkit.kernels import rounding
from quantkit.kernels.grid import Grid
from quantkit.kernels.rounding import Block
from quantkit.resources import demo_model
from quantkit.types import Event, Listener, silent

#: Two bits are no use, but stored and decoded all the same.
LAX = [
    "gate.max_weight_error=1.0",
    "gate.max_perplexity_ratio=1e9",
    "gate.max_kl_mean=1e9",
    "gate.min_top1_agreement=0.0",
]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def block(count: int, groups: torch.Tensor, *, known: bool) -> Block:
    random = torch.Generator().manual_seed(count)
    passing = (torch.randn(count, count, generator=random) * 0.1).triu().fill_diagonal_(1.0)
    scales = (torch.rand(200, 12, generator=random) * 0.02 + 0.005).half().float()
    return Block(
        weights=(torch.randn(200, count, generator=random) * 0.05).cuda(),
        passing=passing.cuda(),
        cost=(torch.rand(count, generator=random) + 0.1).cuda(),
        groups=groups.cuda(),
        scales=scales.cuda(),
        zero_points=torch.full_like(scales, 8.0).cuda(),
        known=known,
    )


def both(count: int, groups: torch.Tensor, grid: Grid, *, known: bool = False):
    rounding_cuda = pytest.importorskip("quantkit.kernels.rounding_cuda")
    one, other = block(count, groups, known=known), block(count, groups, known=known)
    return one, rounding.round_block(one, grid), other, rounding_cuda.round_block(other, grid)


@pytest.mark.parametrize(
    ("bits", "group", "sym", "search"),
    itertools.product((2, 3, 4, 8), (16, 32, 64, 128), (False, True), (False, True)),
)
def test_the_compiled_loop_gives_the_codes_of_torch(bits, group, sym, search) -> None:
    grid = Grid(bits, group, sym, search, least_zero=1)
    one, (codes, errors, losses), other, made = both(128, torch.arange(128) // group + 2, grid)
    assert (made[0] == codes).float().mean() > 0.99
    assert (other.scales == one.scales).float().mean() > 0.99
    assert float(made[2].sum()) == pytest.approx(
        float(losses.sum()), rel=0.02 if bits == 8 else 2e-3
    )
    same = (made[0] == codes).all(1) & (other.scales == one.scales).all(1)
    assert same.float().mean() > 0.5
    assert (made[1] - errors)[same].abs().max() < 1e-5


@pytest.mark.parametrize("count", [128, 96, 32])
def test_scales_that_are_known_are_taken(count: int) -> None:
    groups = torch.randint(0, 12, (count,), generator=torch.Generator().manual_seed(0))
    grid = Grid(4, 32, sym=True, search=True, static=True)
    _, (codes, errors, losses), _, made = both(count, groups, grid, known=True)
    assert (made[0] == codes).float().mean() > 0.999
    same = (made[0] == codes).all(1)
    assert (made[1] - errors)[same].abs().max() < 1e-5
    assert torch.allclose(made[2][same], losses[same], rtol=1e-4)


@pytest.mark.parametrize(("device", "host"), [(1 << 30, 0), (0, 1 << 30), (0, 0), (5000, 3000)])
def test_activations_come_back_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: int, host: int
) -> None:
    monkeypatch.setattr(activations, "DEVICE_BYTES", device)
    near = Nearby(torch.device("cuda"))
    near._left["host"] = host
    lengths = [3, 7, 5, 9, 4, 2]
    wanted = [torch.randn(1, each, 64) for each in lengths]
    with Activations(lengths, 64, torch.float32, tmp_path, nearby=near) as states:
        for turn in range(3):  # written over, too, and what was begun of it thrown away
            for at, each in enumerate(wanted):
                states[at] = each.cuda() if turn == 2 else torch.randn_like(each).cuda()
                states[max(0, at - 1)]
        assert all(torch.equal(states[at].cpu(), each) for at, each in enumerate(wanted))
        assert states.spilled == (device + host < 4 * 64 * sum(lengths))


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["method.desc_act=true", "method.group_order=false"],
        ["method.sym=false", "method.true_sequential=false"],
        ["method.static_groups=true", "method.error_feedback=0.0"],
        ["method.bits=3", "method.group_size=32", "gate.max_weight_error=0.3"],
        ["method.group_size=-1", "method.bits=8"],
        ["method.bits=2", "method.group_size=16", *LAX],
    ],
    ids=lambda changes: " ".join(changes[:2]) or "as it is",
)
def test_the_gate_passes_on_cuda(tmp_path: Path, changes: list[str]) -> None:
    manifest = convert(
        demo_model(), "gptq-4bit-g128", tmp_path / "out", device="cuda",
        text=demo_model() / "heldout.txt",
        set=["method.group_size=64", "calibration.samples=16", "calibration.length=256", *changes],
    )  # fmt: skip
    assert manifest["gate"]["status"] == "passed"
    assert manifest["conversion"]["device"] == "cuda"


def small(out: Path, listener: Listener = silent) -> bytes:
    convert(
        demo_model(), "gptq-4bit-g128", out, device="cuda", no_gate=True, overwrite=True,
        set=["method.group_size=64", "calibration.samples=16", "calibration.length=256"],
        listener=listener,
    )  # fmt: skip
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("host", [1 << 40, 600_000, 0])
def test_where_activations_lie_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: int
) -> None:
    plain = small(tmp_path / "plain")
    monkeypatch.setattr(activations, "DEVICE_BYTES", 0)
    monkeypatch.setattr(activations, "free_memory", lambda: 4 * host)
    assert small(tmp_path / "out") == plain


def test_on_tensor_cores_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "TENSOR_CORES_FROM", 0)
    manifest = convert(
        demo_model(), "gptq-4bit-g128", tmp_path / "out", device="cuda",
        text=demo_model() / "heldout.txt", set=["method.group_size=64"],
    )  # fmt: skip
    assert manifest["gate"]["status"] == "passed"


def test_a_run_that_was_stopped_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    plain = small(tmp_path / "plain")
    seen = []

    def stop(event: Event) -> None:
        seen.append(event)
        if event.stage == "calibrate" and event.done > event.total * 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "out", stop)
    seen.clear()
    assert small(tmp_path / "out", seen.append) == plain
    assert any(each.stage == "resume" for each in seen)
