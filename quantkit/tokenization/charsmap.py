"""sentencepiece's precompiled normalization rules, decoded.

The blob (sentencepiece, ``src/normalizer.cc``, ``EncodePrecompiledCharsMap``) is the
trie's size in bytes (little-endian uint32), the trie, and the replacements, each ended
by a NUL; a key's value is the offset of its replacement. The trie is a double array
(Aoe 1989, "An Efficient Digital Search Algorithm by Using a Double-Array Structure") in
darts-clone's packing: a unit holds the label of the byte that leads to it, the offset to
its children, and whether a value hangs below it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from quantkit.errors import SourceError

# A trie's branches are shared, so a broken one may hold endlessly many keys. NFKC's has
# 230,000, none longer than 16 bytes.
_LONGEST_KEY, _MOST_STEPS = 256, 5_000_000

_BYTES = np.arange(1, 256, dtype=np.uint32)


@dataclass(frozen=True, eq=False)
class Charsmap:
    """Text to text; sentencepiece applies the longest key at each place, left to right.

    Compared by identity, so that what is derived from its many rules can be kept.
    """

    rules: dict[str, str]

    @cached_property
    def single(self) -> dict[str, str]:
        return {key: value for key, value in self.rules.items() if len(key) == 1}

    @cached_property
    def several(self) -> dict[str, str]:
        """Rules whose key has more than one character."""
        return {key: value for key, value in self.rules.items() if len(key) > 1}


@lru_cache(maxsize=2)
def decode_charsmap(blob: bytes) -> Charsmap:
    """The rules in a ``precompiled_charsmap``; empty bytes hold none.

    Raises:
        SourceError: the blob is broken.
    """
    if not blob:
        return Charsmap({})
    try:
        (size,) = struct.unpack_from("<I", blob)
        if size % 4 or 4 + size > len(blob):
            raise ValueError(f"a trie of {size} bytes in a map of {len(blob)}")
        trie = _Trie(np.frombuffer(blob, dtype="<u4", count=size // 4, offset=4))
        values = blob[4 + size :]
        rules = {
            key.decode(): values[at : values.index(b"\0", at)].decode() for key, at in trie.items()
        }
    except (ValueError, IndexError, struct.error) as error:
        raise SourceError(f"the normalization rules (charsmap) are broken: {error}") from error
    return Charsmap(rules)


class _Trie:
    """A walk over darts-clone's units. Subtrees are shared, so each is expanded once."""

    def __init__(self, units: npt.NDArray[np.uint32]) -> None:
        self._units = units
        self._children: dict[int, list[tuple[bytes, int, int | None]]] = {}

    def items(self) -> list[tuple[bytes, int]]:
        """Every key with its value."""
        found: list[tuple[bytes, int]] = []
        stack = [(self._base(0), b"")]
        steps = 0
        while stack:
            base, prefix = stack.pop()
            steps += 1
            if len(prefix) > _LONGEST_KEY or steps > _MOST_STEPS:
                raise ValueError("the trie runs in a circle")
            for label, below, value in self._expand(base):
                key = prefix + label
                if value is not None:
                    found.append((key, value))
                stack.append((below, key))
        return found

    def _base(self, index: int) -> int:
        """Where the children of a unit begin: its index xor its offset."""
        unit = int(self._units[index])
        return index ^ ((unit >> 10) << ((unit & 0x200) >> 6))

    def _expand(self, base: int) -> list[tuple[bytes, int, int | None]]:
        """The children at ``base``: the byte, where theirs begin, the value of that key."""
        if base not in self._children:
            places = _BYTES ^ np.uint32(base)
            inside = places < len(self._units)
            labels, places = _BYTES[inside], places[inside]
            # A unit's label counts with the top bit, which marks it as a value.
            real = (self._units[places] & np.uint32(0x800000FF)) == labels
            self._children[base] = [
                (bytes([label]), self._base(place), self._value(place))
                for label, place in zip(labels[real].tolist(), places[real].tolist(), strict=True)
            ]
        return self._children[base]

    def _value(self, index: int) -> int | None:
        if not int(self._units[index]) >> 8 & 1:
            return None
        return int(self._units[self._base(index)]) & 0x7FFFFFFF
