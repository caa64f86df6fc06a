"""A model without its weights: transformers' own class, its parameters on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from quantkit.errors import SourceError, UnsupportedModelError, on_one_line
from quantkit.quiet import BUILDING, import_transformers, need_surroundings
from quantkit.scrutiny import check_config
from quantkit.types import FLOAT_DTYPES

P = ParamSpec("P")
T = TypeVar("T")


def _alone(build: Callable[P, T]) -> Callable[P, T]:
    @wraps(build)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with BUILDING:
            return build(*args, **kwargs)

    return call


@_alone
def parse_config(folder: Path, config: Mapping[str, Any]) -> Any:
    """``folder``'s config as transformers reads it; no code of the folder's is run.

    Raises:
        UnsupportedModelError, SourceError: unknown to transformers, or refused by it.
        UsageError: Python runs without docstrings.
    """
    import_transformers()
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    check_config(config, f"{folder}/config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise SourceError(
            f"{folder}/config.json: no model_type; transformers cannot tell its class"
        )
    if model_type not in CONFIG_MAPPING_NAMES:
        why = "it brings code of its own" if "auto_map" in config else "unknown to transformers"
        raise UnsupportedModelError(
            f"model type {model_type!r} is not supported: {why}, and quantkit runs no "
            "code from a repository"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a bad config
        raise SourceError(
            f"{folder}/config.json: transformers refuses it: {on_one_line(error)}"
        ) from error


def resolve_dtype(parsed: Any, wanted: str, stored: str) -> str:
    """What to load a model as: ``wanted``, else the config's, else ``stored``."""
    if wanted != "auto":
        return wanted
    named = stored if parsed.dtype is None else str(parsed.dtype).removeprefix("torch.")
    if named not in FLOAT_DTYPES:
        raise SourceError(
            f"{_file(parsed)}: the data type {named!r} is not one of {', '.join(FLOAT_DTYPES)}; "
            "choose one (--set method.dtype=float16)"
        )
    return named


def _file(parsed: Any) -> str:
    """Which config.json it was parsed from."""
    return f"{parsed.name_or_path}/config.json" if parsed.name_or_path else "config.json"


@_alone
def build_empty(parsed: Any, dtype: str, *, with_buffers: bool = False) -> Any:
    """The model of a parsed config with its parameters on the meta device.

    ``with_buffers`` makes the buffers real (masks, rotary frequencies), which running its layers
    takes.

    Raises:
        UnsupportedModelError: not a causal language model.
        SourceError: transformers cannot build it.
        StorageError: there is no folder for temporary files, or the current one is gone.
        UsageError: Python runs without docstrings.
    """
    need_surroundings()
    import_transformers()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    named = getattr(parsed, "architectures", None) or []
    if not isinstance(named, list):
        raise SourceError(
            f"{_file(parsed)}: architectures: expected a list of names, got {repr(named)[:80]}; "
            "correct it"
        )
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(parsed.model_type)
    causal_names = [causal] if isinstance(causal, str) else list(causal or [])
    if getattr(parsed, "is_encoder_decoder", False) or not causal_names:
        raise UnsupportedModelError(
            f"{_file(parsed)}: {named or parsed.model_type}: not a decoder-only model; quantkit "
            "converts causal language models"
        )
    masked = parsed.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not named and masked and not getattr(parsed, "is_decoder", False):
        raise UnsupportedModelError(
            f"{_file(parsed)}: {parsed.model_type} is an encoder unless is_decoder is set; "
            "quantkit converts causal language models"
        )
    if named and named[0] not in causal_names:
        raise UnsupportedModelError(
            f"{_file(parsed)}: names the architecture {named[0]!r}, expected a causal language "
            f"model ({' or '.join(causal_names)}); where the weights are those, correct the name"
        )
    try:
        # transformers runs its initialization on what is not on the meta device
        with _weights_on_meta(with_buffers=with_buffers):
            return AutoModelForCausalLM.from_config(parsed, dtype=getattr(torch, dtype)).eval()
    except Exception as error:  # whatever the class raises for a config it cannot build
        raise SourceError(
            f"{_file(parsed)}: transformers cannot build {causal_names[0]} from it: "
            f"{on_one_line(error)}"
        ) from error


def _weights_on_meta(*, with_buffers: bool) -> AbstractContextManager[Any]:
    if not with_buffers:
        import torch

        return torch.device("meta")
    from accelerate import init_empty_weights

    manager: AbstractContextManager[Any] = init_empty_weights(include_buffers=False)
    return manager


def layer_names(model: Any) -> tuple[str, ...]:
    """The decoder layers of ``model`` in order, by name: its longest list of one class.

    One with as many layers as the language model's config states comes first: a vision tower may
    be deeper. Of two that are alike the one nearer to the top does: a tower's lies deeper inside.

    Raises:
        UnsupportedModelError: there is no such list.
    """
    from torch import nn

    lists = [
        tuple(f"{name}.{at}" for at in range(len(module)))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(each) for each in module}) == 1
    ]
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = max(
        lists, key=lambda each: (len(each) == depth, len(each), -each[0].count(".")), default=()
    )
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no list of decoder layers to walk one at a time"
        )
    return found
