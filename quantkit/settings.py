"""What the output's config.json and generation_config.json say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantkit.architecture import Architecture
from quantkit.formats import Format, Kept
from quantkit.plans import TensorPlan
from quantkit.recipe import Recipe
from quantkit.source import Source


def output_config(
    source: Source,
    architecture: Architecture,
    form: Format,
    tensors: Sequence[TensorPlan],
) -> dict[str, Any]:
    """The source's config with the data type and the quantization written in, and its class where
    it names none, which other servers (vLLM) go by."""
    # auto_map points at code in the source's repository, which is neither run nor carried on
    config = {key: value for key, value in source.config.items() if key != "auto_map"}
    for key in {"dtype", "torch_dtype"} & config.keys() or {"torch_dtype"}:
        config[key] = architecture.dtype
    config["architectures"] = config.get("architectures") or [architecture.class_name]
    quantized = [_module(each) for each in tensors if each.action == "quantize"]
    quantization = form.quantization_config(_kept(architecture, tensors), quantized)
    if quantization is not None:
        config["quantization_config"] = quantization
    return config


def generation_defaults(source: Source, recipe: Recipe) -> dict[str, Any]:
    """The source's generation defaults, else its special ids; then the recipe's settings."""
    settings = dict(source.generation)
    if not settings:
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        settings = {key: source.config[key] for key in ids if source.config.get(key) is not None}
    if recipe.generation is not None:
        settings |= recipe.generation.model_dump(exclude_none=True)
    return settings


def _module(tensor: TensorPlan) -> str:
    return tensor.source.name.removesuffix(".weight")


def _in_memory(tensor: TensorPlan) -> str:
    return (tensor.memory or "").removesuffix(".weight")


def _kept(architecture: Architecture, tensors: Sequence[TensorPlan]) -> Kept:
    """What stays as it is, by names in memory and the checkpoint's, which older loaders want."""
    in_memory = {architecture.memory_names[each.source.name]: each for each in tensors}
    stored = (in_memory.get(f"{module}.weight") for module in architecture.kept)
    linears = [
        each
        for each in tensors
        if each.action in ("copy", "cast") and _in_memory(each) in architecture.linears
    ]
    return Kept(
        rule=tuple(sorted({*architecture.kept, *(_module(each) for each in stored if each)})),
        linears=tuple(sorted({*map(_module, linears), *map(_in_memory, linears)})),
        in_layers=tuple(_module(e) for e in linears if architecture.is_layer_weight(e.memory)),
        layers=next(iter(architecture.layers), "").rpartition(".")[0],
    )
