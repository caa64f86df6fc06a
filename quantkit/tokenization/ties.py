"""Telling a tie from a difference.

sentencepiece keeps the score of the best segmentation so far as a float32, ``tokenizers``
as a float64. After 30,000 pieces that running score is near -250,000, where neighbouring
float32 numbers are 1/64 apart, so segmentations nearer than that are told apart by
rounding alone; exact ties (``ii i`` and ``i ii``) exist in any text.

Where two segmentations part and meet again, sentencepiece went from one stored score to
one other, and each piece on either way was rounded once, by at most half the distance
between float32 numbers of that size. A difference of the exact sums within these
roundings is a tie; a larger one is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.tokenization.proto import ModelType, Piece, PieceType, SentencePieceModel
from quantkit.tokenization.reserved import MATCHED
from quantkit.tokenization.scoring import UNKNOWN_MALUS, lowest, score_of


@dataclass(frozen=True)
class Parting:
    """Where two lists of ids part and meet again: a slice of each."""

    expected: slice
    found: slice


@dataclass(frozen=True)
class Scores:
    """What sentencepiece counts for each id."""

    score: tuple[float, ...]
    size: tuple[int, ...]
    skipped: frozenset[int]
    """Byte pieces and the unknown piece: what is made of unknown characters."""

    @classmethod
    def of(cls, model: SentencePieceModel) -> Scores | None:
        """``None`` for models that sum no scores."""
        if model.trainer.model_type is not ModelType.UNIGRAM:
            return None
        bottom = lowest(model)
        return cls(
            score=tuple(_counted(piece, bottom) for piece in model.pieces),
            size=tuple(
                1 if piece.type is PieceType.BYTE else len(piece.text.encode())
                for piece in model.pieces
            ),
            skipped=frozenset(model.ids_of(PieceType.BYTE, PieceType.UNKNOWN)),
        )


def _counted(piece: Piece, bottom: float) -> float:
    if piece.type in MATCHED:
        return score_of(piece)
    if piece.type is PieceType.BYTE and 0x80 <= int(piece.text[1:-1], 16) < 0xC0:
        return 0.0  # the unknown character was counted with its first byte
    return bottom - UNKNOWN_MALUS


def partings(expected: Sequence[int], found: Sequence[int], scores: Scores) -> list[Parting] | None:
    """Where the two part; ``None`` when they do not segment the same bytes."""
    left, right = _ends(expected, scores), _ends(found, scores)
    if not left or not right or left[-1] != right[-1]:
        return None
    places: list[Parting] = []
    i = j = 0
    while i < len(left):
        if expected[i] == found[j] and left[i] == right[j]:
            i, j = i + 1, j + 1
            continue
        first, second = i, j
        while left[i] != right[j]:
            if left[i] < right[j]:
                i += 1
            else:
                j += 1
        i, j = i + 1, j + 1
        places.append(Parting(slice(first, i), slice(second, j)))
    return places


def all_ties(expected: Sequence[int], found: Sequence[int], scores: Scores) -> bool:
    """Whether float32 rounding explains every place where the two part."""
    places = partings(expected, found, scores)
    if places is None:
        return False
    totals = np.cumsum([scores.score[token] for token in expected])
    for place in places:
        one, other = expected[place.expected], found[place.found]
        if not _same_unknown(one, other, scores):
            return False
        gap = sum(scores.score[token] for token in one) - sum(
            scores.score[token] for token in other
        )
        reached = np.float32(abs(totals[place.expected.stop - 1]))
        rounding = 0.5 * float(np.spacing(reached)) * (len(one) + len(other))
        if abs(gap) > rounding:
            return False
    return True


def _ends(tokens: Sequence[int], scores: Scores) -> list[int]:
    return np.cumsum([scores.size[token] for token in tokens]).tolist() if tokens else []


def _same_unknown(one: Sequence[int], other: Sequence[int], scores: Scores) -> bool:
    """Unknown characters are no part of a tie: every segmentation has the same ones."""
    left = [token for token in one if token in scores.skipped]
    return left == [token for token in other if token in scores.skipped]
