"""Where sentencepiece's normalizer comes to a stop: one regular expression for its segments.

sentencepiece (``src/normalizer.cc``) goes from left to right: at each place the longest
user-defined piece is copied, else the longest rule's key is replaced, else one character
is copied. Call what it took a *segment*. Where a key stands in a text is not enough to
know it for one: sentencepiece may have come there within a segment begun further left
(with the rules ``ab`` and ``bc``, the text ``abc`` holds no ``bc``).

The expression goes the same way, so each search begins where a segment does (``\\G``). It
runs over ordinary characters in one loop, and stops only at those that may join, or begin,
something longer.
"""

from __future__ import annotations

from collections import defaultdict

from quantkit.tokenization.coverage import Coverage
from quantkit.tokenization.patterns import (
    CLUSTERS_BEFORE,
    JOINS_BEFORE,
    OURS,
    characters,
    literal,
    longest_of,
)

# What joins the character after it in a grapheme cluster (UAX #29: Prepend).
_CLUSTERS_AFTER = (
    r"\p{Cf}\p{Cn}\r\x{d4e}\x{111c2}\x{111c3}\x{113d1}\x{1193f}\x{11941}\x{11a30}-\x{11a3f}"
    r"\x{11a84}-\x{11a89}\x{11d46}\x{11f02}"
)

# Most of what is written, in few ranges.
_USUAL = (
    r"\n\x{20}-\x{7e}\x{400}-\x{45f}\x{2010}-\x{2027}\x{3000}-\x{3029}\x{3041}-\x{30ff}"
    r"\x{4e00}-\x{9fff}\x{ac00}-\x{d7a3}\x{ff01}-\x{ff5e}"
)


def cut_pattern(coverage: Coverage, copied: tuple[str, ...]) -> str:
    """Matches, empty, where a mark belongs: before every exception, before characters that
    the normalizer's steps set (``OURS``), and between segments that would join.

    Never at the beginning of a text, whose first character must be one of ours.
    """
    return _Segments(coverage, copied).pattern()


class _Segments:
    def __init__(self, coverage: Coverage, copied: tuple[str, ...]) -> None:
        self._coverage, self._copied = coverage, copied
        self._texts = [each.text for each in coverage.exceptions]
        self._taken = [text for text in copied if text not in set(self._texts)]
        firsts = {text[0] for text in self._texts}
        self._longer = [key for key in coverage.keys if key[0] in firsts]

    def pattern(self) -> str:
        clusters = "Precompiled" in self._coverage.base
        joins = self._set(self._joins(clusters)) if self._coverage.base else ""
        after = self._set(_CLUSTERS_AFTER) if clusters else ""
        firsts = {text[0] for text in (*self._texts, *self._taken)}
        stops = f"[{OURS}{characters(firsts)}{joins}{after}]"
        starts = "|".join([*self._exceptions(), f"[{OURS}]"])
        first = [longest_of(self._taken), starts, after]
        # the usual ones first: the class of all stops has a thousand ranges to look through
        run = f"(?:[{_USUAL}&&[^{stops}]]++|[^{stops}])*+"
        unit = "|".join(filter(None, [*first, f".{run}{self._rest_of_key(joins)}"]))
        border = "|".join(filter(None, [joins, starts, self._behind(after)]))
        return f"(?m)\\G(?:(?>{unit})(?!{border}))*+(?>{unit})(?={border})\\K"

    def _set(self, inside: str) -> str:
        return f"[{inside}&&[^{OURS}]]"

    def _joins(self, clusters: bool) -> str:
        found = JOINS_BEFORE + characters(self._coverage.joining)
        return found + (CLUSTERS_BEFORE if clusters else "")

    def _behind(self, after: str) -> str:
        """Parts a cluster, but not where that would look like the mark of an exception."""
        if not after:
            return ""
        changed = [each.found for each in self._coverage.exceptions if each.found != each.text]
        return f"(?<={after})" + (f"(?!{longest_of(changed)})" if changed else "")

    def _exceptions(self) -> list[str]:
        """Alternatives, the longest first; those of one length without a rival share one."""
        found: list[str] = []
        by_length: dict[int, list[str]] = defaultdict(list)
        for text in self._texts:
            by_length[len(text)].append(text)
        for texts in by_length.values():
            rivals = {text: self._rivals(text) for text in texts}
            found += [f"{literal(text)}(?!{after})" for text, after in rivals.items() if after]
            if alone := [text for text, after in rivals.items() if not after]:
                found.append(longest_of(alone))
        return found

    def _rivals(self, text: str) -> str:
        """What may follow ``text`` in a longer segment at the same place."""
        among = self._copied if text in self._copied else (*self._copied, *self._longer)
        longer = [each for each in among if each != text and each.startswith(text)]
        return longest_of(each[len(text) :] for each in longer)

    def _rest_of_key(self, joins: str) -> str:
        """The rest of a key, told by the character before it; firsts of one rest share it.

        Whatever continues a key is in ``joins``, so that one look saves hundreds.
        """
        rests: dict[str, set[str]] = defaultdict(set)
        for key in sorted(self._coverage.keys):
            rests[key[0]].add(key[1:])
        sharing: dict[frozenset[str], list[str]] = defaultdict(list)
        for char, rest in rests.items():
            sharing[frozenset(rest)].append(char)
        body = "|".join(
            f"(?<=[{characters(chars)}]){longest_of(rest)}" for rest, chars in sharing.items()
        )
        return f"(?:(?={joins})(?:{body}))?+" if body else ""
