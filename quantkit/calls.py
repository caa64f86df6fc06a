"""How a model calls its layers: all that it hands them beside the hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.errors import UnsupportedModelError, on_one_line


@dataclass(frozen=True)
class Call:
    """How the model calls one layer, beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, through calls, tuples and dictionaries."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Call):
        return same(a.args, b.args) and same(dict(a.kwargs), dict(b.kwargs))
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    # configurations and caches do not depend on the ids
    return not isinstance(a, bool | int | float | str) or bool(a == b)


def does_not_run(model: nn.Module, error: Exception) -> UnsupportedModelError:
    """What a model's own code raised, in words."""
    name, said = type(model).__name__, on_one_line(error)
    return UnsupportedModelError(
        f"{name}: transformers' own code does not run on ids alone: {said}"
    )
