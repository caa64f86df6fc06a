"""Whether a module that is stored as it was is declared so.

Before they read a tensor, loaders of GPTQ and AWQ build a quantized module for every Linear of a
layer, except those that ``quantization_config`` takes out.
"""

from __future__ import annotations

from collections.abc import Iterator

from quantkit.gate.opened import Opened
from quantkit.gate.report import Failure
from quantkit.gate.stated import is_listed, overridden

_METHODS = ("gptq", "awq")
_LISTED = "modules_in_block_to_quantize"
_LEFT = "modules_to_not_convert"


def undeclared(saved: Opened) -> Iterator[Failure]:
    """Plain Linears inside a layer where the loaders would look for quantized ones.

    To be called only where the patterns of the config are known to be harmless
    (:func:`quantkit.gate.parts.check_parts`).
    """
    if saved.method not in _METHODS:
        return
    found = [
        name
        for name in saved.parts
        if saved.architecture.is_layer_weight(name)
        and not saved.is_quantized(name)
        and not _is_declared(saved, name)
    ]
    if found:
        more = f" and {len(found) - 1} more modules" if len(found) > 1 else ""
        yield Failure(
            "structure",
            "quantization_config",
            "stored as it was, and not declared",
            f"quantized, or named in {_LEFT}, in dynamic with '-:', or left out of {_LISTED}",
            f"{found[0].removesuffix('.weight')}{more}",
        )


def _is_declared(saved: Opened, name: str) -> bool:
    """By its stored name or the one in memory: loaders know it by either."""
    settings, left_out = overridden(saved, name)
    record = saved.parts[name][""]
    names = [each.removesuffix(".weight") for each in (record.name, name)]
    if left_out:
        return True
    left, blocks = settings.get(_LEFT), settings.get(_LISTED)
    if isinstance(left, list) and any(
        # AutoAWQ's own rule, the widest
        isinstance(each, str) and each and each in own
        for each in left
        for own in names
    ):
        return True
    return blocks is not None and not any(is_listed(own, blocks) for own in names)
