"""Whether ``quantization_config`` declares every module as it is stored, quantized or not.

Before they read a tensor, loaders of GPTQ and AWQ build a quantized module for every Linear of a
layer, except those that it takes out; and leave all else as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.gate.opened import Opened
from quantkit.gate.report import Failure
from quantkit.gate.stated import failure, is_listed, overridden

_METHODS = ("gptq", "awq")
_LISTED = "modules_in_block_to_quantize"
_LEFT = "modules_to_not_convert"
_LAYERS, _HEAD = "block_name_to_quantize", "lm_head"


def undeclared(saved: Opened) -> Iterator[Failure]:
    """Modules that the loaders would look for as quantized, or as plain, and that are not.

    To be called only where the patterns of the config are known to be harmless
    (:func:`quantkit.gate.parts.check_parts`).
    """
    if saved.method not in _METHODS:
        return
    yield from _plain_in_layers(saved)
    yield from _quantized_and_left_out(saved)
    yield from _outside_the_layers(saved)
    yield from _other_layers(saved)


def _plain_in_layers(saved: Opened) -> Iterator[Failure]:
    """Plain Linears inside a layer where the loaders would look for quantized ones."""
    found = [
        name
        for name in saved.parts
        if saved.architecture.is_layer_weight(name)
        and not saved.is_quantized(name)
        and not _is_declared(saved, name)
    ]
    if found:
        more = f" and {len(found) - 1} more modules" if len(found) > 1 else ""
        yield failure(
            "quantization_config",
            "stored as it was, and not declared",
            f"quantized, or named in {_LEFT}, in dynamic with '-:', or left out of {_LISTED}",
            f"{found[0].removesuffix('.weight')}{more}",
        )


def _is_declared(saved: Opened, name: str) -> bool:
    settings, left_out = overridden(saved, name)
    blocks, names = settings.get(_LISTED), _names(saved, name)
    if left_out or _is_left(settings, names):
        return True
    return blocks is not None and not any(is_listed(own, blocks) for own in names)


def _names(saved: Opened, name: str) -> tuple[str, str]:
    """A module by its stored name and by the one in memory: loaders know it by either."""
    stored = next(iter(saved.parts[name].values())).name
    whole = "" in saved.parts[name]
    own = stored.removesuffix(".weight") if whole else stored.rpartition(".")[0]
    return own, name.removesuffix(".weight")


def _is_left(settings: Mapping[str, Any], names: tuple[str, str]) -> bool:
    """Whether a name of it holds one of those that are left as they are: AutoAWQ's own rule, the
    widest."""
    left = settings.get(_LEFT)
    return isinstance(left, list) and any(
        isinstance(each, str) and each and each in own for each in left for own in names
    )


def _quantized_and_left_out(saved: Opened) -> Iterator[Failure]:
    for name in saved.parts:
        if saved.is_quantized(name) and _is_left(saved.settings, _names(saved, name)):
            yield failure("quantization_config", "quantized", "left as it was", f"{_LEFT}: {name}")


def _outside_the_layers(saved: Opened) -> Iterator[Failure]:
    """GPTQ's loaders look nowhere but in the layers, and AWQ's not at the head, unless they are
    told of it; then they look for it."""
    architecture, told = saved.architecture, saved.settings.get(_HEAD) is True
    heads = {f"{each}.weight" for each in architecture.kept_modules}
    outside = [
        name
        for name in saved.parts
        if saved.is_quantized(name)
        and (name in heads if saved.method == "awq" else not architecture.is_layer_weight(name))
    ]
    if outside and not told and architecture.layers:
        said = f"left as it was, or {_HEAD}: true"
        yield failure("quantization_config", "quantized", said, outside[0])
    if told and not outside:
        yield failure("quantization_config", "true", "false: it is stored as it was", _HEAD)


def _other_layers(saved: Opened) -> Iterator[Failure]:
    """Where optimum is told that the layers are: it makes no other module a quantized one."""
    stated = saved.settings.get(_LAYERS)
    quantized = [name for name in saved.parts if saved.is_quantized(name)]
    inside = (own for name in quantized for own in _names(saved, name))
    if stated and quantized and not any(own.startswith(f"{stated}.") for own in inside):
        yield failure("quantization_config", stated, f"what holds {quantized[0]}", _LAYERS)
