"""One model, asked layer by layer for its weights and then window by window for its logits.

Whole in memory, or walked one layer at a time by the sweep: to the last bit the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quantkit.gate.library import place
from quantkit.gate.models import load_plain
from quantkit.gate.opened import Opened, empty_model
from quantkit.skeleton import build_empty
from quantkit.sweep import Sweep

#: Hidden states of one model that stay in memory; beyond, they lie in a file. In bytes.
_ROOM = 256 << 20

Windows = Sequence[Sequence[int]]


class Runner(Protocol):
    """A model over its windows."""

    @property
    def count(self) -> int:
        """How many pieces there are."""
        ...

    def pieces(self) -> Iterator[tuple[str, nn.Module]]:
        """Its weights piece by piece, with the prefix of their names; walk it to the end.

        What is not in memory with a piece is on the meta device.
        """
        ...

    def logits(self, window: int) -> Tensor:
        """(tokens, vocabulary) of one window, after the walk."""
        ...


@dataclass(frozen=True)
class Whole:
    """A model that is in memory whole."""

    model: Any
    windows: Windows

    @property
    def count(self) -> int:
        return 1

    def pieces(self) -> Iterator[tuple[str, nn.Module]]:
        yield "", self.model

    def logits(self, window: int) -> Tensor:
        ids = torch.tensor([list(self.windows[window])], device=self.model.device)
        with torch.inference_mode():
            found: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
            return found


@dataclass(frozen=True)
class Walked:
    """A model of which one layer is in memory."""

    sweep: Sweep

    @property
    def count(self) -> int:
        return len(self.sweep.names) + 1

    def pieces(self) -> Iterator[tuple[str, nn.Module]]:
        yield "", self.sweep.model
        for layer in self.sweep.layers():
            yield f"{layer.name}.", layer.module

    def logits(self, window: int) -> Tensor:
        return self.sweep.logits(window)


@contextmanager
def walk(
    opened: Opened, windows: Windows, device: str, scratch: Path, dtype: str | None = None
) -> Iterator[Walked]:
    """Walk a checkpoint; ``dtype`` is for one that is not quantized."""
    model = (
        empty_model(opened, device)
        if dtype is None
        else build_empty(opened.parsed, dtype, with_buffers=True)
    )
    with Sweep(
        model,
        lambda names: opened.load(names, dtype),
        windows,
        scratch,
        device=device,
        dtype=getattr(torch, dtype or opened.dtype),
        room=_ROOM,
        fill=place,
    ) as sweep:
        yield Walked(sweep)


def hold(opened: Opened, windows: Windows, device: str, dtype: str) -> Whole:
    """An unquantized checkpoint whole, as ``dtype``."""
    return Whole(load_plain(opened, dtype, device), windows)
