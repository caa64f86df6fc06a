"""The gate opens every architecture that quantkit converts, and finds its weights right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import CONFIGS, write_source

from quantkit import check, convert

OPEN = [
    "gate.min_top1_agreement=0.0",
    "gate.min_generation_agreement=0.0",
    "evaluation.new_tokens=4",
]  # random weights


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.json"
    generator = torch.Generator().manual_seed(0)
    path.write_text(json.dumps(torch.randint(0, 96, (3, 40), generator=generator).tolist()))
    return path


@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-int8", "fp16"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_good_conversion_passes(tmp_path: Path, ids: Path, model_type: str, recipe: str) -> None:
    source = write_source(tmp_path / "source", model_type, torch.float16)
    manifest = convert(source, recipe, tmp_path / "out", text=ids, set=OPEN)
    assert manifest["gate"]["failures"] == []
    assert manifest["gate"]["status"] == "passed"
    quantized = manifest["gate"]["reload"]["modules_quantized"]
    assert quantized == manifest["plan"]["tensors"]["quantize"]
    layered = ["evaluation.by_layer=true", *OPEN]
    again = check(tmp_path / "out", source, recipe=recipe, text=ids, set=layered)["gate"]
    assert again["failures"] == []
    assert again["status"] == "passed"
    for measure in ("kl_divergence", "top1_agreement", "noise_floor", "reload"):
        assert again[measure] == manifest["gate"][measure], measure
