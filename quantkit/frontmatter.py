"""A model card's text -> its metadata and its body. Strict: what is not YAML is no metadata.

A card is other people's text: it may be broken, enormous or hostile. Nothing here fails;
what cannot be read is said.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from quantkit.errors import on_one_line

_FRONT = re.compile(r"\A\s*---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)

#: More than this is no metadata but an attack on the YAML reader.
_LONGEST = 100_000


@dataclass(frozen=True)
class SourceCard:
    """``problem`` says why there is no metadata where the text has a place for it."""

    metadata: Mapping[str, Any]
    body: str
    problem: str = ""


def read_card(text: str) -> SourceCard:
    """Split ``text``; metadata that is no mapping of plain values is left out."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    found = _FRONT.match(text)
    if found is None:
        return SourceCard({}, text.strip())
    body = text[found.end() :].strip()
    try:
        value = _load(found[1])
    except ValueError as error:
        return SourceCard({}, body, str(error))
    return SourceCard(value, body)


def _load(text: str) -> dict[str, Any]:
    import yaml

    if len(text) > _LONGEST or re.search(r"(?m)[:\-\[,]\s*[&*]\w", text):
        raise ValueError("too long, or with anchors")  # a few lines of anchors make gigabytes
    try:
        value = yaml.load(text, _strict_loader())
    except Exception as error:  # its own errors, and whatever it meets in making values
        raise ValueError(f"not YAML: {on_one_line(error)[:200]}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {type(value).__name__}")
    try:
        return dict(_plain(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a value that JSON cannot hold: {error}") from None


def _strict_loader() -> Any:
    """PyYAML's safe loader, made to refuse a key that stands twice."""
    import yaml

    class Strict(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = [key for key, count in Counter(map(str, keys)).items() if count > 1]
            if twice:
                raise yaml.YAMLError(f"the key {twice[0]!r} stands twice")
            return super().construct_mapping(node, deep)

    return Strict


def _plain(value: Any) -> Any:
    """Dates as text, and only what JSON can hold."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, date):
        return value.isoformat()
    # a ValueError or TypeError for the rest, half a character among them
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    return value


def dump(metadata: Mapping[str, Any]) -> str:
    """Front matter, fences included."""
    import yaml

    text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n"
