"""On CUDA too, every tensor is what transformers + bitsandbytes writes on the same device."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny import CONFIGS, write_source

sys.path.append(str(Path(__file__).resolve().parents[1] / "oracle"))

from test_bnb_identity import RECIPES, assert_identical, load_all, oracle

from quantkit import convert
from quantkit.conversion import run
from quantkit.planning import make_plan
from quantkit.recipe import load_recipe
from quantkit.registry import checksums
from quantkit.resources import demo_model
from quantkit.source import open_source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_tensor_is_the_oracles_on_cuda(tmp_path: Path, model_type: str, recipe: str) -> None:
    source = write_source(tmp_path / "s", model_type, torch.float16)
    loaded = load_recipe(recipe)
    opened, ours = open_source(source), tmp_path / "ours"
    ours.mkdir()
    run(make_plan(opened, loaded), opened, loaded, checksums(), ours, device="cuda")
    theirs = oracle(source, loaded, tmp_path / "theirs", device="cuda")
    assert_identical(load_all(ours), load_all(theirs))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_gate_passes_on_cuda(tmp_path: Path, recipe: str) -> None:
    manifest = convert(
        demo_model(), recipe, tmp_path / "out", device="cuda", text=demo_model() / "heldout.txt"
    )
    assert manifest["gate"]["status"] == "passed"
    assert manifest["conversion"]["device"] == "cuda"
