"""Random models small enough to make in a test, one of each shape that matters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIGS: dict[str, dict[str, object]] = {
    "gpt_neox": {
        "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": 64, "use_parallel_residual": False,
    },
    "llama": {
        "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 172, "tie_word_embeddings": True,
        "max_position_embeddings": 64,
    },
    "gpt2": {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {
        "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64,
    },
    "mistral": {
        "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 64,
    },
    "qwen2": {
        "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "tie_word_embeddings": False,
        "max_position_embeddings": 64,
    },
}  # fmt: skip


def source_state(model_type: str, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random model's tensors under the names that published checkpoints use."""
    model = build(model_type, dtype, seed)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if model_type == "gpt_neox":
        state["embed_out.weight"] = state.pop("lm_head.weight")
    if model_type == "gpt2":  # published GPT-2 files have no prefix, and a causal mask
        state = {name.removeprefix("transformer."): value for name, value in state.items()}
        state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    return state


def build(model_type: str, dtype: torch.dtype, seed: int = 0):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():  # biases and norms start constant: stir them
        parameter.data += torch.randn_like(parameter) * 0.02
    return model.eval()


def write_source(
    folder: Path,
    model_type: str = "gpt_neox",
    dtype: torch.dtype = torch.float16,
    container: str = "safetensors",
    shards: int = 1,
    seed: int = 0,
    drop_tied: bool = True,
) -> Path:
    """A checkpoint folder of a random model."""
    config = build(model_type, dtype, seed).config
    state = source_state(model_type, dtype, seed)
    if drop_tied and getattr(config, "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    write_state(folder, state, container, shards)
    return folder


def write_state(
    folder: Path, state: Mapping[str, torch.Tensor], container: str, shards: int = 1
) -> None:
    """The tensors as one file or as ``shards`` with an index."""
    suffix, stem = (
        ("safetensors", "model") if container == "safetensors" else ("bin", "pytorch_model")
    )
    names = sorted(state)
    parts = [names[at::shards] for at in range(shards)]
    files = (
        [f"{stem}.{suffix}"]
        if shards == 1
        else [f"{stem}-{at:05}-of-{shards:05}.{suffix}" for at in range(1, shards + 1)]
    )
    for file, part in zip(files, parts, strict=True):
        tensors = {name: state[name] for name in part}
        if container == "safetensors":
            save_file({n: t.contiguous().clone() for n, t in tensors.items()}, folder / file,
                      metadata={"format": "pt"})  # fmt: skip
        else:
            torch.save(tensors, folder / file)
    if shards > 1:
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        total = sum(value.nbytes for value in state.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
