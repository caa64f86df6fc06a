"""Ids of a text, by a route that can be named.

Where a checkpoint brings its sentencepiece model, the sentencepiece library encodes:
it is what the model was trained with, and transformers 5 encodes some of these models
otherwise without a word (a leading ``▁``, collapsed spaces, unknown characters as
``<s>``). Elsewhere the checkpoint's own tokenizer files are read by transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.errors import SourceError, first_line
from quantkit.quiet import quiet_libraries

SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model")

_LIBRARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")

Route = Literal["sentencepiece", "transformers"]


@dataclass(frozen=True)
class Tokenizer:
    """Encodes and decodes without special tokens, by ``route``."""

    route: Route
    _library: Any

    def encode(self, text: str) -> list[int]:
        if self.route == "sentencepiece":
            return [int(each) for each in self._library.encode(text, out_type=int)]
        return [int(each) for each in self._library.encode(text, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        if self.route == "sentencepiece":
            known = self._library.get_piece_size()
            return str(self._library.decode([each for each in ids if each < known]))
        return str(self._library.decode(list(ids)))

    def special_ids(self) -> tuple[int, ...]:
        """Ids that stand for no text: controls and the like."""
        if self.route == "sentencepiece":
            pieces = range(self._library.get_piece_size())
            return tuple(each for each in pieces if self._library.is_control(each))
        return tuple(int(each) for each in self._library.all_special_ids)


def open_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint's folder; ``None`` when it brings none.

    Raises:
        SourceError: its files cannot be read.
    """
    for name in SENTENCEPIECE_FILES:
        path = folder / name
        if path.is_file() and (opened := _sentencepiece(path)) is not None:
            return opened
    if has_library_files(folder):
        return Tokenizer("transformers", library_tokenizer(folder))
    return None


def has_library_files(folder: Path) -> bool:
    """Whether the folder brings files of its own; transformers makes empty tokenizers of none."""
    return any((folder / name).is_file() for name in _LIBRARY_FILES)


def _sentencepiece(path: Path) -> Tokenizer | None:
    """The model, unless the checkpoint's own tokenizer numbers its pieces otherwise."""
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{path}: not a sentencepiece model: {error}") from error
    return Tokenizer("sentencepiece", model) if _same_numbers(model, path.parent) else None


def _same_numbers(model: Any, folder: Path) -> bool:
    """Some tokenizer classes (XGLM's) shift every id of the sentencepiece model.

    A class that cannot be loaded says nothing against the model's own numbers.
    """
    try:
        library = library_tokenizer(folder)
    except SourceError:
        return True
    size = model.get_piece_size()
    sample = range(size // 2, size, max(1, size // 64))
    theirs = library.convert_ids_to_tokens(list(sample))
    ours = [model.id_to_piece(each) for each in sample]
    return bool(sum(a == b for a, b in zip(ours, theirs, strict=True)) * 2 > len(ours))


def library_tokenizer(folder: Path) -> Any:
    """What a plain ``AutoTokenizer.from_pretrained`` makes of the folder.

    Raises:
        SourceError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_libraries():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except BaseException as error:  # transformers raises many kinds for files it cannot read
        # a panic in the Rust of tokenizers is no Exception, and has no class to import
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = f"{folder}: transformers cannot load its tokenizer: {first_line(error)}"
        raise SourceError(said) from error
