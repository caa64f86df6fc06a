"""Ids of a text, by a route that can be named.

Where a checkpoint brings its sentencepiece model, the sentencepiece library encodes:
it is what the model was trained with, and transformers 5 encodes some of these models
otherwise without a word (a leading ``▁``, collapsed spaces, unknown characters as
``<s>``). Where the checkpoint added tokens that sentencepiece does not know, the
tokenizer.json that quantkit writes for it encodes, which the gate holds to sentencepiece.
Elsewhere the checkpoint's own tokenizer files are read by transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.errors import SourceError, on_one_line
from quantkit.quiet import import_transformers, quiet_loading
from quantkit.tokenization import AS_NUMBERED, make_files, read_extras

SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model")

_LIBRARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")

Route = Literal["sentencepiece", "built from sentencepiece", "transformers"]


@dataclass(frozen=True)
class Tokenizer:
    """Encodes and decodes without special tokens, by ``route``.

    ``special`` are the ids that stand for no text: controls and the like.
    """

    route: Route
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    special: tuple[int, ...]


def open_tokenizer(folder: Path, *, split_special_tokens: bool = True) -> Tokenizer | None:
    """The tokenizer of a checkpoint's folder; ``None`` when it brings none.

    ``split_special_tokens`` is the recipe's: whether ``</s>`` in a text stays text.

    Raises:
        SourceError: its files cannot be read.
    """
    path = sentencepiece_file(folder)
    if path is not None and keeps_piece_ids(path):
        try:
            alone = split_special_tokens and not read_extras(path)
            return _sentencepiece(path) if alone else _built(path, split_special_tokens)
        except SourceError:  # what cannot be built is copied, and encodes as it does
            if not has_library_files(folder):
                raise
    if has_library_files(folder):
        return _transformers(library_tokenizer(folder))
    return None


def sentencepiece_file(folder: Path) -> Path | None:
    """The sentencepiece model in ``folder``, if there is one."""
    paths = (folder / name for name in SENTENCEPIECE_FILES)
    return next((path for path in paths if path.is_file()), None)


def has_library_files(folder: Path) -> bool:
    """Whether the folder brings files for transformers, which makes an empty tokenizer of none."""
    return any((folder / name).is_file() for name in _LIBRARY_FILES)


def _sentencepiece(path: Path) -> Tokenizer:
    model = _processor(path)
    size = model.get_piece_size()
    return Tokenizer(
        "sentencepiece",
        lambda text: [int(each) for each in model.encode(text, out_type=int)],
        lambda ids: str(model.decode([each for each in ids if each < size])),
        tuple(each for each in range(size) if model.is_control(each)),
    )


def _built(path: Path, split_special_tokens: bool) -> Tokenizer:
    from tokenizers import Tokenizer as Library

    settings = _settings(path.with_name("tokenizer_config.json"))
    files = make_files(path, settings, split_special_tokens=split_special_tokens)
    library = Library.from_str(files.tokenizer_json)
    added = library.get_added_tokens_decoder()
    return Tokenizer(
        "built from sentencepiece",
        lambda text: list(library.encode(text, add_special_tokens=False).ids),
        lambda ids: str(library.decode(list(ids), skip_special_tokens=False)),
        tuple(sorted(each for each, token in added.items() if token.special)),
    )


def _transformers(library: Any) -> Tokenizer:
    return Tokenizer(
        "transformers",
        lambda text: [int(each) for each in library.encode(text, add_special_tokens=False)],
        lambda ids: str(library.decode(list(ids))),
        tuple(int(each) for each in library.all_special_ids),
    )


def _processor(path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{path}: not a sentencepiece model: {error}") from error


def keeps_piece_ids(path: Path) -> bool:
    """Whether the checkpoint's own tokenizer numbers the pieces as the sentencepiece model
    in ``path`` does; some classes (XGLM's) shift every id.

    A class that cannot be loaded says nothing against the model's own numbers.

    Raises:
        SourceError: no sentencepiece model.
    """
    model = _processor(path)
    if _is_known_to_keep(path.parent):
        return True
    try:
        library = library_tokenizer(path.parent)
    except SourceError:
        return True
    size = model.get_piece_size()
    sample = range(size // 2, size, max(1, size // 64))
    theirs = library.convert_ids_to_tokens(list(sample))
    ours = [model.id_to_piece(each) for each in sample]
    return bool(sum(a == b for a, b in zip(ours, theirs, strict=True)) * 2 > len(ours))


def _is_known_to_keep(folder: Path) -> bool:
    """Whether the class's name alone tells: the library takes longer to import than many models
    to quantize."""
    name = _settings(folder / "tokenizer_config.json").get("tokenizer_class", "")
    known = str(name).removesuffix("Fast") in AS_NUMBERED
    return known and not (folder / "tokenizer.json").is_file()


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise SourceError(f"{path}: cannot be read as JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def library_tokenizer(folder: Path) -> Any:
    """What a plain ``AutoTokenizer.from_pretrained`` makes of the folder.

    Raises:
        SourceError: transformers cannot load it.
    """
    import_transformers()
    from transformers import AutoTokenizer

    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except BaseException as error:  # transformers raises many kinds for files it cannot read
        # a panic in the Rust of tokenizers is no Exception, and has no class to import
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = f"{folder}: transformers cannot load its tokenizer: {on_one_line(error)}"
        raise SourceError(said) from error
