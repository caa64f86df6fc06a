"""A layer at a time: saved bytes in the library's own modules give the whole model's figures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Converted
from tiny import CONFIGS, write_source

import quantkit
from quantkit.gate.models import load_saved
from quantkit.gate.opened import open_saved
from quantkit.gate.runners import walk

WINDOWS = [[5, 9, 2, 40, 33, 7], [1, 2, 3, 4, 5, 6], [90, 11]]
FEW = [
    "evaluation.max_windows=3",
    "evaluation.new_tokens=2",
    'evaluation.prompts=["a"]',
    "gate.min_generation_agreement=0.0",
]
BY_LAYER = "evaluation.by_layer=true"


def judged(made: Converted, *more: str) -> dict:
    return quantkit.check(made.folder, made.source, text=made.text, set=[*FEW, *more])["gate"]


@pytest.mark.parametrize("kind", ["demo_nf4", "demo_int8"])
def test_the_figures_are_the_same_to_the_last_bit(kind: str, request) -> None:
    made = request.getfixturevalue(kind)
    whole, layered = judged(made), judged(made, BY_LAYER)
    assert whole["status"] == "passed"
    assert layered["status"] == "passed"
    for key in ("kl_divergence", "top1_agreement", "probability_change_rms", "noise_floor"):
        assert whole[key] == layered[key], key
    assert whole["reload"] == layered["reload"]
    for key in ("reference", "quantized", "ratio", "ratio_interval"):
        assert whole["perplexity"][key] == layered["perplexity"][key], key
    assert layered["levels"]["generation"] == "not_run"
    assert "one layer at a time" in layered["reasons"]["generation"]
    assert "one layer at a time" in layered["perplexity"]["protocol"]


def test_what_may_lie_on_a_cpu_is_quantized_there(demo_nf4: Converted, tmp_path: Path) -> None:
    """As in a whole model; transformers leaves it as it is where a device map names the CPU."""
    folder = shutil.copytree(demo_nf4.folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["llm_int8_enable_fp32_cpu_offload"] = True
    (folder / "config.json").write_text(json.dumps(config))
    made = replace(demo_nf4, folder=folder)
    assert judged(made, BY_LAYER)["levels"]["reload"] == "passed"


@pytest.mark.parametrize("recipe", ["bnb-nf4-double", "bnb-int8"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_saved_bytes_in_the_librarys_modules(tmp_path: Path, model_type: str, recipe: str) -> None:
    source = write_source(tmp_path / "source", model_type, torch.float16)
    folder = tmp_path / "out"
    quantkit.convert(source, recipe, folder, no_gate=True)
    opened = open_saved(folder)
    model = load_saved(opened, "cpu").model
    with walk(opened, WINDOWS, "cpu", tmp_path) as walked:
        for _ in walked.pieces():
            pass
        for at, ids in enumerate(WINDOWS):
            with torch.inference_mode():
                whole = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            assert torch.equal(walked.logits(at), whole)
