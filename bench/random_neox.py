"""Random GPT-NeoX checkpoints in fp16, for benches: only size and speed are measured on them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

#: name -> data type, shape
Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]

#: safetensors' names of the types that occur here.
_NAMES = {
    torch.float16: "F16",
    torch.float32: "F32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


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


def old_buffers(layers: int, mask: torch.dtype, head: int = 128, positions: int = 2048) -> Shapes:
    """What rinna's files hold beside the weights, and today's model has no place for."""
    found: Shapes = {}
    for at in range(layers):
        prefix = f"gpt_neox.layers.{at}.attention."
        found[f"{prefix}bias"] = mask, (1, 1, positions, positions)
        found[f"{prefix}masked_bias"] = torch.float16, ()
        found[f"{prefix}rotary_emb.inv_freq"] = torch.float32, (head // 2,)
    return found


def write(folder: str, size: Mapping[str, Any], container: str) -> None:
    """config.json and the weights.

    ``size`` are values of the config, and besides ``mask`` (the data type of the old causal
    masks, where the file is to hold them) and ``shards`` (safetensors files).
    """
    path, config = Path(folder), _config(size)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    described = _described(config, size)
    if container == "torch":
        made = dict(_tensors(described))
        torch.save(made, path / "pytorch_model.bin")
        return
    files = _cut(described, size.get("shards", 1))
    tensors = _tensors(described)
    for name, held in files.items():
        _write_safetensors(path / name, held, tensors)
    _write_index(path, files)


def write_hollow(folder: str, size: Mapping[str, Any]) -> None:
    """The same safetensors without a weight: headers, and a hole of the right size behind each.

    Enough for a plan, which reads headers only; the file takes no room on the disk.
    """
    path, config = Path(folder), _config(size)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    files = _cut(_described(config, size), size.get("shards", 1))
    for name, held in files.items():
        header, data = _header(held)
        with (path / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + data)
    _write_index(path, files)


def _config(size: Mapping[str, Any]) -> dict[str, Any]:
    hidden = size["hidden_size"]
    return {
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
        **{key: value for key, value in size.items() if key not in ("mask", "shards")},
    }


def _described(config: Mapping[str, Any], size: Mapping[str, Any]) -> Shapes:
    layers = config["num_hidden_layers"]
    weights = shapes(config["hidden_size"], layers, config["vocab_size"])
    found: Shapes = {name: (torch.float16, shape) for name, shape in weights.items()}
    if mask := size.get("mask"):
        found |= old_buffers(layers, getattr(torch, mask))
    return found


def _tensors(described: Shapes) -> Iterator[tuple[str, torch.Tensor]]:
    """One at a time, in order; drawn on a CUDA device where there is one, which takes a tenth."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    for name, (dtype, shape) in described.items():
        if dtype in (torch.uint8, torch.bool):
            yield name, torch.ones(shape, dtype=dtype).tril()
        else:
            drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device=device)
            yield name, (drawn * 0.02).to("cpu", dtype)


def _cut(described: Shapes, shards: int) -> dict[str, Shapes]:
    """File name -> what it holds, in order; at most ``shards`` files of about one size."""
    parts: dict[int, Shapes] = {}
    total, at = sum(_nbytes(*each) for each in described.values()), 0
    for name, each in described.items():
        parts.setdefault(at * shards // total, {})[name] = each
        at += _nbytes(*each)
    if len(parts) == 1:
        return {"model.safetensors": described}
    names = (f"model-{at:05d}-of-{len(parts):05d}.safetensors" for at in range(1, len(parts) + 1))
    return dict(zip(names, parts.values(), strict=True))


def _nbytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _header(held: Shapes) -> tuple[bytes, int]:
    """A safetensors header, and how many bytes of data follow it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in held.items():
        end = at + _nbytes(dtype, shape)
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at


def _write_safetensors(
    path: Path, held: Shapes, tensors: Iterator[tuple[str, torch.Tensor]]
) -> None:
    """Tensor by tensor: a shard is never in memory whole."""
    with path.open("wb") as file:
        file.write(_header(held)[0])
        for wanted in held:
            name, tensor = next(tensors)
            assert name == wanted
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _write_index(path: Path, files: Mapping[str, Shapes]) -> None:
    if len(files) == 1:
        return
    total = sum(_nbytes(*each) for held in files.values() for each in held.values())
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, held in files.items() for name in held},
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
