"""What every format answers. CONTRIBUTING.md has the steps by which one is added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quantkit.elements import Array
from quantkit.errors import NonFiniteError
from quantkit.types import OutputTensor


@dataclass(frozen=True)
class Write:
    """Bytes for one output tensor, ``offset`` bytes into it."""

    name: str
    offset: int
    data: Array


@dataclass(frozen=True)
class Kept:
    """Modules that stay as they are, in each form in which a loader may have to be told.

    ``rule`` are the patterns by which transformers leaves modules alone of itself (heads, tied
    ones), by names in memory and in the checkpoint; ``linears`` are the Linear modules that are
    not quantized, by the same two kinds of names, and ``in_layers`` those of them inside decoder
    layers, by names in the checkpoint. ``layers`` is the list of these layers, by its name in
    memory, empty where there is none.
    """

    rule: tuple[str, ...]
    linears: tuple[str, ...]
    in_layers: tuple[str, ...]
    layers: str = ""


class Encoder(Protocol):
    """Turns one weight, fed in pieces and in order, into its output tensors.

    Between them, ``feed`` and ``finish`` write every byte of each tensor that the format's
    ``outputs`` names, in any order, once; what nobody writes stays zero.
    """

    def feed(self, piece: Array) -> Iterator[Write]:
        """The next elements of the weight, 1-D, row-major as (out, in), in the plan's data type.

        Every piece but the last is a multiple of the format's ``unit``; it is valid until the
        next is asked for, so what is written of it must be a copy. Pieces and writes are in the
        host's memory, whatever the device.

        Raises:
            NonFiniteError: the piece holds NaN or infinity: :func:`refuse_nonfinite`, given what
                the kernel counted, or :func:`quantkit.elements.count_nonfinite`.
        """
        ...

    def finish(self) -> Iterator[Write]:
        """What can be written only when the whole weight has been seen."""
        ...


class Format(Protocol):
    """One way to store weights."""

    @property
    def calibrated(self) -> bool:
        """Whether weights are made layer by layer before the one pass, which then skips them.

        Only decoder layers are then quantized. The walk through them knows GPTQ alone so far.
        """
        ...

    def unfit(self, weight: str, shape: tuple[int, int], kind: str) -> str | None:
        """Why the loaders cannot take a weight (out, in) of this shape; ``None`` if they can.

        It then stays as it is, and this is what the plan says of it. ``kind`` is the module's
        class: ``Linear``, or GPT-2's ``Conv1D`` (whose weight is turned to (out, in) here).
        """
        ...

    def outputs(self, weight: str, shape: tuple[int, int], dtype: str) -> tuple[OutputTensor, ...]:
        """The tensors that stand for the weight called ``weight``, ``shape`` (out, in).

        ``dtype`` is the data type that the weight is quantized from.

        Raises:
            SourceError: the recipe's values do not go with this shape.
        """
        ...

    def unit(self, shape: tuple[int, int]) -> int:
        """Elements that a piece must be a multiple of; ``shape[1]`` for whole rows."""
        ...

    def encoder(self, weight: str, shape: tuple[int, int], dtype: str, device: str) -> Encoder:
        """A fresh encoder for one weight; ``device`` is where it may compute."""
        ...

    def quantization_config(self, kept: Kept, quantized: Sequence[str]) -> dict[str, Any] | None:
        """What ``config.json`` says of the quantization; ``None`` for nothing.

        ``quantized`` names the quantized modules as the checkpoint does.
        """
        ...


def refuse_nonfinite(
    weight: str, count: int, advice: str = "try --set method.dtype=bfloat16"
) -> None:
    """Stop where ``count`` values of a weight are NaN or infinite.

    Raises:
        NonFiniteError: there is one.
    """
    if count:
        raise NonFiniteError(
            f"{weight}: {count} values are NaN or infinite; the source is damaged or overflows "
            f"the data type ({advice})"
        )
