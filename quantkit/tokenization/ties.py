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

from quantkit.tokenization.proto import ModelType, PieceType, SentencePieceModel

# sentencepiece: the score of an unknown character is the lowest score less this.
_UNKNOWN_MALUS = 10.0


@dataclass(frozen=True)
class _Step:
    """One piece of a segmentation: where it ends, in bytes of the normalized text."""

    end: int
    score: float
    token: int


@dataclass(frozen=True)
class Parting:
    """Where two lists of ids part and meet again: a slice of each."""

    ours: slice
    theirs: slice


@dataclass(frozen=True)
class Scores:
    """What sentencepiece counts for each id."""

    score: tuple[float, ...]
    size: tuple[int, ...]
    starts: frozenset[int]
    unknown: int

    @classmethod
    def of(cls, model: SentencePieceModel) -> Scores | None:
        """``None`` for models that sum no scores."""
        if model.trainer.model_type is not ModelType.UNIGRAM:
            return None
        normal = [piece.score for piece in model.pieces if piece.type is PieceType.NORMAL]
        lost = min(normal, default=0.0) - _UNKNOWN_MALUS
        return cls(
            score=tuple(
                piece.score if piece.type is PieceType.NORMAL else lost for piece in model.pieces
            ),
            size=tuple(
                1 if piece.type is PieceType.BYTE else len(piece.text.encode())
                for piece in model.pieces
            ),
            starts=frozenset(model.ids_of(PieceType.BYTE)),
            unknown=model.unk_id,
        )


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
        ours, theirs = expected[place.ours], found[place.theirs]
        if not _same_unknown(ours, theirs, scores):
            return False
        gap = sum(scores.score[token] for token in ours) - sum(
            scores.score[token] for token in theirs
        )
        reached = np.float32(abs(totals[place.ours.stop - 1]))
        rounding = 0.5 * float(np.spacing(reached)) * (len(ours) + len(theirs))
        if abs(gap) > rounding:
            return False
    return True


def _ends(tokens: Sequence[int], scores: Scores) -> list[int]:
    return np.cumsum([scores.size[token] for token in tokens]).tolist() if tokens else []


def _same_unknown(ours: Sequence[int], theirs: Sequence[int], scores: Scores) -> bool:
    """Unknown characters are no part of a tie: every segmentation has the same ones."""
    skipped = scores.starts | {scores.unknown}
    return [t for t in ours if t in skipped] == [t for t in theirs if t in skipped]
