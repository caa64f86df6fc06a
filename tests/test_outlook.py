"""What is told of long work before it begins: counted as torch counts it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import CONFIGS, build, write_source
from torch.utils.flop_counter import FlopCounterMode

import quantkit
from quantkit import outlook
from quantkit.gate import field
from quantkit.types import Event

TOKENS = 24
QUICK = ["evaluation.window=64", "evaluation.max_windows=3", "evaluation.new_tokens=1"]


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_the_gates_operations_are_those_of_two_passes(model_type: str, tmp_path: Path) -> None:
    write_source(tmp_path, model_type)
    made = quantkit.plan(tmp_path, "bnb-nf4")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build(model_type, torch.float32)(torch.zeros(1, TOKENS, dtype=torch.long))
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for kind, n in counted.items() if str(kind) in {"aten.mm", "aten.addmm"})
    assert outlook.gate_operations(made, TOKENS) == 2 * products


def test_a_calibrations_operations_are_pass_hessians_factors_and_updates(tmp_path: Path) -> None:
    write_source(tmp_path)
    made = quantkit.plan(tmp_path, "gptq-4bit-g128", set=["method.group_size=32"])
    wanted = 0
    for rows, columns in [(192, 64), (64, 64), (128, 64), (64, 128)] * 2:
        wanted += 2 * rows * columns * TOKENS + columns**2 * TOKENS + rows * columns**2
    factors = 2 * (3 * 64**3 + 128**3) // 3
    assert outlook.calibration_operations(made, TOKENS) == wanted + factors


def test_the_tokens_are_those_that_the_gate_scores(demo: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outlook, "WORTH_SAYING", 0.0)
        patch.setattr(outlook, "_FEW", 1)
        made = quantkit.convert(
            demo, "bnb-nf4", tmp_path / "out", set=QUICK, listener=lambda each: keep(told, each)
        )
    said = next(each for each in told if "of arithmetic alone" in each)
    tokens = re.search(r"gate \(([\d,]+) tokens", said)
    assert tokens is not None
    windows = int(tokens[1].replace(",", "")) - made["gate"]["perplexity"]["tokens"]
    assert windows == 3  # a window's first token is not predicted
    assert "calibration" not in said


@pytest.mark.parametrize("recipe", ["bnb-nf4", "gptq-4bit-g128"])
def test_a_gate_that_cannot_hold_whole_models_is_foretold(
    recipe: str, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(field, "free_memory", lambda: 0)
    rules = [*QUICK]
    if recipe != "bnb-nf4":
        rules += ["calibration.samples=4", "calibration.length=64", "gate.min_top1_agreement=0.0"]
    made = quantkit.convert(
        demo, recipe, tmp_path / "out", set=rules, listener=lambda each: keep(told, each)
    )
    assert made["gate"]["levels"]["generation"] == "not_run"
    assert [each for each in told if "generation" in each and "will not be run" in each]


def test_of_short_work_nothing_is_said(demo: Path, tmp_path: Path) -> None:
    told: list[str] = []
    quantkit.convert(
        demo, "bnb-nf4", tmp_path / "out", set=QUICK, listener=lambda each: keep(told, each)
    )
    assert told
    assert not [each for each in told if "of arithmetic alone" in each or "will not be" in each]


def keep(told: list[str], event: Event) -> None:
    if event.message:
        told.append(event.message)


@pytest.mark.parametrize(
    ("seconds", "said"), [(61.0, "1 min"), (5399.0, "90 min"), (5400.0, "1.5 h"), (17359, "4.8 h")]
)
def test_times_are_spoken(seconds: float, said: str) -> None:
    assert outlook.spoken(seconds) == said
