"""What transformers makes of a checkpoint: its own model class, on the meta device.

Names, shapes, data types, which modules are Linear, which weights are tied, and how
source names map to names in memory are read from the class that will load the
result. No table of regular expressions stands in for it, and no tensor is allocated. What is
read is remembered on disk by all that it depends on, since loading the libraries takes
longer than quantizing a small model.

This is the one module that uses transformers' conversion mapping
(``transformers.conversion_mapping``, ``transformers.core_model_loading``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from quantkit import leftovers, skeleton
from quantkit.cache import remembered
from quantkit.errors import UnsupportedModelError
from quantkit.leftovers import ignored
from quantkit.skeleton import build_empty, layer_names, parse_config, resolve_dtype


@dataclass(frozen=True)
class Linear:
    """A module that can be quantized. ``Conv1D`` (GPT-2) stores its weight transposed."""

    kind: Literal["Linear", "Conv1D"]
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Architecture:
    """A model as transformers will build it.

    ``memory_names`` maps each source tensor to its name in memory, ``None`` when the
    model has no place for it; ``ignored`` gives the reason where such a tensor
    may be left out. ``parameters`` gives shape and data type by name in memory.
    ``kept`` are the patterns by which transformers leaves modules unquantized (heads, tied
    ones), ``kept_modules`` the modules of ``linears`` that they match.
    ``initialized`` are those of ``linears`` whose weight transformers, on load, sets through the
    module around them, and fails if it is not there (GPT-2's ``c_proj``).
    ``ties`` maps a tied name to the name that it shares its weight with; ``layers`` are the
    decoder layers in order, empty where there is no list of them.
    """

    model_type: str
    class_name: str
    base_prefix: str
    dtype: str
    max_positions: int | None
    parameters: Mapping[str, tuple[tuple[int, ...], str]]
    linears: Mapping[str, Linear]
    kept: tuple[str, ...]
    kept_modules: tuple[str, ...]
    initialized: tuple[str, ...]
    ties: Mapping[str, str]
    memory_names: Mapping[str, str | None]
    ignored: Mapping[str, str]
    layers: tuple[str, ...]

    def is_kept(self, module: str, ignore: Sequence[str]) -> bool:
        """Whether ``module`` stays as it is, by transformers' own matching rule."""
        return module in self.kept_modules or _matches(module, ignore)

    def matches(self, module: str, pattern: str) -> bool:
        """Whether one pattern of ``ignore`` means ``module``."""
        return _matches(module, [pattern])

    def is_layer_weight(self, memory: str | None) -> bool:
        """Whether a parameter is the weight of one of ``linears`` inside a decoder layer."""
        module = (memory or "").removesuffix(".weight")
        return module in self.linears and self.in_layer(module)

    def in_layer(self, module: str) -> bool:
        """Whether ``module`` lies inside a decoder layer."""
        return any(module.startswith(f"{layer}.") for layer in self.layers)


def _matches(module: str, patterns: Sequence[str]) -> bool:
    if not patterns:
        return False
    from transformers.quantizers.quantizers_utils import should_convert_module

    return not should_convert_module(module, list(patterns))


def _positions(parsed: Any) -> int | None:
    """How many positions the model has; ``None`` where its config states no number of them."""
    stated = getattr(parsed.get_text_config(), "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 1 else None


def read_architecture(
    folder: Path, config: Mapping[str, Any], names: Iterable[str], dtype: str, stored: str
) -> Architecture:
    """Build the model of ``folder``'s config on the meta device and describe it.

    Args:
        names: the source's tensor names.
        dtype: what to load it as; ``"auto"`` follows the config, then ``stored``.
        stored: the data type of the checkpoint's weights.

    Raises:
        UnsupportedModelError: not a dense decoder-only model that transformers knows.
    """
    named = list(names)
    libraries = [version(each) for each in ("torch", "transformers")]
    reader = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (Path(__file__), Path(leftovers.__file__), Path(skeleton.__file__))
    ]
    return remembered(
        "architecture",
        [reader, libraries, dict(config), named, dtype, stored],
        lambda: _read(folder, config, named, dtype, stored),
        TypeAdapter(Architecture),
    )


def _read(
    folder: Path, config: Mapping[str, Any], names: Sequence[str], dtype: str, stored: str
) -> Architecture:
    parsed = parse_config(folder, config)
    resolved = resolve_dtype(parsed, dtype, stored)
    model = build_empty(parsed, resolved)
    _refuse_experts(model, parsed)
    memory_names = _memory_names(model, names)
    linears, kept = _linears(model), _kept(model)
    return Architecture(
        model_type=str(parsed.model_type),
        class_name=type(model).__name__,
        base_prefix=str(model.base_model_prefix),
        dtype=resolved,
        max_positions=_positions(parsed),
        parameters=_parameters(model, resolved),
        linears=linears,
        kept=kept,
        kept_modules=tuple(module for module in linears if _matches(module, kept)),
        initialized=_initialized(model, linears),
        ties={str(tied): str(own) for tied, own in model.all_tied_weights_keys.items()},
        memory_names=memory_names,
        ignored=ignored(model, memory_names),
        layers=_layers(model),
    )


def _layers(model: Any) -> tuple[str, ...]:
    try:
        return layer_names(model)
    except UnsupportedModelError:  # refused by what walks layers; copying tensors needs none
        return ()


def _refuse_experts(model: Any, parsed: Any) -> None:
    """Fused experts are 3-D parameters that bitsandbytes would leave in fp16 without a word."""
    fused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 3 and "expert" in name
    ]
    # a config may name a number of experts that a dense model of its class does not have
    count = getattr(parsed, "num_local_experts", None) or getattr(parsed, "num_experts", None)
    kinds = {type(module).__name__.lower() for module in model.modules()}
    sparse = any(word in kind for kind in kinds for word in ("expert", "moe"))
    if fused or (sparse and isinstance(count, int) and count > 1):
        example = f" (e.g. {fused[0]})" if fused else ""
        raise UnsupportedModelError(
            f"{type(model).__name__}: mixture-of-experts models are not supported: their fused "
            f"experts{example} would stay unquantized"
        )


def _parameters(model: Any, dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and data type of all that a checkpoint of ``model`` holds.

    Some classes keep named parameters in float32 whatever is asked for
    (``_keep_in_fp32_modules``); transformers' own plan says which.
    """
    import torch
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(getattr(torch, dtype))
    pattern = build_glob_alternation(list(plan))[0] if plan else None
    return {
        name: (
            tuple(tensor.shape),
            "float32"
            if pattern is not None and pattern.search(name)
            else str(tensor.dtype).removeprefix("torch."),
        )
        for name, tensor in model.state_dict().items()
    }


def _linears(model: Any) -> dict[str, Linear]:
    """The modules that transformers would swap for bitsandbytes' own."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found: dict[str, Linear] = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            rows, columns = module.weight.shape
            found[name] = Linear("Conv1D", in_features=rows, out_features=columns)
        elif type(module) is nn.Linear:
            found[name] = Linear("Linear", module.in_features, module.out_features)
    return found


def _kept(model: Any) -> tuple[str, ...]:
    """transformers' rule keeps the last parameter: it has to see a head that is tied as well."""
    from transformers.quantizers.base import get_keys_to_not_convert

    model.named_parameters = partial(model.named_parameters, remove_duplicate=False)
    try:
        found = get_keys_to_not_convert(model)
    finally:
        del model.named_parameters
    return tuple(sorted({*found, *(model._keep_in_fp32_modules or ())}))


def _memory_names(model: Any, names: Iterable[str]) -> dict[str, str | None]:
    """Each source name as transformers would rename it on load."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    state = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, str | None] = {}
    for name in names:
        renamed, fused = rename_source_key(name, renamings, converters, prefix, state)
        if fused is not None:
            raise UnsupportedModelError(
                f"{type(model).__name__}: transformers rearranges {name} on load ({fused}); "
                "quantkit writes source tensors only"
            )
        if renamed not in state and name in state:
            renamed = name
        found[name] = renamed if renamed in state else None
    return found


def _initialized(model: Any, linears: Mapping[str, Linear]) -> tuple[str, ...]:
    """Found out by taking each weight away in turn, once for all modules of a class."""
    asked: dict[tuple[type, str], bool] = {}
    found = []
    for name in linears:
        parent, _, leaf = name.rpartition(".")
        around = model.get_submodule(parent)
        kind = type(around), leaf
        if kind not in asked:
            asked[kind] = _initializes(model, around, getattr(around, leaf))
        if asked[kind]:
            found.append(name)
    return tuple(found)


def _initializes(model: Any, around: Any, linear: Any) -> bool:
    weight = linear._parameters.pop("weight")
    try:
        model._init_weights(around)
    except AttributeError as error:
        # where a class fails otherwise (Gemma3n), it does so with its weights in place too
        return error.name == "weight"
    finally:
        linear._parameters["weight"] = weight
    return False
