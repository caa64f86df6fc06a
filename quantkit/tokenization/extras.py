"""Tokens that a checkpoint adds beyond the pieces of its sentencepiece model.

A fine-tuned model often has a few (``<|im_start|>``, a padding token), with rows of their
own in the embedding. sentencepiece knows nothing of them; transformers' classes find them
in a text before sentencepiece sees the rest. Three files may list them, by age of the
library that wrote them: ``added_tokens.json``, ``added_tokens_decoder`` in
``tokenizer_config.json``, ``added_tokens`` in ``tokenizer.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from quantkit.errors import SourceError
from quantkit.tokenization.proto import SentencePieceModel, read_model


@dataclass(frozen=True)
class Extra:
    """One such token; ``special`` ones are left out when a text is decoded without them."""

    id: int
    text: str
    special: bool
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False

    def added(self) -> AddedToken:
        """As ``tokenizers`` takes it; found in the text as it stands, before normalization."""
        return AddedToken(
            self.text,
            single_word=self.single_word,
            lstrip=self.lstrip,
            rstrip=self.rstrip,
            normalized=False,
            special=self.special,
        )


def read_extras(path: Path, model: SentencePieceModel | None = None) -> tuple[Extra, ...]:
    """The added tokens of the checkpoint around the sentencepiece model in ``path``, whose ids
    follow those of its pieces.

    Entries that repeat a piece under its own id are left out. ``model`` is given where it has been
    read; reading it takes half a second, and is not done where nothing is listed.

    Raises:
        SourceError: a file cannot be read, or an added token is empty or takes the id or the text
            of another, or the ids leave a gap.
    """
    listed = list(_listed(path.parent))
    if not listed:
        return ()
    model = model or read_model(path)
    size = len(model.pieces)
    numbers = {piece.text: index for index, piece in enumerate(model.pieces)}
    found: dict[int, Extra] = {}
    for each in listed:
        known = numbers.get(each.text)
        if known == each.id:
            continue
        if known is not None or each.id < size:
            taken = model.pieces[each.id].text if each.id < size else each.text
            raise SourceError(
                f"added token {each.text!r} has the id {each.id}, but the sentencepiece model's "
                f"piece {taken!r} has {numbers[taken]}"
            )
        if found.setdefault(each.id, each).text != each.text:
            raise SourceError(f"added tokens {found[each.id].text!r} and {each.text!r}: one id")
        found[each.id] = each  # the youngest file knows most
    ids = sorted(found)
    if ids != list(range(size, size + len(ids))):
        raise SourceError(f"added tokens with the ids {ids}, expected {size} and on, without gaps")
    texts = {""}  # ``tokenizers`` adds no empty one, nor one twice
    for at in ids:
        if (text := found[at].text) in texts:
            raise SourceError(f"added token {text!r}: the id {at} is its second, or it is empty")
        texts.add(text)
    return tuple(found[each] for each in ids)


def _listed(folder: Path) -> Iterator[Extra]:
    """What the three files list, the oldest file first."""
    try:
        for text, number in _read(folder / "added_tokens.json").items():
            yield Extra(int(number), str(text), special=False)
        config = _read(folder / "tokenizer_config.json")
        for number, fields in config.get("added_tokens_decoder", {}).items():
            yield _extra(int(number), fields)
        for fields in _read(folder / "tokenizer.json").get("added_tokens", []):
            yield _extra(int(fields["id"]), fields)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise SourceError(f"{folder}: its lists of added tokens cannot be read: {error}") from error


def _extra(number: int, fields: Mapping[str, Any]) -> Extra:
    return Extra(
        number,
        str(fields["content"]),
        special=bool(fields.get("special", False)),
        single_word=bool(fields.get("single_word", False)),
        lstrip=bool(fields.get("lstrip", False)),
        rstrip=bool(fields.get("rstrip", False)),
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
