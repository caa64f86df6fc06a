"""What a model is judged on: a text cut into windows of ids, and prompts.

The protocol: the whole text is encoded once without special tokens and cut into
windows that do not overlap; perplexity is over all predicted tokens, that is over
every token of a window but its first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from quantkit.errors import UsageError
from quantkit.given import LONGEST_TEXT, as_text, read_given
from quantkit.recipe import Recipe
from quantkit.resources import evaluation_text, prompts_file
from quantkit.tokenizer import Tokenizer, open_tokenizer
from quantkit.types import AnyPath

#: Without a tokenizer, prompts are the openings of windows, of this many tokens.
_OPENING = 16
_OPENINGS = 8


#: One text or several, as the verbs take them.
Texts = AnyPath | Iterable[AnyPath] | None


@dataclass(frozen=True)
class EvaluationText:
    """``sequences`` of ids to be cut into windows; ``sha256`` is of the file's bytes.

    ``text`` is empty where the file held ids.
    """

    name: str
    text: str
    sha256: str
    route: str
    sequences: tuple[tuple[int, ...], ...]

    def windows(self, length: int, limit: int) -> tuple[tuple[int, ...], ...]:
        """Windows of at most ``length`` ids and at least two; at most ``limit`` (0: all)."""
        cut = tuple(
            sequence[at : at + length]
            for sequence in self.sequences
            for at in range(0, len(sequence), length)
            if len(sequence) - at >= 2
        )
        return cut[:limit] if limit else cut


@dataclass(frozen=True)
class PromptIds:
    """A prompt as the model sees it; ``text`` is empty when it was made from ids."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Material:
    """All that a conversion is judged on. ``texts`` is empty where none can be encoded.

    ``strings`` are the texts whole, their lines, and the prompts, for the tokenizer level.
    """

    tokenizer: Tokenizer | None
    texts: tuple[EvaluationText, ...]
    prompts: tuple[PromptIds, ...]
    strings: tuple[str, ...]


def read_material(
    folder: Path, recipe: Recipe, texts: Sequence[Path] = (), vocabulary: object = None
) -> Material:
    """Encode the texts and the prompts with the tokenizer of the source's ``folder``.

    ``vocabulary`` is the config's ``vocab_size``: ids that were given must lie below it.

    Raises:
        UsageError: a text cannot be read, holds too little, is there twice, or its ids are
            of another model.
        SourceError: the tokenizer's files cannot be read.
    """
    split = recipe.tokenizer.split_special_tokens
    tokenizer = open_tokenizer(folder, split_special_tokens=split)
    read = [read_evaluation_text(each, tokenizer) for each in texts or (None,)]
    evaluated = _told_apart(tuple(each for each in read if each is not None), texts)
    _check_vocabulary(evaluated, vocabulary)
    prompts = read_prompts(recipe, tokenizer, evaluated[0] if evaluated else None)
    wholes = [each.text for each in evaluated]
    lines = [line for whole in wholes for line in whole.splitlines()]
    strings = (*wholes, *lines, *(each.text for each in prompts))
    return Material(tokenizer, evaluated, prompts, tuple(filter(None, strings)))


def _told_apart(
    read: tuple[EvaluationText, ...], paths: Sequence[Path]
) -> tuple[EvaluationText, ...]:
    """Refuse a text that is there twice, and number those that have one name."""
    if len({each.sha256 for each in read}) < len(read):
        raise UsageError(
            f"text {', '.join(each.name for each in read)}: two are the same text, which would "
            "count twice; give each once"
        )
    if len({each.name for each in read}) == len(read):
        return read
    names: list[str] = []
    for each, path in zip(read, paths, strict=True):
        names.append(_unlike(str(Path(path.parent.name, each.name)), names))
    return tuple(replace(each, name=name) for each, name in zip(read, names, strict=True))


def _unlike(name: str, taken: Sequence[str]) -> str:
    """``name``, numbered where it is taken."""
    numbered = (f"{name} ({number})" for number in count(2))
    return next(each for each in chain([name], numbered) if each not in taken)


def _check_vocabulary(texts: Sequence[EvaluationText], vocabulary: object) -> None:
    for each in texts:
        largest = largest_id(each.sequences)
        if each.route == "ids" and isinstance(vocabulary, int) and largest >= vocabulary:
            raise UsageError(
                f"text {each.name}: expected token ids below {vocabulary}, the model's vocab_size, "
                f"got {largest}; give this model's own ids"
            )


def read_evaluation_text(path: Path | None, tokenizer: Tokenizer | None) -> EvaluationText | None:
    """Encode ``path``, or the text that ships with quantkit.

    A ``.json`` file holds ids already: a list, a list of lists, or an object with either, as
    ``input_ids`` where it holds more.
    ``None`` when there is text but no tokenizer.

    Raises:
        UsageError: the file cannot be read, or holds too little.
    """
    chosen = path or evaluation_text()
    raw = read_given(chosen, f"text {chosen}", most=LONGEST_TEXT)
    if chosen.suffix.lower() == ".json":
        ids = read_ids("text", chosen, raw)
        found = EvaluationText(chosen.name, "", _sha256(raw), "ids", ids)
    elif tokenizer is None and path is not None:
        raise UsageError(
            f"text {chosen}: the source has no tokenizer to encode it; give token ids (.json)"
        )
    elif tokenizer is None:
        return None
    else:
        text = as_text(raw, f"text {chosen}")
        whole = (tuple(tokenizer.encode(text)),)
        found = EvaluationText(chosen.name, text, _sha256(raw), tokenizer.route, whole)
    if not found.windows(length=2, limit=1):
        raise UsageError(f"text {chosen}: fewer than two tokens; give a longer text")
    return found


def read_prompts(
    recipe: Recipe, tokenizer: Tokenizer | None, text: EvaluationText | None
) -> tuple[PromptIds, ...]:
    """The recipe's prompts in the model's own form; without a tokenizer, openings of windows."""
    if tokenizer is None:
        openings = text.windows(length=1 << 62, limit=_OPENINGS) if text else ()
        return tuple(PromptIds("", each[:_OPENING]) for each in openings)
    plain = recipe.evaluation.prompts or tuple(
        json.loads(prompts_file().read_text(encoding="utf-8"))
    )
    rendered = [recipe.prompt.render(each) if recipe.prompt else each for each in plain]
    made = tuple(PromptIds(each, tuple(tokenizer.encode(each))) for each in rendered)
    for each in made:
        if not each.ids:
            raise UsageError(f"prompt {each.text!r}: holds no token; give another")
    return made


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def read_ids(what: str, path: Path, raw: bytes) -> tuple[tuple[int, ...], ...]:
    """Sequences of token ids from JSON; ``what`` begins messages.

    Raises:
        UsageError: neither a list of ids, nor a list of such lists, nor an object with either
            as ``input_ids``, or with one of them alone.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} {path}: not JSON: {error}") from error
    if isinstance(value, dict):  # a tokenizer's answer has a mask beside its ids
        fitting = [each for each in value.values() if _is_id_lists(each)] or [*value.values()]
        only = fitting[0] if len(fitting) == 1 else None
        value = value.get("input_ids", only)
    if isinstance(value, list) and value and all(_is_id(each) for each in value):
        return (tuple(value),)
    if _is_id_lists(value):
        return tuple(tuple(sequence) for sequence in value)
    raise UsageError(
        f"{what} {path}: expected token ids, whole numbers from 0 on, as a list, a list of lists, "
        f"or an object with either as input_ids, or with one alone{_odd(value)}; give plain text "
        "as .txt"
    )


def _is_id_lists(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, list) and each for each in value)
        and all(_is_id(number) for each in value for number in each)
    )


def _odd(value: object) -> str:
    """The first element that is no id, for a message."""
    lists = value if isinstance(value, list) else []
    flat = [one for each in lists for one in (each if isinstance(each, list) else [each])]
    odd = next((repr(one)[:40] for one in flat if not _is_id(one)), None)
    return f"; got {odd}" if odd else ""


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def largest_id(sequences: Sequence[Sequence[int]]) -> int:
    """The largest id that occurs."""
    return max(max(each) for each in sequences)
