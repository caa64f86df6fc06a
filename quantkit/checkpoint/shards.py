"""Safetensors files laid out before their bytes exist, and written by position.

The layout is fixed by the plan: within a shard the tensors of wider elements come
first, so that every one is aligned, and texts of variable length come last. A header
padded to its greatest length keeps all positions known while the bytes are made.

Source: the safetensors format (8 bytes little-endian header length, JSON, data).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit.checkpoint.safetensors_header import DTYPES, read_safetensors_header
from quantkit.elements import Array
from quantkit.types import ITEM_BYTES, OutputTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_CODES = {dtype: code for code, dtype in DTYPES.items()}


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
    for group in groups:
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
    ordered = sorted(tensors, key=lambda each: (each.variable, -ITEM_BYTES[each.dtype]))
    longest = _header(ordered, {each.name: each.nbytes for each in ordered})
    return Shard(name, tuple(ordered), 8 + -(-len(longest) // 8) * 8)


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

    ``finish`` writes the header last, so that a file cut short never looks whole.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._shard = shard
        self._path = folder / shard.name
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._at: dict[str, int] = {}
        self._variable = {each.name for each in shard.tensors if each.variable}
        self._texts: dict[str, bytes] = {}
        at = shard.header_bytes
        for each in shard.tensors:
            self._at[each.name] = at
            at += each.nbytes

    def close(self) -> None:
        os.close(self._fd)

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._at)

    def write(self, name: str, offset: int, data: Array) -> None:
        """Put ``data``'s bytes ``offset`` bytes into the tensor ``name``."""
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if name in self._variable:
            self._texts[name] = raw.tobytes()
            return
        self._put(raw.data, self._at[name] + offset)

    def finish(self) -> None:
        """Append the texts, then the header."""
        lengths = {each.name: each.nbytes for each in self._shard.tensors}
        lengths |= {name: len(text) for name, text in self._texts.items()}
        at = self._shard.header_bytes + sum(
            each.nbytes for each in self._shard.tensors if not each.variable
        )
        for each in self._shard.tensors:
            if each.variable:
                self._put(memoryview(self._texts[each.name]), at)
                at += lengths[each.name]
        os.ftruncate(self._fd, at)
        room = self._shard.header_bytes - 8
        header = _header(self._shard.tensors, lengths).ljust(room)
        self._put(memoryview(room.to_bytes(8, "little") + header), 0)

    def _put(self, data: memoryview, offset: int) -> None:
        try:
            write_all(self._fd, data, offset)
        except OSError as error:  # by its descriptor the system cannot say which file it was
            raise OSError(error.errno, error.strerror, str(self._path)) from error


class WriteQueue:
    """Puts bytes into the shards on a thread of its own, a few writes behind the encoders."""

    _DEPTH = 8

    def __init__(self, writers: Sequence[ShardWriter]) -> None:
        self._home = {name: writer for writer in writers for name in writer.names}
        self._thread = ThreadPoolExecutor(1, "write")
        self._flight: deque[Future[None]] = deque()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def put(self, name: str, offset: int, data: Array) -> None:
        """Queue a write; raises what an earlier one met."""
        if len(self._flight) >= self._DEPTH:
            self._flight.popleft().result()
        self._flight.append(self._thread.submit(self._home[name].write, name, offset, data))

    def drain(self) -> None:
        while self._flight:
            self._flight.popleft().result()


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
    # of what was written: the plan knows only the most that some tensors may take
    headers = (read_safetensors_header(folder / shard.name)[0] for shard in shards)
    total = sum(each.nbytes for records in headers for each in records)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
