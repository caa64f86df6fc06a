"""Bytes of weight files, read by position.

Never through mmap: a file that shrinks under a map kills the process with SIGBUS,
where a short read is an error that can be told.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from quantkit.checkpoint.layout import touched_elements
from quantkit.checkpoint.names import quoted
from quantkit.elements import dtype_of
from quantkit.errors import CheckpointError
from quantkit.types import ITEM_BYTES, TensorRecord

if TYPE_CHECKING:
    import torch

#: How much of each of two tensors is held while they are compared, in bytes.
_PIECE = 2 << 20


@dataclass(frozen=True)
class Stamp:
    """What tells a file from the one that was there before: its identity, size and last write.

    ``changed_ns`` is the system's own time of the last change, which no program can set back. It
    is not compared, as a link or other permissions change it too.
    """

    device: int
    inode: int
    nbytes: int
    written_ns: int
    changed_ns: int = field(compare=False)


def stamp_of(file: int | Path) -> Stamp:
    """The stamp of an open file, or of what a path leads to.

    Raises:
        OSError: there is nothing.
    """
    found = os.fstat(file) if isinstance(file, int) else file.stat()
    identity = found.st_dev, found.st_ino, found.st_size
    return Stamp(*identity, found.st_mtime_ns, found.st_ctime_ns)


def check_unchanged(stamp: Stamp, fd: int, path: Path) -> None:
    """See that nothing wrote to the open file since ``stamp``, or put another in its place.

    Raises:
        CheckpointError: something did.
    """
    try:
        unchanged = stamp_of(fd) == stamp == stamp_of(path)
    except OSError:
        unchanged = False
    if not unchanged:
        raise CheckpointError(
            f"{path}: it was changed, or replaced, while it was being read; see that nothing "
            "writes to it, and run again"
        )


def leads_out(path: Path) -> bool:
    """Whether ``path`` is a link out of its folder, other than into the blobs of a Hub cache.

    A cache has ``snapshots/COMMIT/`` beside ``blobs/``, and links each file there, those of a
    folder in it too.
    """
    if not path.is_symlink():
        return False
    folder, target = path.parent.resolve(), path.resolve()
    homes = [folder]
    for snapshot in (folder, folder.parent):
        if snapshot.parent.name == "snapshots":
            homes.append(snapshot.parent.parent / "blobs")
    return not any(target.is_relative_to(home) for home in homes)


@contextmanager
def open_weights(path: Path) -> Iterator[BinaryIO]:
    """``path`` opened for reading; symbolic links are followed inside the folder.

    Only a regular file is opened: a pipe would block, a device never end.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CheckpointError(
            f"{path}: expected a readable weight file, got {error.strerror}; "
            "fetch the checkpoint again"
        ) from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(
            f"{path}: expected a regular file, got {stat.filemode(mode)}; remove or replace it"
        )
    if leads_out(path):
        raise CheckpointError(
            f"{path}: a link that leaves the folder, to {quoted(str(path.resolve()))}; put the "
            "file itself there"
        )
    try:
        stream = path.open("rb")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be opened: {error.strerror}; check its permissions"
        ) from None
    with stream:
        yield stream


def read_range(fd: int, offset: int, buffer: memoryview, where: str = "weight file") -> None:
    """Fill ``buffer`` with the bytes of ``fd`` from ``offset`` on; ``where`` begins messages.

    One call returns at most 2 GiB on Linux and may return less, hence the loop.
    """
    if buffer.nbytes == 0:  # cast() refuses empty views
        return
    view = buffer.cast("B")
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(
                f"{where}: reading at byte {offset + done} failed: {error.strerror}; check the disk"
            ) from None
        if count == 0:
            raise CheckpointError(
                f"{where}: expected {len(view)} bytes from byte {offset}, "
                f"the file ends after {done}; it is truncated or was changed while being read, "
                "fetch it again"
            )
        done += count


def read_bytes(fd: int, offset: int, length: int, where: str) -> bytes:
    """``length`` bytes of ``fd`` from ``offset`` on, for headers and other small things."""
    buffer = bytearray(length)
    read_range(fd, offset, memoryview(buffer), where)
    return bytes(buffer)


def read_tensor(folder: Path, record: TensorRecord, stamp: Stamp | None = None) -> torch.Tensor:
    """The tensor that ``record`` describes, contiguous, with memory of its own.

    ``record.file`` lies in ``folder``, and must still have ``stamp`` where one is given.
    Peak memory: the record's byte range, and for a strided record its elements besides.
    """
    import torch  # seconds to import, and headers are read without it

    where = f"{folder / record.file}: tensor {quoted(record.name)}"
    _check_range(record, where)
    raw = torch.empty(record.nbytes, dtype=torch.uint8)
    with open_weights(folder / record.file) as stream:
        read_range(stream.fileno(), record.offset, raw.numpy().data, where)
        if stamp is not None:
            check_unchanged(stamp, stream.fileno(), folder / record.file)
    if record.dtype == "bool" and bool((raw > 1).any()):
        # Other bytes are neither true nor false to torch: equal and unequal at once.
        raise CheckpointError(
            f"{where}: expected bool bytes 0 and 1, got others; the file is damaged, fetch it again"
        )
    flat = raw.view(getattr(torch, record.dtype))
    if record.stride is None:
        return flat.reshape(record.shape)
    return flat.as_strided(record.shape, record.stride).contiguous()


def same_values(folder: Path, one: TensorRecord, other: TensorRecord) -> bool:
    """Whether two stored tensors hold equal values (``0`` equals ``-0``, NaN equals nothing).

    They are compared piece by piece and without torch, unless one is strided or their data
    types differ.
    """
    if one.shape != other.shape:
        return False
    if one.stride or other.stride or one.dtype != other.dtype:
        return bool((read_tensor(folder, one) == read_tensor(folder, other)).all())
    for record in (one, other):
        _check_range(record, f"{folder / record.file}: tensor {quoted(record.name)}")
    with open_weights(folder / one.file) as first, open_weights(folder / other.file) as second:
        for at in range(0, one.nbytes, _PIECE):
            length = min(_PIECE, one.nbytes - at)
            left = read_bytes(first.fileno(), one.offset + at, length, str(folder / one.file))
            right = read_bytes(second.fileno(), other.offset + at, length, str(folder / other.file))
            kind = dtype_of(one.dtype)
            if not np.array_equal(np.frombuffer(left, kind), np.frombuffer(right, kind)):
                return False
    return True


def _check_range(record: TensorRecord, where: str) -> None:
    """Check that a record's size fits its shape, so that no view can leave its buffer."""
    item = ITEM_BYTES.get(record.dtype)
    if item is None:
        raise CheckpointError(
            f"{where}: expected a dtype among {', '.join(ITEM_BYTES)}, got {quoted(record.dtype)}; "
            "start from an unquantized release of the model"
        )
    touched = (
        record.elements if record.stride is None else touched_elements(record.shape, record.stride)
    )
    if record.nbytes != touched * item:
        raise CheckpointError(
            f"{where}: expected a range of {touched * item} bytes for its shape, "
            f"got {record.nbytes}; open the checkpoint again"
        )
