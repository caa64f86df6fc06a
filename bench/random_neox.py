"""Random GPT-NeoX checkpoints in fp16, for benches: only size and speed are measured on them."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def shapes(hidden: int, layers: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Names as published GPT-NeoX checkpoints have them."""
    found: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (vocab, hidden)}
    for at in range(layers):
        prefix = f"gpt_neox.layers.{at}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found |= {f"{prefix}{norm}.weight": (hidden,), f"{prefix}{norm}.bias": (hidden,)}
        for name, rows, columns in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", 4 * hidden, hidden),
            ("mlp.dense_4h_to_h", hidden, 4 * hidden),
        ):
            found |= {f"{prefix}{name}.weight": (rows, columns), f"{prefix}{name}.bias": (rows,)}
    last = "gpt_neox.final_layer_norm."
    return found | {
        f"{last}weight": (hidden,),
        f"{last}bias": (hidden,),
        "embed_out.weight": (vocab, hidden),
    }


def write(folder: str, size: dict[str, int], container: str) -> None:
    """config.json and one weight file."""
    path, hidden = Path(folder), size["hidden_size"]
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "bos_token_id": 2,
        "eos_token_id": 3,
        "hidden_act": "gelu",
        "intermediate_size": 4 * hidden,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": hidden // 128 or 1,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_parallel_residual": False,
        **size,
    }
    (path / "config.json").write_text(json.dumps(config, indent=2))
    generator = torch.Generator().manual_seed(0)
    state = {
        name: (torch.randn(shape, generator=generator, dtype=torch.float32) * 0.02).to(
            torch.float16
        )
        for name, shape in shapes(hidden, size["num_hidden_layers"], size["vocab_size"]).items()
    }
    if container == "torch":
        torch.save(state, path / "pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
