"""What the source's own files say of a tokenizer, where sentencepiece is the judge of ids.

sentencepiece cannot tell which special tokens a default call puts around a text, nor who is to
blame for ids that are not its own; and some tokenizers have no such model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

from quantkit.errors import SourceError
from quantkit.gate.report import Failure
from quantkit.source import read_object
from quantkit.tokenization import make_files, random_strings, written
from quantkit.tokenizer import SENTENCEPIECE_FILES, library_tokenizer

#: Texts that stand for any: the first that has ids is taken.
_PROBES = ("a", "1", "\u3042")

#: What every model of this kind is given.
_INPUTS = frozenset({"input_ids", "attention_mask"})

#: Random strings of assigned code points.
RANDOM = 1000

#: Neighbours in a vocabulary that make one text.
_TOGETHER = 16

#: Texts with other ids than sentencepiece's that are asked of the source's files.
_ASKED = 20


@dataclass(frozen=True)
class Around:
    """Special tokens before and after a text, each with its id."""

    before: tuple[tuple[int, str], ...]
    after: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        sides = (" ".join(f"{text} ({at})" for at, text in each) for each in self._sides)
        return " text ".join(sides).strip()

    @property
    def _sides(self) -> Sequence[tuple[tuple[int, str], ...]]:
        return self.before, self.after


def by_call(library: Any) -> Around:
    """What transformers' tokenizer adds when no option is set."""
    bare: list[int] = []
    for text in _PROBES:
        bare, whole = library.encode(text, add_special_tokens=False), library.encode(text)
        if bare:
            break
    places = [at for at in range(len(whole)) if whole[at : at + len(bare)] == bare]
    start, end = (places[-1], places[-1] + len(bare)) if places else (len(whole), len(whole))
    named = [(int(each), str(library.convert_ids_to_tokens(int(each)))) for each in whole]
    return Around(tuple(named[:start]), tuple(named[end:]))


def by_source(model: Path, *, split_special_tokens: bool) -> Iterator[Around]:
    """What the source's class adds, as quantkit would write it; then as transformers has it,
    which knows more classes, and may know this one otherwise."""
    with suppress(SourceError):  # it cannot be expressed, and the source's files are copied
        yield _written(model, split_special_tokens)
    with suppress(SourceError):
        yield by_call(library_tokenizer(model.parent))


def _written(model: Path, split_special_tokens: bool) -> Around:
    from tokenizers import Tokenizer

    settings = read_object(model.with_name("tokenizer_config.json"))
    files = make_files(model, settings, split_special_tokens=split_special_tokens)
    found = Tokenizer.from_str(files.tokenizer_json).encode(_PROBES[0])
    text = [at for at, special in enumerate(found.special_tokens_mask) if not special]
    first, last = (text[0], text[-1] + 1) if text else (len(found.ids),) * 2
    named = tuple(zip(found.ids, found.tokens, strict=True))
    return Around(named[:first], named[last:])


def older_fault(
    library: Any, model: Path, texts: Iterable[str], *, split_special_tokens: bool
) -> str:
    """What to add to a failure if the source's own files give the same ids; else nothing.

    They are asked for the first texts that sentencepiece encodes otherwise.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        original = library_tokenizer(model.parent)
    except SourceError:
        return ""
    judge = SentencePieceProcessor(model_file=str(model))
    encoded = ((text, library.encode(text, add_special_tokens=False)) for text in texts)
    other = ((text, ids) for text, ids in encoded if ids != judge.encode(text, out_type=int))
    asked = list(islice(other, _ASKED))
    if not asked or not all(
        original.encode(text, add_special_tokens=False) == ids for text, ids in asked
    ):
        return ""
    remedy = ""
    with suppress(SourceError):
        _written(model, split_special_tokens)
        remedy = "; quantkit convert writes a tokenizer.json that has none"
    return (
        f" (the source's own files give the same ids in transformers {version('transformers')}: "
        f"the fault is older than this folder{remedy})"
    )


def of_its_own(original: Any) -> Iterator[str]:
    """Texts that show where tokenizers part which are alike on ordinary ones: stumbling blocks,
    random strings, and all that the vocabulary holds."""
    ids = sorted(original.get_vocab().values())
    runs = (ids[at : at + _TOGETHER] for at in range(0, len(ids), _TOGETHER))
    return chain(written(), random_strings(RANDOM), map(original.decode, runs))


def other_models(folder: Path, model: Path) -> Iterator[Failure]:
    """Sentencepiece models that are not the source's ``model``: some loaders (``use_fast=False``,
    llama.cpp) go by these, whatever tokenizer.json says."""
    for name in SENTENCEPIECE_FILES:
        own, its = folder / name, model.with_name(name)
        wanted = its if its.is_file() else model
        if own.is_file() and own.read_bytes() != wanted.read_bytes():
            yield Failure("tokenizer", name, "another model", f"the source's {wanted.name}")


def further_inputs(library: Any, source: Path) -> Iterator[Failure]:
    """What a default call returns that the source's does not: ``generate`` stops at what the model
    does not take (token types)."""
    if not (further := library(_PROBES[0]).keys() - _INPUTS):
        return
    with suppress(SourceError):
        further -= library_tokenizer(source)(_PROBES[0]).keys()
    if further:
        said = ", ".join(sorted(_INPUTS))
        yield Failure("tokenizer", "a default call returns", ", ".join(sorted(further)), said)
