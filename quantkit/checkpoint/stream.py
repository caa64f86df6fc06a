"""One read of a weight file that serves everyone: the digests and the conversion.

The file is cut into segments (:func:`gaps`, or pieces of tensors made by the
conversion). Each is read once, by position, into a reused buffer; the digests' threads
and the consumer's thread work on it side by side while the next one is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from quantkit.checkpoint.reading import open_weights, read_range
from quantkit.digests import StreamDigest
from quantkit.types import FileDigest

#: The size that segments aim at, in bytes: what is read, digested, quantized and written
#: then stays in the caches of a core.
SEGMENT_BYTES = 2 << 20

#: How many segments are in flight at once: one being read, one digested by each
#: thread, one converted, and some slack for the slower of them.
_DEPTH = 6


@dataclass(frozen=True)
class Segment:
    """A range of a file. ``tensor`` names whose bytes they are, if anyone's.

    Segments with ``hashed`` cover the file once, in order; the others repeat bytes that
    a second tensor shares with a first.
    """

    offset: int
    length: int
    tensor: str | None = None
    last: bool = False
    hashed: bool = True


Consumer = Callable[[Segment, memoryview], None]


def gaps(start: int, end: int) -> Iterator[Segment]:
    """Segments that are only digested, from ``start`` to ``end``."""
    for offset in range(start, end, SEGMENT_BYTES):
        yield Segment(offset, min(SEGMENT_BYTES, end - offset))


def stream_file(
    path: Path,
    segments: Iterable[Segment],
    *,
    md5: bool,
    consume: Consumer | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> FileDigest:
    """Read ``segments`` of ``path`` in order, digesting and consuming them.

    ``consume`` is called on a thread of its own, in order; the view it gets is valid
    until it returns. ``progress`` is told of bytes that everyone is done with.

    Raises:
        CheckpointError: the file ended early, or cannot be read.
        Whatever ``consume`` raises.
    """
    with (
        open_weights(path) as file,
        closing(StreamDigest(md5=md5)) as digest,
        ThreadPoolExecutor(1, "consume") as worker,
    ):
        pool = _Buffers()
        flight: deque[tuple[bytearray, int, list[Future[None]]]] = deque()
        try:
            for segment in segments:
                if len(flight) >= _DEPTH:
                    progress(_land(flight, pool))
                buffer = pool.take(segment.length)
                view = memoryview(buffer)[: segment.length]
                read_range(file.fileno(), segment.offset, view, str(path))
                waits = digest.feed(view) if segment.hashed else []
                if consume is not None and segment.tensor is not None:
                    waits.append(worker.submit(consume, segment, view))
                flight.append((buffer, segment.length if segment.hashed else 0, waits))
            while flight:
                progress(_land(flight, pool))
        except BaseException:
            worker.shutdown(wait=True, cancel_futures=True)
            raise
        return digest.result(path.name, is_weight=True)


def _land(flight: deque[tuple[bytearray, int, list[Future[None]]]], pool: _Buffers) -> int:
    """Wait for the oldest segment, give its buffer back, and return its length."""
    buffer, length, waits = flight.popleft()
    for each in waits:
        each.result()
    pool.give(buffer)
    return length


class _Buffers:
    """Reused buffers of one segment; larger ones are made and dropped."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self, length: int) -> bytearray:
        if length > SEGMENT_BYTES:
            return bytearray(length)
        return self._free.pop() if self._free else bytearray(SEGMENT_BYTES)

    def give(self, buffer: bytearray) -> None:
        if len(buffer) == SEGMENT_BYTES:
            self._free.append(buffer)
