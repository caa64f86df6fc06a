"""What stands around every public function.

Its arguments are held to their types before any work is done: a service hands on what a queue
or an environment held, ``None`` for a path, the text ``"false"`` for a flag, which Python would
take for true. Its listener's errors stay the caller's. What the caller has set in torch changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import cache, wraps
from inspect import signature
from numbers import Integral
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from quantkit.devices import torch_as_it_starts
from quantkit.errors import UsageError, printable
from quantkit.types import listening

P = ParamSpec("P")
T = TypeVar("T")

#: What a parameter takes, in words.
_WORDS: Mapping[object, str] = {
    bool: "True or False",
    int: "a whole number",
    str: "a text",
    PathLike: "a path",
    Iterable: "several in a list",
    Callable: "a function",
    NoneType: "None",
}

_REFUSED = object()


def verb(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, its arguments held to their annotations: any ``os.PathLike`` becomes a
    ``Path``, and what can be iterated over a tuple. What its ``listener`` raises reaches the caller
    as it is, whatever the code in between makes of errors.

    Raises:
        UsageError: an argument is of another type.
    """
    shape = signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = shape.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            wanted = _hints(function)[name]
            given.arguments[name] = _taken(value, wanted, f"{function.__name__}: {name}")
        with ExitStack() as around:
            around.enter_context(torch_as_it_starts())
            if "listener" in given.arguments:
                tell = around.enter_context(listening(given.arguments["listener"]))
                given.arguments["listener"] = tell
            return function(*given.args, **given.kwargs)

    return call


@cache
def _hints(function: Callable[..., object]) -> dict[str, Any]:
    return get_type_hints(function)


def _taken(value: object, wanted: Any, where: str) -> object:
    """``value`` as ``wanted``, an annotation, has it."""
    kinds = get_args(wanted) if get_origin(wanted) in (UnionType, Union) else (wanted,)
    for kind in kinds:
        taken = _as(value, kind, where)
        if taken is not _REFUSED:
            return taken
    words = " or ".join(_WORDS[_base(kind)] for kind in kinds)
    raise UsageError(f"{where}: expected {words}, got {_shown(value)}")


def _base(kind: Any) -> object:
    """``PathLike`` of ``PathLike[str]``, and a plain type as it is."""
    return get_origin(kind) or kind


def _as(value: object, kind: Any, where: str) -> object:
    """``value``, or what it is turned into, where it is of this kind."""
    base = _base(kind)
    if base is PathLike:
        is_path = isinstance(value, PathLike) and isinstance(value.__fspath__(), str)
        return Path(value) if is_path else _REFUSED  # type: ignore[arg-type]
    if base is Iterable:
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping | PathLike):
            return _REFUSED
        (inside,) = get_args(kind)
        return tuple(_taken(each, inside, f"{where}: each of several") for each in value)
    if base is int:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return int(value) if whole else _REFUSED  # type: ignore[call-overload]
    if base is Callable:
        return value if callable(value) else _REFUSED
    # who takes a Literal says which there are
    fits = base is Literal or isinstance(value, base)  # type: ignore[arg-type]
    return value if fits else _REFUSED


def _shown(value: object) -> str:
    """What was given, in a few letters."""
    if value is None:
        return "None"
    kind = type(value).__name__
    simple = isinstance(value, str | int | float)
    return f"{kind} {printable(repr(value)[:80])}" if simple else kind
