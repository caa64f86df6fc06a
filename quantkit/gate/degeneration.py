"""Output that no one would call an answer: nothing, special tokens alone, or a loop."""

from __future__ import annotations

from collections.abc import Collection, Sequence

#: A loop repeats at most so many tokens, so many times over, to the very end.
_LONGEST_PERIOD = 8
_REPEATS = 4


def degenerate(tokens: Sequence[int], special: Collection[int]) -> str:
    """``"empty"``, ``"special"`` or ``"loop"``; ``""`` for anything else.

    ``tokens`` is a continuation; the end-of-text token that closed it does not count.
    """
    words = [each for each in tokens if each not in special]
    if not words:
        return "special" if len(tokens) > 1 else "empty"
    return "loop" if _loops(words) else ""


def _loops(words: Sequence[int]) -> bool:
    """Whether the end repeats one period at least ``_REPEATS`` times, over half of the whole."""
    for period in range(1, _LONGEST_PERIOD + 1):
        same = 0
        while same < len(words) - period and words[-1 - same] == words[-1 - same - period]:
            same += 1
        length = same + period
        if length >= _REPEATS * period and length * 2 >= len(words) and length > _REPEATS:
            return True
    return False
