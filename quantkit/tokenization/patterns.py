"""Regular expressions, in Oniguruma's syntax, for sets of characters and of words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

#: Characters that the normalizer's steps set. Unassigned, so that no rule names them, and of
#: the grapheme class Control, which nothing joins.
MARK, END, GAP, ZERO, ONE = "\ufff0", "\ufff1", "\ufff2", "\ufff3", "\ufff4"
OURS = f"{MARK}-{ONE}"

#: What may join the character before it by NFC (UAX #15); unassigned ones because a later
#: Unicode may say so.
JOINS_BEFORE = r"\p{M}\p{Cn}\x{1160}-\x{11ff}\x{d7b0}-\x{d7ff}"

#: And in a grapheme cluster (UAX #29: Extend, SpacingMark, emoji modifiers).
CLUSTERS_BEFORE = r"\p{Cf}\x{e33}\x{eb3}\x{ff9e}\x{ff9f}\x{1f3fb}-\x{1f3ff}"


def character(char: str) -> str:
    return f"\\x{{{ord(char):x}}}"


def literal(text: str) -> str:
    return "".join(map(character, text))


def characters(chars: Iterable[str]) -> str:
    """The inside of a bracket expression, neighbours joined into ranges."""
    parts: list[str] = []
    ordered = sorted({ord(char) for char in chars})
    start = 0
    for index, code in enumerate(ordered):
        if index + 1 < len(ordered) and ordered[index + 1] == code + 1:
            continue
        first = character(chr(ordered[start]))
        parts.append(first if start == index else f"{first}-{character(chr(code))}")
        start = index + 1
    return "".join(parts)


def longest_of(words: Iterable[str]) -> str:
    """The longest of ``words`` at a place; first characters with the same rest share it.

    Writing the words side by side would be megabytes for the rules of NFKC (220,000
    sequences); so factored they are some 15 kilobytes.
    """
    rests: dict[str, set[str]] = defaultdict(set)
    for word in sorted(words):  # so that the same model gives the same file
        rests[word[0]].add(word[1:])
    sharing: dict[frozenset[str], list[str]] = defaultdict(list)
    for char, rest in rests.items():
        sharing[frozenset(rest)].append(char)
    body = "|".join(f"[{characters(chars)}]{_rest(rest)}" for rest, chars in sharing.items())
    return f"(?:{body})" if body else ""


def _rest(words: frozenset[str]) -> str:
    if "" not in words:
        return longest_of(words)
    # Greedy: where the word so far is one itself, a longer one still wins.
    longer = longest_of(words - {""})
    return f"{longer}?" if longer else ""
