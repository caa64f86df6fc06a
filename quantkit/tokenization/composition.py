"""Which normalization rules are "each character by its own rule, then NFC".

The rules of NFKC and its relatives list, for every composed character, every sequence
that decomposes it: some 220,000. All but a few of them say what NFC says of the mapped
characters, so NFC may stand for them. Which ones do is tried rule by rule, with
``tokenizers``' own NFC, whose Unicode version is not sentencepiece's: U+11935 U+11930
compose in the one and not in the other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from tokenizers.normalizers import NFC

from quantkit.tokenization.charsmap import Charsmap


@dataclass(frozen=True)
class Composition:
    """``keys`` are given by NFC; within them ``kept`` characters skip their own rule.

    Case folding needs the latter: it makes U+0345 alone an iota, but composes it.
    """

    keys: frozenset[str]
    kept: frozenset[str]


@lru_cache(maxsize=2)
def find_composition(rules: Charsmap) -> Composition:
    """Try every rule."""
    single, several = rules.single, rules.several
    plain = _given_by_nfc(several, single, frozenset())
    inner = {char for key in several.keys() - plain for char in key[1:]}
    kept = frozenset(inner & single.keys())
    with_kept = _given_by_nfc(several, single, kept) if kept else plain
    if len(with_kept) > len(plain):
        return Composition(with_kept, kept)
    return Composition(plain, frozenset())


@lru_cache(maxsize=2)
def changed_by_nfc(rules: Charsmap) -> tuple[str, ...]:
    """Characters whose own rule's value NFC would change though sentencepiece does not."""
    chars = [chr(code) for code in range(1, sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    before = [rules.single.get(char, char) for char in chars]
    after = each_by_nfc(before)
    pairs = zip(chars, before, after, strict=True)
    return tuple(char for char, one, other in pairs if one != other)


def each_by_nfc(texts: Iterable[str]) -> list[str]:
    """NFC of each text, in one call."""
    # A NUL is a starter that composes with nothing and that rules cannot hold (it ends them).
    return NFC().normalize_str("\0".join(texts)).split("\0")


def _given_by_nfc(
    several: dict[str, str], single: dict[str, str], kept: frozenset[str]
) -> frozenset[str]:
    """Keys whose value is NFC of their characters' rules, the kept ones inside without theirs."""
    inner = {char: value for char, value in single.items() if char not in kept}
    before = [
        single.get(key[0], key[0]) + "".join(inner.get(char, char) for char in key[1:])
        for key in several
    ]
    pairs = zip(several.items(), each_by_nfc(before), strict=True) if several else ()
    return frozenset(key for (key, value), composed in pairs if composed == value)
