"""The hidden states of every window between two layers, in memory or in a file.

Beyond the stated room they lie in an unnamed temporary file, read and written by
position: the page cache may hold it, the process does not. Where a CUDA device computes,
they lie on it, then in the host's page-locked memory, and in the file only after that. What
goes to the host and comes back does so on a stream of its own, the next window's while this
one is computed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from quantkit.checkpoint.reading import read_range
from quantkit.checkpoint.shards import write_all
from quantkit.devices import free_memory

#: Activations beyond this spill to disk, in bytes. Little, as the page cache then holds what
#: memory it can: 64 windows of 1024 tokens at a width of 4096 are a gigabyte.
ROOM_BYTES = 16 << 20

#: The most that they take on a CUDA device, in bytes, where a quarter of what is free allows it.
DEVICE_BYTES = 11 << 29


@dataclass(frozen=True)
class Coming:
    """A copy on its way to the device, and what is recorded when it is there."""

    made: Tensor
    there: torch.cuda.Event


class Nearby:
    """Memory for activations where a CUDA device computes: its own, then the host's.

    A tensor that was handed out stays its owner's: its room does not come back. Copies run on
    one stream in the order in which they are asked for, beside what is computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        free, _ = torch.cuda.mem_get_info(device)
        self._left = {
            "device": min(DEVICE_BYTES, free // 4),
            "host": free_memory() // 4,
        }

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
        """A new tensor, as near as there is room; none where there is no room at all."""
        size = prod(shape) * dtype.itemsize
        for place, left in self._left.items():
            if size <= left:
                self._left[place] -= size
                if place == "device":
                    return torch.empty(*shape, dtype=dtype, device=self.device)
                return torch.empty(*shape, dtype=dtype, pin_memory=True)
        return None

    def send(self, hidden: Tensor, held: Tensor) -> None:
        """Copy what was computed to where it is held, once it is computed."""
        if held.is_cuda:
            held.copy_(hidden)
            return
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            held.copy_(hidden, non_blocking=True)
        hidden.record_stream(self._copies)  # its memory is not another's until it is copied

    def begin(self, held: Tensor) -> Coming:
        """Begin to copy what the host holds."""
        with torch.cuda.stream(self._copies):
            made = held.to(self.device, non_blocking=True)
        return Coming(made, self._copies.record_event())

    def end(self, coming: Coming) -> Tensor:
        """What was begun; what is computed from now on waits until it is there."""
        now = torch.cuda.current_stream(self.device)
        now.wait_event(coming.there)
        coming.made.record_stream(now)
        return coming.made


class Activations:
    """One tensor (1, tokens, ``width``) a window. Use as a context manager.

    ``lengths`` are the windows' tokens; ``folder`` is where the file goes, if any;
    ``nearby`` is given where a CUDA device computes, and then ``room`` counts for nothing.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        width: int,
        dtype: torch.dtype,
        folder: Path,
        room: int = ROOM_BYTES,
        nearby: Nearby | None = None,
    ) -> None:
        self._lengths, self._width, self._dtype = tuple(lengths), width, dtype
        self._folder, self._nearby = folder, nearby
        row = width * dtype.itemsize
        self._at = [row * before for before in accumulate(self._lengths, initial=0)]
        self._held: list[Tensor | None] = [None] * len(self._lengths)
        self._coming: dict[int, Coming] = {}
        self._file: BinaryIO | None = None
        if nearby is None and self._at[-1] > room:
            self._file = self._open()

    def _open(self) -> BinaryIO:
        return tempfile.TemporaryFile(dir=self._folder, buffering=0)

    @property
    def spilled(self) -> bool:
        """Whether they lie in a file."""
        return self._file is not None

    def __getitem__(self, window: int) -> Tensor:
        """The window's hidden states, on the device or on the CPU; not to be written into."""
        held = self._held[window]
        if held is not None:
            return held if self._nearby is None else self._fetch(self._nearby, window, held)
        assert self._file is not None, "read before it was written"
        made = torch.empty(1, self._lengths[window], self._width, dtype=self._dtype)
        raw = made.view(torch.uint8).reshape(-1).numpy().data
        read_range(self._file.fileno(), self._at[window], raw, "activations")
        return made

    def __setitem__(self, window: int, hidden: Tensor) -> None:
        self._coming.pop(window, None)  # a copy of what was there before
        held = self._near(window)
        if held is not None and self._nearby is not None:
            self._nearby.send(hidden.detach().to(self._dtype).reshape(held.shape), held)
            return
        value = hidden.detach().to("cpu", self._dtype).reshape(1, -1, self._width)
        if self._file is None and self._nearby is None:
            self._held[window] = value
            return
        self._file = self._file or self._open()
        raw = value.contiguous().view(torch.uint8).reshape(-1).numpy().data
        write_all(self._file.fileno(), raw, self._at[window])

    def worth_keeping(self, window: int) -> bool:
        """Whether fetching a window is faster than computing it: not from a file to a device."""
        return self._nearby is None or self._near(window) is not None

    def _near(self, window: int) -> Tensor | None:
        """Where a window lies near a device, if there is one and there is room."""
        if self._nearby is not None and self._held[window] is None:
            shape = 1, self._lengths[window], self._width
            self._held[window] = self._nearby.empty(shape, self._dtype)
        return self._held[window]

    def _fetch(self, nearby: Nearby, window: int, held: Tensor) -> Tensor:
        """A window on the device; the next one that the host holds is begun."""
        coming = self._begun(nearby, window)
        later = range(window + 1, len(self._lengths))
        following = next((at for at in later if self._held[at] is not None), window)
        if following > window and (begun := self._begun(nearby, following)) is not None:
            self._coming[following] = begun
        return held if coming is None else nearby.end(coming)

    def _begun(self, nearby: Nearby, window: int) -> Coming | None:
        """The copy of a window that the host holds, begun now or before."""
        held = self._held[window]
        if held is None or held.is_cuda:
            return None
        return self._coming.pop(window, None) or nearby.begin(held)

    def forget(self) -> None:
        """Let go of what is held in memory; what is near a device is kept for the next use."""
        self._coming.clear()
        if self._nearby is None:
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

    Files are lent again, as the page cache takes what overwrites one far sooner than what makes
    one grow. The arguments are those of :class:`Activations`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        dtype: torch.dtype,
        folder: Path,
        room: int = ROOM_BYTES,
        nearby: Nearby | None = None,
    ) -> None:
        self._lengths, self._dtype, self._folder, self._room = lengths, dtype, folder, room
        self._nearby = nearby
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
        made = Activations(
            self._lengths, width, self._dtype, self._folder, self._room, self._nearby
        )
        return self._open.enter_context(made)

    def close(self) -> None:
        self._open.close()
