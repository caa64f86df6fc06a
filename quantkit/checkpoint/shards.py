"""Safetensors files laid out before their bytes exist, and written by position.

The layout is fixed by the plan. Within a shard the tensors lie in the order in which they are
given, which is the order in which a conversion reads them: so the file can be digested while it
grows. Tensors whose length would leave the next one unaligned come after the others, the wider
elements first, and texts of variable length come last. The header is padded to its greatest
length, so that all positions are known while the bytes are made.

Source: the safetensors format (8 bytes little-endian header length, JSON, data).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit.checkpoint.safetensors_header import DTYPES, read_safetensors_header
from quantkit.digests import RunningDigest
from quantkit.elements import Array
from quantkit.types import ITEM_BYTES, OutputTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_CODES = {dtype: code for code, dtype in DTYPES.items()}

#: Whatever is this long leaves the next tensor aligned, whatever its elements.
_ALIGNED = max(ITEM_BYTES.values())

#: The system's error numbers for a full disk, or a quota that is used up.
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Shard:
    """One safetensors file to be: its tensors in file order.

    ``header_bytes`` counts the length field too. ``slack`` is how much smaller than
    ``nbytes`` the file may turn out.
    """

    name: str
    tensors: tuple[OutputTensor, ...]
    header_bytes: int

    @property
    def nbytes(self) -> int:
        return self.header_bytes + sum(each.nbytes for each in self.tensors)

    @property
    def slack(self) -> int:
        return sum(each.nbytes - each.shape[0] for each in self.tensors if each.variable)


def layout(groups: Iterable[Sequence[OutputTensor]], limit: int) -> tuple[Shard, ...]:
    """Spread groups of tensors over shards of at most ``limit`` bytes of data.

    A group (all that stands for one weight) is never split: loaders look for a weight's
    statistics in the weight's own file. A group larger than ``limit`` gets a shard alone.
    """
    bins: list[list[OutputTensor]] = [[]]
    filled = 0
    for group in filter(None, groups):  # a dropped tensor must not open a shard that stays empty
        size = sum(each.nbytes for each in group)
        if bins[-1] and filled + size > limit:
            bins.append([])
            filled = 0
        bins[-1].extend(group)
        filled += size
    return tuple(
        _shard(SINGLE if len(bins) == 1 else f"model-{at:05}-of-{len(bins):05}.safetensors", each)
        for at, each in enumerate(bins, start=1)
    )


def _shard(name: str, tensors: Sequence[OutputTensor]) -> Shard:
    ordered = sorted(tensors, key=_place)
    longest = _header(ordered, {each.name: each.nbytes for each in ordered})
    padded = -(-len(longest) // _ALIGNED) * _ALIGNED  # rounded up
    return Shard(name, tuple(ordered), 8 + padded)


def _place(tensor: OutputTensor) -> tuple[bool, bool, int]:
    """The sort key of the layout; tensors with equal keys stay in the order they are made in."""
    uneven = tensor.nbytes % _ALIGNED != 0
    return tensor.variable, uneven, -ITEM_BYTES[tensor.dtype] if uneven else 0


def _header(tensors: Sequence[OutputTensor], lengths: Mapping[str, int]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for each in tensors:
        length = lengths[each.name]
        shape = [length] if each.variable else list(each.shape)
        entries[each.name] = {
            "dtype": _CODES[each.dtype],
            "shape": shape,
            "data_offsets": [at, at + length],
        }
        at += length
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()


class ShardWriter:
    """Writes one shard by position; bytes may come in any order.

    ``finish`` writes the header last, so that a file cut short never looks whole. The digest can
    begin with the header all the same, unless there are texts, whose lengths come late. To have the
    digest, give all that is written to ``digest`` too, on one thread; ``write`` and ``flush`` may
    run on others.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._shard = shard
        self._path = folder / shard.name
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with self._named():
                set_aside(self._fd, shard.nbytes)
        except OSError:
            os.close(self._fd)
            raise
        self._at: dict[str, int] = {}
        self._variable = {each.name for each in shard.tensors if each.variable}
        self._texts: dict[str, bytes] = {}
        at = shard.header_bytes
        for each in shard.tensors:
            self._at[each.name] = at
            at += each.nbytes
        self._digest = None if self._variable else RunningDigest(self._head({}))

    def close(self) -> None:
        os.close(self._fd)

    @property
    def file(self) -> str:
        return self._shard.name

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._at)

    def write(self, name: str, offset: int, data: Array) -> None:
        """Put ``data``'s bytes ``offset`` bytes into the tensor ``name``."""
        if name in self._variable:
            self._texts[name] = _bytes_of(data).tobytes()
        else:
            self._put(_bytes_of(data).data, self._at[name] + offset)

    def digest(self, name: str, offset: int, data: Array) -> None:
        """Take the bytes of a ``write`` into the file's digest."""
        if self._digest is not None:
            self._digest.feed(self._at[name] + offset, _bytes_of(data).data)

    def flush(self) -> None:
        """Have the disk take what was written so far."""
        with self._named():
            os.fsync(self._fd)

    def finish(self) -> str | None:
        """Append the texts, then the header.

        Returns the file's SHA-256. ``None`` where the file must be read for it: it has texts, or
        not all of it was given to ``digest``, roughly in the file's order.
        """
        lengths = {name: len(text) for name, text in self._texts.items()}
        at = self._shard.header_bytes + sum(
            each.nbytes for each in self._shard.tensors if not each.variable
        )
        for each in self._shard.tensors:
            if each.variable:
                self._put(memoryview(self._texts[each.name]), at)
                at += lengths[each.name]
        os.ftruncate(self._fd, at)
        self._put(memoryview(self._head(lengths)), 0)
        return self._digest.result(at) if self._digest is not None else None

    def _head(self, lengths: Mapping[str, int]) -> bytes:
        """The length field and the header, given the ``lengths`` of the texts."""
        room = self._shard.header_bytes - 8
        every = {each.name: each.nbytes for each in self._shard.tensors} | dict(lengths)
        return room.to_bytes(8, "little") + _header(self._shard.tensors, every).ljust(room)

    def _put(self, data: memoryview, offset: int) -> None:
        with self._named():
            write_all(self._fd, data, offset)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Add the path to an OSError, which the system cannot tell from a descriptor."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def _bytes_of(data: Array) -> Array:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


def set_aside(fd: int, size: int) -> None:
    """Have the file system reserve ``size`` bytes for a file at once, not write by write.

    That halves its work, and a file that was begun never runs out of space. A file system that
    cannot do so is left alone; glibc's posix_fallocate would write to every block instead.

    Raises:
        OSError: there is no such space.
    """
    if sys.platform != "linux":
        return
    allocate = ctypes.CDLL(None, use_errno=True).fallocate
    allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if size and allocate(fd, 0, 0, size) and ctypes.get_errno() in FULL:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """All of ``data`` at ``offset``; one call of the system's may write less."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def flush(path: Path) -> None:
    """Have the disk take a file, or a folder's names."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_whole(path: Path, text: str) -> None:
    """A text in its file, flushed: who reads it sees the old one or the new one."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        flush(new)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """``model.safetensors.index.json``, when there is more than one shard."""
    if len(shards) < 2:
        return
    weight_map = {each.name: shard.name for shard in shards for each in shard.tensors}
    # from the files: the plan knows only the greatest length of some tensors
    headers = (read_safetensors_header(folder / shard.name) for shard in shards)
    total = sum(each.nbytes for records in headers for each in records)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
