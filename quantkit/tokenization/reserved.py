"""Keeping pieces that sentencepiece never matches from matching as literal text.

sentencepiece looks up normal and user-defined pieces only. ``tokenizers`` looks up every
string of its vocabulary, so ``</s>`` or ``<0x41>`` written in a text would become the
control or the byte. Two ways out, both exact:

* A score so low that any other segmentation wins. It drags the score of an unknown
  character down with it (the vocabulary's lowest, less ten, in both libraries), which
  changes nothing so long as every character of a piece is a piece itself: then all
  segmentations of a text hold the same unknown characters, and a literal of such
  characters has another segmentation.
* A *barrier*: two neighbouring characters of the literal that stand side by side in no
  piece. No segmentation of sentencepiece crosses it, so the text may be split there
  beforehand, and the literal is never seen whole. A character that no piece holds makes
  one on either side.

The first costs nothing while a text is encoded, and serves for unigram models with such an
alphabet; the second is a walk over the text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Split

from quantkit.errors import SourceError
from quantkit.tokenization.patterns import literal
from quantkit.tokenization.proto import ModelType, PieceType, SentencePieceModel

RESERVED = (PieceType.CONTROL, PieceType.BYTE, PieceType.UNKNOWN)
MATCHED = (PieceType.NORMAL, PieceType.USER_DEFINED)


@dataclass(frozen=True)
class Barriers:
    """The ``pairs`` of characters to split between, and the literals that this leaves whole."""

    pairs: tuple[str, ...]
    unsplit: tuple[str, ...]

    def splitter(self) -> PreTokenizer | None:
        if not self.pairs:
            return None
        ends = "|".join(f"{literal(pair[0])}(?={literal(pair[1])})" for pair in self.pairs)
        return Split(Regex(ends), "merged_with_previous")


def find_barriers(model: SentencePieceModel) -> Barriers:
    """Few pairs of characters that together part every reserved literal.

    Raises:
        SourceError: a reserved piece is one character, which nothing can part.
    """
    unigram = model.trainer.model_type is ModelType.UNIGRAM
    alphabet = {char for text in model.texts_of(*MATCHED) for char in text}
    scored = alphabet if unigram and not open_alphabet(model) else set()
    inside = {pair for text in model.texts_of(*MATCHED) for pair in _pairs(text)}
    possible: dict[str, set[str]] = {}
    for text in model.texts_of(*RESERVED):
        if len(text) < 2:
            raise SourceError(f"a control piece of one character, {text!r}, is not supported")
        if set(text) <= scored:
            possible[text] = set()
            continue
        possible[text] = {pair for pair in _pairs(text) if pair not in inside}
        if not model.trainer.byte_fallback:
            # Unknown characters side by side are one unknown token; a split would make two.
            possible[text] -= {pair for pair in possible[text] if not set(pair) & alphabet}
    return _cover(possible)


def open_alphabet(model: SentencePieceModel) -> set[str]:
    """Characters of pieces that are no piece themselves."""
    unigram = model.trainer.model_type is ModelType.UNIGRAM
    texts = model.texts_of(*(MATCHED if unigram else (PieceType.NORMAL,)))
    return {char for text in texts for char in text} - set(texts)


def _pairs(text: str) -> set[str]:
    return {text[at : at + 2] for at in range(len(text) - 1)}


def _cover(possible: dict[str, set[str]]) -> Barriers:
    left = {text: pairs for text, pairs in possible.items() if pairs}
    chosen: list[str] = []
    while left:
        counts = Counter(pair for pairs in left.values() for pair in pairs)
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        chosen.append(best)
        left = {text: pairs for text, pairs in left.items() if best not in pairs}
    return Barriers(tuple(chosen), tuple(text for text, pairs in possible.items() if not pairs))
