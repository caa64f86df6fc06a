"""One read of a weight file that serves everyone: the digests and the conversion.

The file is cut into segments (:func:`segments`: pieces of tensors, and what lies between).
Each is read once, by position, into a reused buffer; the threads of the file's digests, of
the tensors' and of the consumer work on it side by side while the next one is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from quantkit.checkpoint.fingerprint import TensorDigest, TensorDigests, fingerprint
from quantkit.checkpoint.folder import CheckpointIndex
from quantkit.checkpoint.known import Known, KnownDigest, find_known, keep_known
from quantkit.checkpoint.reading import (
    Stamp,
    check_unchanged,
    open_weights,
    read_range,
    stamp_of,
)
from quantkit.digests import StreamDigest
from quantkit.errors import CheckpointError
from quantkit.lanes import Lane, Task
from quantkit.types import ITEM_BYTES, Digested, FileDigest, TensorRecord

#: The size that segments aim at, in bytes: what is read, digested, quantized and written
#: then stays in the caches of a core.
SEGMENT_BYTES = 2 << 20

#: How many segments are in flight at once: one being read, one digested by each
#: thread, one converted, and some slack for the slower of them. Where they are larger (weights
#: that must be held whole), one is read while the one before is worked on.
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

#: Buffers in work: each with the bytes of progress it counts for, and the tasks that use it.
_Flight = deque[tuple[bytearray, int, list[Task]]]

#: How many bytes of a tensor belong together: a piece is a multiple of it.
Unit = Callable[[TensorRecord], int]


def element_or_whole(record: TensorRecord) -> int:
    """The unit where nothing more is known: a strided tensor must be rearranged whole."""
    return ITEM_BYTES[record.dtype] if record.stride is None else max(1, record.nbytes)


def segments(
    records: Iterable[TensorRecord], size: int, unit: Unit = element_or_whole
) -> Iterator[Segment]:
    """A file of ``size`` bytes, once and in order: pieces of its tensors, and what is between."""
    at = 0
    # by name where they begin alike: a header's order must not decide what is between tensors
    for record in sorted(records, key=lambda each: (each.offset, each.name)):
        yield from _gaps(at, record.offset)
        yield from _pieces(record, unit(record), hashed=record.offset >= at)
        if record.offset >= at:
            at = record.offset + record.nbytes
    yield from _gaps(at, size)


def _pieces(record: TensorRecord, unit: int, *, hashed: bool) -> Iterator[Segment]:
    step = max(unit, SEGMENT_BYTES // unit * unit)
    end = record.offset + record.nbytes
    for offset in range(record.offset, end, step):
        length = min(step, end - offset)
        yield Segment(offset, length, record.name, offset + length == end, hashed)


def _gaps(start: int, end: int) -> Iterator[Segment]:
    """Segments that are only digested, from ``start`` to ``end``."""
    for offset in range(start, end, SEGMENT_BYTES):
        yield Segment(offset, min(SEGMENT_BYTES, end - offset))


def stream_file(
    path: Path,
    segments: Iterable[Segment],
    digest: StreamDigest | KnownDigest,
    *,
    stamp: Stamp | None = None,
    tensors: TensorDigests | None = None,
    consume: Consumer | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> FileDigest:
    """Read ``segments`` of ``path`` in order, digesting and consuming them.

    ``digest`` is fed the whole file, and closed at the end. ``stamp`` was taken when the header was
    read, and must still hold at the end. ``tensors`` is fed all bytes; ask it for their digests
    afterwards.
    ``consume`` is called on a thread of its own, in order; the view it gets is valid until it
    returns. ``progress`` is told of bytes that everyone is done with.

    Raises:
        CheckpointError: the file ended early, or cannot be read.
        Whatever ``consume`` raises.
    """
    with (
        open_weights(path) as file,
        closing(digest),
        Lane("consume") as consumer_lane,
        Lane("tensors") as tensor_lane,
    ):
        pool = _Buffers()
        stamp = stamp or stamp_of(file.fileno())
        check_unchanged(stamp, file.fileno(), path)
        flight: _Flight = deque()
        for segment in segments:
            while len(flight) >= _DEPTH or (len(flight) > 1 and _is_large(flight)):
                progress(_land(flight, pool))
            buffer = pool.take(segment.length)
            view = memoryview(buffer)[: segment.length]
            read_range(file.fileno(), segment.offset, view, str(path))
            waits = digest.feed(view) if segment.hashed else []
            if tensors is not None:
                waits.append(tensor_lane.submit(tensors.feed, segment.tensor, view))
            if consume is not None and segment.tensor is not None:
                waits.append(consumer_lane.submit(consume, segment, view))
            flight.append((buffer, segment.length if segment.hashed else 0, waits))
        while flight:
            progress(_land(flight, pool))
        check_unchanged(stamp, file.fileno(), path)
        return digest.result(path.name, is_weight=True)


def stream_checkpoint(
    folder: Path,
    index: CheckpointIndex,
    *,
    md5: Callable[[str, int], bool],
    unit: Unit = element_or_whole,
    consume: Consumer | None = None,
    recall: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> Digested:
    """Read every weight file of a checkpoint once, whole and in order.

    ``md5`` says of a file's name and size whether its MD5 is wanted; ``unit`` and ``consume`` serve
    a conversion. ``recall`` takes over a file's SHA-256 and MD5 from an earlier run if the content
    is the same; a file that turns out to differ is read a second time.

    Raises:
        As :func:`stream_file`.
    """
    files: list[FileDigest] = []
    tensors: list[TensorDigest] = []
    recalled: list[str] = []
    for name in index.files:
        path, size = folder / name, index.file_bytes[name]
        stamp, wanted = index.stamps[name], md5(name, size)
        records = [each for each in index.tensors if each.file == name]
        digests = TensorDigests(records)
        # where the tensors do not see every byte, there is no content to compare with the known
        known = find_known(stamp, md5=wanted) if recall and digests.see_all else None
        file = stream_file(
            path,
            segments(records, size, unit),
            StreamDigest(md5=wanted) if known is None else KnownDigest(known, md5=wanted),
            stamp=stamp,
            tensors=digests,
            consume=consume,
            progress=progress,
        )
        content = digests.content(size)
        if known is not None and content == known.content:
            recalled.append(name)
        elif content is not None:
            if known is not None:
                file = _digest_again(path, records, content, md5=wanted, stamp=stamp)
            keep_known(stamp, Known(content, file.sha256, file.md5))
        files.append(file)
        tensors += digests.result()
    return Digested(tuple(files), fingerprint(tensors), tuple(recalled))


def _digest_again(
    path: Path, records: Sequence[TensorRecord], content: str, *, md5: bool, stamp: Stamp
) -> FileDigest:
    """Read a file in full whose stamp is known with another content; it must have ``content``."""
    digests, size = TensorDigests(records), stamp.nbytes
    whole = segments(records, size)
    file = stream_file(path, whole, StreamDigest(md5=md5), stamp=stamp, tensors=digests)
    if digests.content(size) != content:
        raise CheckpointError(
            f"{path}: two reads gave other bytes; see that nothing writes to it, check disk and "
            "memory, and run again"
        )
    return file


def stream_tensors(
    folder: Path,
    index: CheckpointIndex,
    records: Iterable[TensorRecord],
    *,
    unit: Unit,
    consume: Consumer,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Read some tensors of files that were digested before, for the consumer alone.

    Raises:
        CheckpointError: a file is not as it was when its header was read, or cannot be read.
        Whatever ``consume`` raises.
    """
    wanted = sorted(records, key=lambda each: (each.offset, each.name))
    for name in index.files:
        path, own = folder / name, [each for each in wanted if each.file == name]
        with open_weights(path) as file:
            check_unchanged(index.stamps[name], file.fileno(), path)
            for record in own:
                for segment in _pieces(record, unit(record), hashed=False):
                    view = memoryview(bytearray(segment.length))
                    read_range(file.fileno(), segment.offset, view, str(path))
                    consume(segment, view)
                    progress(segment.length)
            check_unchanged(index.stamps[name], file.fileno(), path)


def _is_large(flight: _Flight) -> bool:
    return sum(len(buffer) for buffer, _, _ in flight) > _DEPTH * SEGMENT_BYTES


def _land(flight: _Flight, pool: _Buffers) -> int:
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
