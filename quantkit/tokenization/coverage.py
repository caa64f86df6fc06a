"""Which normalization rules a normalizer of ``tokenizers`` gives, and what is left over.

The rules of NFKC and its relatives list, for every composed character, every sequence
that decomposes it: some 220,000. ``tokenizers``' own NFKC says the same of all but a few,
whose Unicode version is another (U+32FF) or whose writers thought otherwise (nmt_nfkc
keeps U+FF5E). So every rule, and every character without one, is tried against
``tokenizers`` itself; what comes out otherwise is an *exception*.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

from tokenizers import Regex
from tokenizers.normalizers import NFC, NFKC, Normalizer, Precompiled, Replace

from quantkit.errors import SourceError
from quantkit.tokenization.charsmap import Charsmap
from quantkit.tokenization.patterns import (
    CLUSTERS_BEFORE,
    END,
    GAP,
    JOINS_BEFORE,
    MARK,
    OURS,
)

#: Each stands in three regular expressions.
MAX_EXCEPTIONS = 64

# From cheap to dear.
_BASES = ((), ("NFKC",), ("NFC",), ("Precompiled",), ("NFKC", "Precompiled", "NFC"))

# No character of a later plane has a decomposition.
_PLANES = 0x30000

# One key of so many is tried before all of them are.
_SAMPLE = 97


@dataclass(frozen=True)
class Leftover:
    """Where ``text`` stands, the base makes ``found`` of it, but it must be ``value``."""

    text: str
    found: str
    value: str


@dataclass(frozen=True)
class Coverage:
    """A base, and what it leaves over."""

    base: tuple[str, ...]
    keys: frozenset[str]
    """Rules for several characters that the base gives."""
    exceptions: tuple[Leftover, ...]
    """The longest first."""
    hidden: bool
    """The base would make some of them alike, so it must not see them; each ``found`` is then
    the text itself."""
    deleted: frozenset[str]
    """ASCII characters whose rule is to vanish, and which the base leaves alone."""
    spaces: frozenset[str]
    """The same for those that become a space."""
    joining: frozenset[str]
    """Characters that join the one before them by these rules, beside those of Unicode."""


def normalizers_of(base: tuple[str, ...], blob: bytes) -> list[Normalizer]:
    """The steps of a base; ``blob`` is the model's own charsmap."""
    made: dict[str, Callable[[], list[Normalizer]]] = {
        "NFC": lambda: [NFC()],
        "NFKC": lambda: [NFKC()],
        "Precompiled": lambda: _one_by_one(blob),
    }
    return [each for name in base for each in made[name]()]


def _one_by_one(blob: bytes) -> list[Normalizer]:
    """The model's own rules, on one character at a time, where ``Precompiled`` is exact. It works
    by grapheme cluster, and replaces one shorter than six bytes whole, by its *shortest* rule."""
    joins = f"[{JOINS_BEFORE}{CLUSTERS_BEFORE}&&[^{OURS}]]"
    return [
        Replace(Regex(f"(?<=[^{OURS}])(?={joins})"), GAP),
        Precompiled(blob),
        Replace(Regex(f"(?<!{MARK}{END}){GAP}"), ""),
    ]


@lru_cache(maxsize=4)
def find_coverage(
    rules: Charsmap, blob: bytes, copied: tuple[str, ...], *, spaced: bool
) -> Coverage:
    """The cheapest base that leaves few exceptions.

    ``copied`` texts no rule may change; ``spaced`` says that a space and U+2581 end as one.

    Raises:
        SourceError: every base leaves too many.
    """
    wanted = _wanted(rules, copied)
    few = set(rules.single) | set(list(wanted)[::_SAMPLE])
    sample = {text: value for text, value in wanted.items() if text in few}
    fewest = sys.maxsize
    for base in _BASES:
        for texts in (sample, wanted):
            trial = _Trial(rules, blob, copied, spaced, base, texts)
            if len(trial.exceptions) > MAX_EXCEPTIONS:
                fewest = min(fewest, len(trial.exceptions))
                break
        else:  # few enough in both
            return trial.coverage()
    raise SourceError(
        f"{fewest} or more normalization rules that no normalizer of tokenizers gives (a rule "
        "file of one's own, or user-defined pieces that the rules change): at most "
        f"{MAX_EXCEPTIONS}"
    )


class _Trial:
    """What one base makes of each text, and the texts of which it does not make what is wanted."""

    def __init__(
        self,
        rules: Charsmap,
        blob: bytes,
        copied: tuple[str, ...],
        spaced: bool,
        base: tuple[str, ...],
        wanted: dict[str, str],
    ) -> None:
        self._base, self._spaced, self._wanted = base, spaced, wanted
        self._found = _based(base, blob, tuple(wanted))
        fixed = {char for text in (*copied, *rules.rules.values()) for char in text}
        ascii_rules = {char: value for char, value in rules.single.items() if char.isascii()}
        plain = [char for char in ascii_rules if char not in fixed and self._found[char] == char]
        self._deleted = frozenset(char for char in plain if ascii_rules[char] == "")
        self._spaces = frozenset(char for char in plain if ascii_rules[char] == " ")
        self._classes = str.maketrans(
            dict.fromkeys(self._deleted, "") | dict.fromkeys(self._spaces, " ")
        )
        other = self._found.items() - self._wanted.items()
        self.exceptions = {
            text for text, found in other if not self._same_end(found, self._wanted[text])
        }

    def _same_end(self, found: str, value: str) -> bool:
        found = found.translate(self._classes)
        if self._spaced:
            found, value = found.replace(" ", "\u2581"), value.replace(" ", "\u2581")
        return found == value

    def coverage(self) -> Coverage:
        keys = {text for text in self._wanted if len(text) > 1}
        joining = self._joining(keys)
        found = {text: self._found[text] or text for text in self._wanted}
        closed = self._closed(joining, found)
        vanish = not all(self._found[text] for text in self.exceptions)
        hidden = vanish or _alike({text: found[text] for text in closed})
        if hidden:
            found = {text: text for text in self._wanted}
            closed = self._closed(joining, found)
        self.exceptions = closed
        ordered = sorted(self.exceptions, key=lambda each: (-len(each), each))
        exceptions = tuple(Leftover(text, found[text], self._wanted[text]) for text in ordered)
        return Coverage(
            base=self._base,
            keys=frozenset(keys - self.exceptions) if self._base else frozenset(),
            exceptions=exceptions,
            hidden=hidden,
            deleted=self._deleted,
            spaces=self._spaces,
            joining=joining if self._base else frozenset(),
        )

    def _joining(self, keys: Iterable[str]) -> frozenset[str]:
        changed = ((text, value) for text, value in self._found.items() if text != value)
        found = {text for text, value in changed if len(text) == 1 and value and _joins(value[0])}
        return frozenset(found | {char for key in keys for char in key[1:]})

    def _closed(self, joining: frozenset[str], found: dict[str, str]) -> set[str]:
        """The exceptions, and texts that could be mistaken for one. A text that joins what stands
        before it gets a mark too, and may look like an exception, or like its beginning."""
        closed, more = set(self.exceptions), set(self.exceptions)
        for text in sorted({found[text] for text in more} - found.keys()):
            found[text] = self._wanted[text] = text  # as no rule names it
        while more:
            heads = tuple(found[text] for text in more)
            begun = {head[:size] for head in heads for size in range(1, len(head))}
            more = {
                text
                for text, value in found.items()
                if (value.startswith(heads) or value in begun)
                and (text[0] in joining or _joins(text[0]))
            } - closed
            closed |= more
        return closed


def _alike(found: dict[str, str]) -> bool:
    """Whether two texts look the same afterwards, or one like the other's beginning."""
    return any(
        found[other].startswith(found[one]) and (found[one] != one or found[other] != other)
        for one, other in permutations(found, 2)
    )


def _joins(char: str) -> bool:
    """Whether Unicode lets it join the character before it (see ``patterns.JOINS_BEFORE``)."""
    category = unicodedata.category(char)
    hangul = "\u1160" <= char <= "\u11ff" or "\ud7b0" <= char <= "\ud7ff"
    return hangul or category[0] == "M" or category in ("Cf", "Cn")


def _wanted(rules: Charsmap, copied: tuple[str, ...]) -> dict[str, str]:
    """What sentencepiece makes of every text that can be a segment and that it, or some
    normalizer, changes."""
    wanted = {char: char for char in _changed_by_nfkc()} | rules.single
    # It never comes to a key that begins with a copied text.
    several = rules.several.items()
    wanted |= {key: value for key, value in several if not key.startswith(copied)}
    return wanted | {text: text for text in copied}


@lru_cache(maxsize=1)
def _changed_by_nfkc() -> tuple[str, ...]:
    """The characters that NFKC changes; NFC changes no others."""
    chars = map(chr, range(1, _PLANES))
    real = [each for each in chars if not "\ud800" <= each <= "\udfff"]
    found = _based(("NFKC",), b"", tuple(real))
    return tuple(char for char, value in found.items() if char != value)


def _based(base: tuple[str, ...], blob: bytes, texts: tuple[str, ...]) -> dict[str, str]:
    """What ``base`` makes of each text alone."""
    # A NUL is a starter that composes with nothing and that rules cannot hold (it ends them).
    found = "\0".join(texts)
    for each in normalizers_of(base, blob):
        found = each.normalize_str(found)
    return dict(zip(texts, found.split("\0"), strict=True))
