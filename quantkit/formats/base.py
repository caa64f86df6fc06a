"""What every format answers.

To add one: write a module beside this with a class that has these methods, name it in
:func:`quantkit.formats.format_of`, add its ``[method]`` to :mod:`quantkit.methods`, a
recipe, and an oracle test that compares every tensor with what the format's own library
writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quantkit.elements import Array
from quantkit.types import OutputTensor


@dataclass(frozen=True)
class Write:
    """Bytes for one output tensor, ``offset`` bytes into it."""

    name: str
    offset: int
    data: Array


class Encoder(Protocol):
    """Turns one weight, fed in pieces and in order, into its output tensors."""

    def feed(self, piece: Array) -> Iterator[Write]:
        """The next elements of the weight, 1-D, in the plan's data type.

        Every piece but the last is a multiple of the format's ``unit``.
        """
        ...

    def finish(self) -> Iterator[Write]:
        """What can be written only when the whole weight has been seen."""
        ...


class Format(Protocol):
    """One way to store weights."""

    @property
    def calibrated(self) -> bool:
        """Whether weights are made layer by layer before the one pass, which then skips them."""
        ...

    def unfit(self, weight: str, shape: tuple[int, int]) -> str | None:
        """Why the loaders cannot take a weight (out, in) of this shape; ``None`` if they can."""
        ...

    def outputs(self, weight: str, shape: tuple[int, int], dtype: str) -> tuple[OutputTensor, ...]:
        """The tensors that stand for the weight called ``weight``, ``shape`` (out, in).

        ``dtype`` is the data type that the weight is quantized from.
        """
        ...

    def unit(self, shape: tuple[int, int]) -> int:
        """Elements that a piece must be a multiple of."""
        ...

    def encoder(self, weight: str, shape: tuple[int, int], dtype: str, device: str) -> Encoder:
        """A fresh encoder for one weight."""
        ...

    def quantizes(self) -> bool:
        """Whether any module is quantized at all."""
        ...

    def quantization_config(
        self, kept: Sequence[str] | None, quantized: Sequence[str]
    ) -> dict[str, Any] | None:
        """What ``config.json`` says of the quantization; ``None`` for nothing.

        ``kept`` names the modules left as they are; ``None`` when they are exactly
        those that every version of the loader finds by itself. ``quantized`` names the others.
        """
        ...
