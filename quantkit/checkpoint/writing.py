"""The queue into the shards: its bytes are written, digested and flushed side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from quantkit.checkpoint.shards import ShardWriter
from quantkit.elements import Array
from quantkit.lanes import Lane, Task

#: How much is written before the disk is asked to take it, in bytes.
_FLUSH_BYTES = 32 << 20


class WriteQueue:
    """Puts bytes into the shards on a thread of its own, a few writes behind the encoders.

    Meanwhile two other threads digest and flush them: left to the end, either would take as long
    again, with nothing else to do beside it. After ``close`` no thread uses a writer any more.
    """

    _DEPTH = 8

    def __init__(self, writers: Sequence[ShardWriter]) -> None:
        self._home = {name: writer for writer in writers for name in writer.names}
        self._writer = Lane("write")
        self._digester = Lane("digest-output")
        self._flusher = Lane("flush")
        self._flight: deque[tuple[Task, Task]] = deque()
        self._flushing: Task | None = None
        self._unflushed = 0

    def close(self) -> None:
        for lane in (self._writer, self._digester, self._flusher):
            lane.close(cancel=True)

    def put(self, name: str, offset: int, data: Array) -> None:
        """Queue a write; raises what an earlier one met."""
        if len(self._flight) >= self._DEPTH:
            self._land()
        written = self._writer.submit(self._write, name, offset, data)
        digested = self._digester.submit(self._home[name].digest, name, offset, data)
        self._flight.append((written, digested))

    def drain(self) -> None:
        while self._flight:
            self._land()
        if self._flushing is not None:
            self._flushing.result()

    def _land(self) -> None:
        """Wait for the oldest write and its digest."""
        for each in self._flight.popleft():
            each.result()

    def _write(self, name: str, offset: int, data: Array) -> None:
        writer = self._home[name]
        writer.write(name, offset, data)
        self._unflushed += data.nbytes
        if self._unflushed < _FLUSH_BYTES or (self._flushing and not self._flushing.done()):
            return
        if self._flushing is not None:
            self._flushing.result()  # the system reports a fault to one flush only
        self._flushing, self._unflushed = self._flusher.submit(writer.flush), 0
