"""Dense decoder-only classes of transformers that nothing else here tries: NF4 and GPTQ, judged.

Random and tiny, so the limits are lax: what is seen is that each can be planned, walked,
written, reopened and compared weight by weight. ``test_gate_walk.py`` compares numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import quantkit
from quantkit.errors import UnsupportedModelError

LAX = (
    "gate.min_generation_agreement=0", "gate.min_top1_agreement=0", "gate.max_perplexity_ratio=9",
    "gate.max_kl_mean=9", "gate.max_degenerate=1", "evaluation.new_tokens=2",
)  # fmt: skip
GPTQ = ("method.group_size=32", "calibration.packing=apart", "method.max_skipped_share=1")

#: By model type, what its config calls its sizes, beside the usual names.
CLASSES: dict[str, dict[str, object]] = {
    "apertus": {}, "arcee": {}, "biogpt": {}, "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
    "cohere": {}, "diffllama": {}, "ernie4_5": {}, "gemma": {}, "gemma2": {"sliding_window": 16},
    "glm": {}, "gpt_bigcode": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
    "granite": {}, "helium": {}, "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4},
    "nemotron": {}, "olmo": {}, "olmo2": {},
    "openai-gpt": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "phi": {}, "phi3": {}, "qwen3": {}, "smollm3": {}, "stablelm": {}, "starcoder2": {},
    "exaone4": {"sliding_window": 16}, "gemma3_text": {}, "hunyuan_v1_dense": {},
    "ministral3": {}, "olmo3": {}, "seed_oss": {},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4,
        "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 96, "laurel_rank": 8,
        "hidden_size_per_layer_input": 8, "intermediate_size": [128] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {  # inputs a layer of its small models tell layers of the ids: not walked
        "layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": 96,
        "hidden_size_per_layer_input": 0, "per_layer_config": {"1": {"head_dim": 32}},
    },
    "gemma3": {"sliding_window": 16},
    # attention beside convolutions or a recurrent state
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    },
}  # fmt: skip

#: Tried elsewhere too.
OTHERS = {"gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}}

#: What sees, in models whose language model has a config of its own.
SEES: dict[str, dict[str, object]] = {
    "gemma3": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,  # as deep
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    },
}  # fmt: skip

#: Four hidden states side by side: too many for who walks layers.
NOT_WALKED = ("gemma3n_text",)


def built(folder: Path, model_type: str) -> Path:
    sizes = {
        "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 16, "intermediate_size": 128, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128,
    } | (CLASSES | OTHERS)[model_type]  # fmt: skip
    if model_type in SEES:
        sizes = {"text_config": sizes, "vision_config": SEES[model_type]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.json"
    path.write_text(
        json.dumps([[3 + (7 * at + 3 * row) % 90 for at in range(48)] for row in (0, 1)])
    )
    return path


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_class_is_quantized_and_judged(tmp_path: Path, ids: Path, model_type: str) -> None:
    source = built(tmp_path / "source", model_type)
    calibration = tmp_path / "calibration.json"
    windows = [[(row * at + at * at) % 90 + 3 for at in range(64)] for row in (5, 7)]
    calibration.write_text(json.dumps(windows))
    for recipe, more in (("bnb-nf4", {}), ("gptq-4bit-g128", {"calibration": calibration})):
        if more and model_type in NOT_WALKED:
            with pytest.raises(UnsupportedModelError, match="cannot walk it layer by"):
                quantkit.convert(source, recipe, tmp_path / recipe, text=ids, set=GPTQ, **more)
            continue
        sets = [*LAX, *(GPTQ if more else ())]
        made = quantkit.convert(source, recipe, tmp_path / recipe, text=ids, set=sets, **more)
        assert made["gate"]["levels"]["reload"] == "passed"
        assert made["gate"]["perplexity"]["tokens"] == 2 * 47
        assert made["plan"]["tensors"]["quantize"] >= 2 * 4


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("codegen", ["attn.causal_mask"]),
        ("gpt2", ["attn.bias", "attn.masked_bias"]),
        ("gpt_neo", ["attn.attention.bias", "attn.attention.masked_bias"]),
        ("gptj", ["attn.bias", "attn.masked_bias"]),
        ("openai-gpt", ["attn.bias"]),
    ],
)
def test_masks_that_published_checkpoints_hold_are_dropped(
    tmp_path: Path, ids: Path, model_type: str, names: list[str]
) -> None:
    """transformers opens them, and reports these as unexpected."""
    source = built(tmp_path / "source", model_type)
    state = load_file(source / "model.safetensors")
    masks = {
        f"transformer.h.{layer}.{name}": torch.tensor(-1e9)
        if "masked" in name
        else torch.ones(1, 1, 128, 128, dtype=torch.uint8).tril()
        for name in names
        for layer in (0, 1)
    }
    assert not masks.keys() & state.keys()
    save_file(state | masks, source / "model.safetensors", metadata={"format": "pt"})
    assert {each.source.name for each in quantkit.plan(source, "fp16").with_action("drop")} == set(
        masks
    )
    made = quantkit.convert(source, "fp16", tmp_path / "out", text=ids, set=LAX)
    assert made["gate"]["status"] == "passed"
    assert made["plan"]["dropped"].keys() == masks.keys()
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == state.keys()


def test_a_buffer_that_is_stored_is_walked_with_and_compared(tmp_path: Path, ids: Path) -> None:
    """Gemma 4's layers are scaled by one; without inputs of their own they can be walked."""
    source = built(tmp_path / "source", "gemma4_text")
    scale(source, 0.5)
    made = {}
    for by_layer in ("false", "true"):
        sets = [*LAX, f"evaluation.by_layer={by_layer}"]
        out = tmp_path / by_layer
        made[by_layer] = quantkit.convert(source, "bnb-nf4", out, text=ids, set=sets)["gate"]
    assert made["true"]["perplexity"]["reference"] == made["false"]["perplexity"]["reference"]
    scale(out, 0.55)
    found = quantkit.check(out, source, text=ids, set=LAX)["gate"]
    assert found["levels"]["reload"] == "failed"
    assert "layer_scalar" in " ".join(found["failures"])


def scale(folder: Path, by: float) -> None:
    state = load_file(folder / "model.safetensors")
    scalars = [name for name in state if name.endswith("layer_scalar")]
    assert scalars
    save_file(
        state | {name: torch.full_like(state[name], by) for name in scalars},
        folder / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
