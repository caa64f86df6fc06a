"""The values that a GPTQ weight may take, and which scales are tried for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: The search ranks so many scales, from the whole range down to this part of it...
SHRINKS, LEAST_SHRINK = 26, 0.5

#: ...and tries so many of the best with errors passed on.
TRIED = 4


@dataclass(frozen=True)
class Grid:
    """The values a weight may take: ``scale * (code - zero_point)``, code in [0, 2^bits).

    ``group_size`` input columns share a scale; it divides the number of columns. ``sym``
    fixes the zero point in the middle. ``search`` looks for the scale of least loss instead
    of taking the whole range; with ``sym`` it tries negative scales too, since the grid
    reaches one step farther on one side. ``static`` finds all scales from the weights
    before any is rounded. ``least_zero`` bounds an asymmetric zero point from below.
    """

    bits: int
    group_size: int
    sym: bool
    search: bool
    static: bool = False
    least_zero: int = 0

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 1 << (self.bits - 1)

    @property
    def shrinks(self) -> list[float]:
        """The parts of the range that are tried as scales, negative ones with their sign."""
        if not self.search:
            return [1.0]
        parts = np.linspace(1.0, LEAST_SHRINK, SHRINKS, dtype=np.float32).tolist()
        return [*parts, *(-each for each in parts)] if self.sym else parts

    @property
    def tried(self) -> int:
        """How many of the ``shrinks`` are tried with errors passed on."""
        return TRIED if self.search else 1
