"""JSON objects read strictly: no duplicate keys, no NaN, no surprises.

Python's parser keeps the last of two equal keys and others the first, so a file
with duplicates means different things to different readers.
"""

from __future__ import annotations

import json
from typing import NoReturn

from quantkit.checkpoint.names import quoted
from quantkit.errors import CheckpointError

#: Even when empty, an object takes some hundred bytes of memory and a list half of that; each
#: value takes time. A tensor's entry has one object, two lists and some eight values.
MAX_OBJECTS = 150_000
MAX_LISTS = 300_000
MAX_VALUES = 1_500_000


class _RefusedError(ValueError):
    """Valid for Python's parser, refused here; its text completes a message."""


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _RefusedError(f"the key {quoted(key)} appears twice")
        found[key] = value
    return found


def _no_constants(word: str) -> NoReturn:
    raise _RefusedError(f"{word} is not JSON")


def too_many(raw: bytes) -> str:
    """What a JSON text has too much of to be parsed in bounded memory; empty when nothing."""
    for mark, limit in ((b"{", MAX_OBJECTS), (b"[", MAX_LISTS), (b",", MAX_VALUES)):
        if raw.count(mark) > limit:
            return f"it has more than {limit} times {mark.decode()!r}"
    return ""


def parse_object(raw: bytes, where: str) -> dict[str, object]:
    """The JSON object in ``raw``; ``where`` names the file part, for the message."""
    try:
        if problem := too_many(raw):
            raise _RefusedError(problem)
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique_pairs, parse_constant=_no_constants)
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:
        problem = str(error)
    else:
        if isinstance(value, dict):
            return value
        problem = f"it is a {type(value).__name__}"
    raise CheckpointError(
        f"{where}: expected a JSON object with unique keys, but {problem}; "
        "the file is damaged, fetch it again"
    ) from None
