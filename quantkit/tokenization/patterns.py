"""Regular expressions, in Oniguruma's syntax, for sets of characters and of words."""

from __future__ import annotations

from collections.abc import Iterable


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
    """The longest of ``words`` at a place, as a trie: characters with one continuation share it.

    Writing the words side by side would be megabytes for the rules of NFKC (220,000
    sequences); as a trie with equal branches joined they are some 15 kilobytes.
    """
    root: dict[str, object] = {}
    for word in words:
        node = root
        for char in word:
            node = node.setdefault(char, {})  # type: ignore[assignment]
        node[""] = {}
    return _branches(root)


def _branches(node: dict[str, object]) -> str:
    groups: dict[str, list[str]] = {}
    for char, below in node.items():
        if char:
            assert isinstance(below, dict)
            groups.setdefault(_branches(below), []).append(char)
    if not groups:
        return ""
    body = "|".join(f"[{characters(chars)}]{rest}" for rest, chars in groups.items())
    # Greedy: where the word so far is one itself, a longer one still wins.
    return f"(?:{body})?" if "" in node else f"(?:{body})"
