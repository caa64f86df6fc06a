"""What is wrong with a recipe, in one line and in terms of TOML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

#: What pydantic says of Python's types, for whoever wrote TOML.
_IN_TOML = {
    "tuple_type": "Input should be a list, in brackets",
    "model_type": "Input should be a section of keys",
    "model_attributes_type": "Input should be a section of keys",
}

#: A method's format is what tells the sections apart: it is missing, or unknown.
_FORMATS = ("union_tag_not_found", "union_tag_invalid")


def explained(
    error: ValidationError, recipe: type[BaseModel], methods: Mapping[str, type[BaseModel]]
) -> str:
    """The first mistake, in one line; for an unknown key, the nearest known one."""
    mistakes = error.errors()
    # a mistyped key is also a missing one: the mistyping is what to show
    first = next((each for each in mistakes if each["type"] == "extra_forbidden"), mistakes[0])
    place = [*map(str, first["loc"])]
    if place[:1] == ["method"]:
        del place[1:2]  # the format, which is no key
    dotted = ".".join(place)
    if first["type"] == "extra_forbidden":
        near = get_close_matches(place[-1], _known_keys(recipe, methods, first["loc"][:-1]), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown key {dotted!r}{hint}"
    if first["type"] == "missing":
        return f"key {dotted!r} is missing; a recipe writes every value"
    if first["type"] in _FORMATS:
        return f"key 'method.format': {_format_expected(first['input'], methods)}"
    said = _IN_TOML.get(first["type"], first["msg"]).removeprefix("Value error, ")
    if not place:  # of the recipe as a whole, which would be shown from end to end
        return said
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"key {dotted!r}: {said}; got {_as_given(first.get('input'))!r}{more}"


def _format_expected(method: Mapping[str, Any], methods: Iterable[str]) -> str:
    known = ", ".join(map(repr, methods))
    got = f"got {method['format']!r}" if "format" in method else "it is missing"
    return f"Input should be one of {known}; {got}"


def _as_given(value: Any) -> Any:
    """Lists as TOML has them, not as the tuples they were made."""
    return [_as_given(each) for each in value] if isinstance(value, tuple) else value


def _known_keys(
    recipe: type[BaseModel], methods: Mapping[str, type[BaseModel]], place: Sequence[int | str]
) -> list[str]:
    """The keys of the section at ``place``, as pydantic names it."""
    models: tuple[type[BaseModel], ...] = (recipe,)
    for part in place:
        if str(part) in methods:
            models = (methods[str(part)],)
        elif isinstance(part, str):  # a number is a place in a list
            models = _models(models[0].model_fields[part].annotation)
    return list(models[0].model_fields)


def _models(annotation: object) -> tuple[type[BaseModel], ...]:
    """The sections that a field may hold, also in a list or beside ``None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(each for part in get_args(annotation) for each in _models(part))
