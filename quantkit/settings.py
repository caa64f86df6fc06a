"""What the output's config.json and generation_config.json say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantkit.architecture import Architecture
from quantkit.formats import Format
from quantkit.methods import BnbMethod
from quantkit.plans import TensorPlan
from quantkit.recipe import Recipe
from quantkit.source import Source


def output_config(
    source: Source,
    architecture: Architecture,
    form: Format,
    recipe: Recipe,
    tensors: Sequence[TensorPlan],
) -> dict[str, Any]:
    """The source's config with the data type and the quantization written in."""
    # auto_map points at code in the source's repository, which is neither run nor carried on
    config = {key: value for key, value in source.config.items() if key != "auto_map"}
    for key in {"dtype", "torch_dtype"} & config.keys() or {"torch_dtype"}:
        config[key] = architecture.dtype
    quantized = [_module(each) for each in tensors if each.action == "quantize"]
    kept = _skipped(architecture, form, recipe, tensors)
    quantization = form.quantization_config(kept, quantized)
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


def _skipped(
    architecture: Architecture, form: Format, recipe: Recipe, tensors: Sequence[TensorPlan]
) -> list[str] | None:
    """Modules to name as skipped; ``None`` when only those every loader finds by itself.

    Naming any replaces the loader's own list, so the kept ones must then be named too,
    and under the source's names as well, since older loaders use those.
    """
    if form.calibrated:
        return _left_in_layers(architecture, tensors)
    ignore = recipe.method.ignore if isinstance(recipe.method, BnbMethod) else ()
    if not ignore:
        return None
    in_memory = {architecture.memory_names[each.source.name]: each.source.name for each in tensors}
    sources = {
        in_memory[f"{module}.weight"].removesuffix(".weight")
        for module in architecture.kept
        if f"{module}.weight" in in_memory
    }
    return sorted({*architecture.kept, *ignore, *sources})


def _left_in_layers(architecture: Architecture, tensors: Sequence[TensorPlan]) -> list[str] | None:
    """GPTQ's loaders replace every Linear inside a layer but those that are named."""
    return [
        _module(each)
        for each in tensors
        if each.action in ("copy", "cast") and architecture.weighs_in_layer(each.memory)
    ] or None
