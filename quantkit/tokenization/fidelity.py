"""Does a tokenizer give the ids that sentencepiece gives?

The judge is the sentencepiece library itself, never the code that built the tokenizer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import SourceError
from quantkit.tokenization.build import limits
from quantkit.tokenization.proto import read_model
from quantkit.tokenization.ties import Scores, all_ties

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]

# How many ids are shown from the first that differs on, beside the one before it.
_AROUND = 4

# How many differences, and how many ties, are kept to be shown.
_SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """One text that is encoded or decoded otherwise, cut to where it is."""

    kind: str
    """``ids``, ``tie`` or ``decode``."""
    text: str
    """With escapes; long texts are cut."""
    at: int
    """Which id is the first that differs."""
    expected_ids: tuple[int, ...]
    found_ids: tuple[int, ...]
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.text} at id {self.at}: sentencepiece {self.expected} "
            f"{list(self.expected_ids)}, tokenizer {self.found} {list(self.found_ids)}"
        )


@dataclass(frozen=True)
class FidelityReport:
    """Counts of texts; ``passed`` allows ties."""

    compared: int
    identical: int
    ties: int
    different: int
    decoded_otherwise: int
    first: tuple[Difference, ...]
    first_ties: tuple[Difference, ...]
    limits: tuple[str, ...]
    """What of this model ``build_tokenizer_json`` cannot express, whether a text met it or not."""

    @property
    def passed(self) -> bool:
        return self.compared > 0 and self.different == 0 and self.decoded_otherwise == 0


def check_fidelity(
    tokenizer_json: Path, spiece_model: Path, texts: Iterable[str]
) -> FidelityReport:
    """Compare the file with sentencepiece, on every text.

    Raises:
        SourceError: one of the two files cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_json))
    except Exception as error:  # tokenizers raises bare Exception
        raise SourceError(f"{tokenizer_json}: not a tokenizer.json: {error}") from error
    return compare(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False),
        spiece_model,
        texts,
    )


def compare(
    encode: Encode, decode: Decode, spiece_model: Path, texts: Iterable[str]
) -> FidelityReport:
    """The same for any tokenizer, such as what ``AutoTokenizer`` makes of a folder."""
    judge = _Judge(spiece_model)
    counts = dict.fromkeys(("identical", "tie", "ids", "decode"), 0)
    first: list[Difference] = []
    ties: list[Difference] = []
    for text in texts:
        found = judge.look(text, encode, decode)
        kind = found.kind if found else "identical"
        counts[kind] += 1
        kept = ties if kind == "tie" else first
        if found is not None and len(kept) < _SHOWN:
            kept.append(found)
    return FidelityReport(
        compared=sum(counts.values()),
        identical=counts["identical"],
        ties=counts["tie"],
        different=counts["ids"],
        decoded_otherwise=counts["decode"],
        first=tuple(first),
        first_ties=tuple(ties),
        limits=judge.limits,
    )


class _Judge:
    """sentencepiece, and the scores that tell a tie."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        model = read_model(path)
        try:  # first of all: it refuses pieces that nothing else here looks at
            self._library: Any = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise SourceError(f"{path}: not a sentencepiece model: {error}") from error
        self.limits = limits(model)
        self._scores = Scores.of(model)
        self._pieces = [piece.text for piece in model.pieces]

    def look(self, text: str, encode: Encode, decode: Decode) -> Difference | None:
        expected = [int(each) for each in self._library.encode(text)]
        found = [int(each) for each in encode(text)]
        if expected != found:
            tie = self._scores is not None and all_ties(expected, found, self._scores)
            return self._difference("tie" if tie else "ids", text, expected, found)
        wanted, got = str(self._library.decode(expected)), decode(found)
        if wanted == got:
            return None
        return Difference("decode", _show(text), 0, (), (), _show(wanted), _show(got))

    def _difference(
        self, kind: str, text: str, expected: list[int], found: list[int]
    ) -> Difference:
        pairs = enumerate(zip(expected, found, strict=False))
        shortest = min(len(expected), len(found))
        at = next((index for index, (one, other) in pairs if one != other), shortest)
        window = slice(max(0, at - 1), at + _AROUND)
        return Difference(
            kind=kind,
            text=_show(text),
            at=at,
            expected_ids=tuple(expected[window]),
            found_ids=tuple(found[window]),
            expected=self._names(expected[window]),
            found=self._names(found[window]),
        )

    def _names(self, ids: list[int]) -> str:
        known = len(self._pieces)
        return " ".join(self._pieces[each] if each < known else f"id {each}" for each in ids)


def _show(text: str, most: int = 60) -> str:
    """Printable characters as they are, others escaped; long texts cut."""
    cut = text if len(text) <= most else text[: most - 1]
    shown = "".join(
        char if char.isprintable() and not _joins(char) else char.encode("unicode_escape").decode()
        for char in cut
    )
    return f"'{shown}'" if cut == text else f"'{shown}'… ({len(text)} characters)"


def _joins(char: str) -> bool:
    return unicodedata.combining(char) != 0
