"""JSON objects read strictly: no duplicate keys, no NaN, no surprises.

Python's parser keeps the last of two equal keys and others the first, so a file
with duplicates means different things to different readers.
"""

from __future__ import annotations

import json
from typing import NoReturn

from quantkit.checkpoint.names import quoted
from quantkit.errors import CheckpointError


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


def parse_object(raw: bytes, where: str) -> dict[str, object]:
    """The JSON object in ``raw``; ``where`` names the file part, for the message."""
    try:
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
