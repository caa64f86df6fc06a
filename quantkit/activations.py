"""The hidden states of every window between two layers, in memory or in a file.

Beyond the stated room they lie in an unnamed temporary file, read and written by
position: the page cache may hold it, the process does not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from quantkit.checkpoint.reading import read_range
from quantkit.checkpoint.shards import write_all

#: Activations beyond this spill to disk, in bytes. Little, as the page cache then holds what
#: memory it can: 64 windows of 1024 tokens at a width of 4096 are a gigabyte.
ROOM_BYTES = 16 << 20


class Activations:
    """One tensor (1, tokens, ``width``) a window. Use as a context manager.

    ``lengths`` are the windows' tokens; ``folder`` is where the file goes, if any.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        width: int,
        dtype: torch.dtype,
        folder: Path,
        room: int = ROOM_BYTES,
    ) -> None:
        self._lengths, self._width, self._dtype = tuple(lengths), width, dtype
        row = width * dtype.itemsize
        self._at = [row * before for before in accumulate(self._lengths, initial=0)]
        self._held: list[Tensor | None] = [None] * len(self._lengths)
        self._file = None
        if self._at[-1] > room:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed in __exit__

    @property
    def spilled(self) -> bool:
        """Whether they lie in a file."""
        return self._file is not None

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, window: int) -> Tensor:
        """The window's hidden states, on the CPU; not to be written into."""
        if self._file is None:
            held = self._held[window]
            assert held is not None, "read before it was written"
            return held
        made = torch.empty(1, self._lengths[window], self._width, dtype=self._dtype)
        raw = made.view(torch.uint8).reshape(-1).numpy().data
        read_range(self._file.fileno(), self._at[window], raw, "activations")
        return made

    def __setitem__(self, window: int, hidden: Tensor) -> None:
        value = hidden.detach().to("cpu", self._dtype).reshape(1, -1, self._width)
        if self._file is None:
            self._held[window] = value
        else:
            raw = value.contiguous().view(torch.uint8).reshape(-1).numpy().data
            write_all(self._file.fileno(), raw, self._at[window])

    def forget(self) -> None:
        """Let go of what is held in memory."""
        self._held = [None] * len(self._lengths)

    def __enter__(self) -> Activations:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


class Rooms:
    """Activations of one set of windows, some of them lent again and again; to be closed.

    What overwrites a file is taken by the page cache far sooner than what makes it grow.
    The arguments are those of :class:`Activations`.
    """

    def __init__(
        self, lengths: Sequence[int], dtype: torch.dtype, folder: Path, room: int = ROOM_BYTES
    ) -> None:
        self._lengths, self._dtype, self._folder, self._room = lengths, dtype, folder, room
        self._free: dict[int, list[Activations]] = {}
        self._open = ExitStack()

    @contextmanager
    def lend(self, width: int) -> Iterator[Activations]:
        """Activations of ``width``; what they held before is not theirs."""
        free = self._free.setdefault(width, [])
        lent = free.pop() if free else self.new(width)
        try:
            yield lent
        finally:
            lent.forget()
            free.append(lent)

    def new(self, width: int) -> Activations:
        """Activations of ``width``, to be kept until all are closed."""
        made = Activations(self._lengths, width, self._dtype, self._folder, self._room)
        return self._open.enter_context(made)

    def close(self) -> None:
        self._open.close()
