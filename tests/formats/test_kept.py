"""What a format is told of the modules that stay as they are: some loaders match names in memory,
others those of the checkpoint, and a checkpoint may lack the prefix that transformers adds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny import source_state, write_source, write_state
from transformers import AutoConfig, AutoModelForCausalLM

import quantkit
from quantkit.formats import Bnb, Kept


def test_linears_are_told_by_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "source", "mistral")
    state = source_state("mistral", torch.float16)
    short = {name.removeprefix("model."): value for name, value in state.items()}
    write_state(source, short, "safetensors")
    told: list[Kept] = []

    def spy(self: Bnb, kept: Kept, quantized: Sequence[str]) -> dict[str, object]:
        told.append(kept)
        assert "layers.1.mlp.up_proj" in quantized
        return {}

    monkeypatch.setattr(Bnb, "quantization_config", spy)
    quantkit.plan(source, "bnb-nf4", set=["method.ignore=['model.layers.0.mlp']"])
    (kept,) = told
    assert {"layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj", "lm_head"} <= set(kept.linears)
    assert kept.linears.count("lm_head") == 1, "one name where both are alike"
    assert set(kept.in_layers) == {f"layers.0.mlp.{each}_proj" for each in ("up", "gate", "down")}


@pytest.mark.parametrize(
    ("model_type", "sizes", "named"),
    [
        ("mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4}, "transformer.blocks"),
        ("biogpt", {"num_hidden_layers": 2, "intermediate_size": 128}, "biogpt.layers"),
        ("mistral", {"num_hidden_layers": 2, "intermediate_size": 128}, None),
    ],
)
def test_layers_that_optimum_does_not_find_are_named(
    tmp_path: Path, model_type: str, sizes: dict[str, int], named: str | None
) -> None:
    """Untold, it opens no GPTQ folder of such a class: it knows a few names of lists of layers."""
    usual = {"vocab_size": 96, "hidden_size": 64, "num_attention_heads": 4}
    config = AutoConfig.for_model(model_type, **usual | sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(tmp_path)
    plan = quantkit.plan(tmp_path, "gptq-4bit-g128", set=["method.group_size=32"])
    assert plan.config["quantization_config"].get("block_name_to_quantize") == named
