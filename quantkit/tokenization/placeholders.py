"""Finding the segments that a rule of one's own replaces.

Where the key stands in a text is not enough: sentencepiece may have come to that place
within a longer segment begun further left (with the rules ``ab`` and ``bc``, the text
``abc`` holds no ``bc``).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from quantkit.tokenization.patterns import literal, longest_of


@dataclass(frozen=True)
class OwnRule:
    """Where ``pattern`` matches, ``value`` is what becomes of it."""

    pattern: str
    value: str


@dataclass(frozen=True)
class Segments:
    """What sentencepiece takes at a place: the longest ``copied`` text, else the longest key."""

    copied: tuple[str, ...]
    keys: tuple[str, ...]

    @cached_property
    def any_one(self) -> str:
        """A regular expression for one segment; heavy, and needed for few models."""
        return "|".join(filter(None, [longest_of(self.copied), longest_of(self.keys), "."]))

    @cached_property
    def _within(self) -> set[str]:
        """Characters that stand in a segment, but not first."""
        return {char for each in (*self.copied, *self.keys) for char in each[1:]}

    def rivals(self, text: str) -> str:
        """What of a longer segment at the same place may follow ``text``."""
        among = self.copied if text in self.copied else self.keys
        longer = [each[len(text) :] for each in among if each.startswith(text) and each != text]
        return longest_of(longer)

    def swallows(self, text: str) -> bool:
        """Whether a segment begun further left can reach into ``text``."""
        if text[0] not in self._within:
            return False
        return any(_reaches_into(other, text) for other in (*self.copied, *self.keys))

    def loses(self, text: str) -> bool:
        """Whether a copied text may be taken where the key ``text`` stands."""
        return text not in self.copied and any(each[0] == text[0] for each in self.copied)


def own_rules(values: dict[str, str], segments: Segments) -> list[OwnRule]:
    """Rules to apply one after the other; keys that nothing disturbs share one by value."""
    together: dict[str, list[str]] = defaultdict(list)
    alone: list[OwnRule] = []
    for text in sorted(values, key=lambda each: (-len(each), each)):
        rivals, swallowed = segments.rivals(text), segments.swallows(text)
        if not (rivals or swallowed or segments.loses(text)):
            together[values[text]].append(text)
            continue
        found = literal(text) + (f"(?!{rivals})" if rivals else "")
        if segments.loses(text):
            found = f"(?!{longest_of(segments.copied)}){found}"
        if swallowed:
            # From where the last one ended, segment by segment, to the next.
            found = f"(?m)\\G(?>(?!{found})(?:{segments.any_one}))*+\\K{found}"
        alone.append(OwnRule(found, values[text]))
    # Nothing reaches into the shared ones, so they may go first.
    return [OwnRule(longest_of(texts), value) for value, texts in together.items()] + alone


def _reaches_into(other: str, text: str) -> bool:
    if text in other[1:]:
        return True
    most = min(len(text), len(other) - 1)
    return any(other.endswith(text[:size]) for size in range(1, most + 1))
