"""How a model calls its layers: all that it hands them beside the hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.errors import QuantkitError, UnsupportedModelError, of_the_machine, on_one_line


@dataclass(frozen=True)
class Call:
    """How the model calls one layer, beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, through calls, tuples and dictionaries."""
    if isinstance(a, Call):
        return same(a.args, b.args) and same(dict(a.kwargs), dict(b.kwargs))
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return True  # flags and configurations do not depend on the ids


@contextmanager
def explained(model: nn.Module) -> Iterator[None]:
    """Whatever a model's own code raises, in words."""
    try:
        yield
    except QuantkitError:
        raise
    except Exception as error:
        if of_the_machine(error):
            raise
        name, said = type(model).__name__, on_one_line(error)
        why = f"{name}: transformers' own code does not run on ids alone: {said}"
        raise UnsupportedModelError(why) from error
