"""Streamed digests: MD5 and SHA-256, each on a thread of its own.

:mod:`hashlib` releases the interpreter while it digests a large buffer, so the two
run beside each other and beside the conversion that reads the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from quantkit.lanes import Lane, Task
from quantkit.types import FileDigest

_CHUNK = 8 << 20


class StreamDigest:
    """Digests of one stream of bytes, fed in order.

    ``feed`` returns at once; a buffer may be reused when all its tasks are done.
    """

    def __init__(self, *, md5: bool) -> None:
        self._hashes = [hashlib.sha256()]
        if md5:
            self._hashes.append(hashlib.md5(usedforsecurity=False))
        self._lanes = [Lane(f"digest-{each.name}") for each in self._hashes]
        self._length = 0

    def close(self) -> None:
        for lane in self._lanes:
            lane.close(cancel=True)

    def feed(self, data: memoryview) -> list[Task]:
        self._length += len(data)
        return [
            lane.submit(each.update, data)
            for lane, each in zip(self._lanes, self._hashes, strict=True)
        ]

    def result(self, name: str, *, is_weight: bool) -> FileDigest:
        """The digests of all that was fed."""
        for lane in self._lanes:
            lane.close()
        found = [each.hexdigest() for each in self._hashes]
        md5 = found[1] if len(found) > 1 else None
        return FileDigest(name, self._length, found[0], md5, is_weight)


class RunningDigest:
    """SHA-256 of a file that is being written, its parts in almost any order.

    Parts ahead of the bytes digested so far wait, ``waiting`` bytes of them at most. Where more
    would have to wait, or a part is written twice, there is no result.
    """

    def __init__(self, first: bytes, waiting: int = 32 << 20) -> None:
        self._sha256, self._at = hashlib.sha256(first), len(first)
        self._ahead: dict[int, memoryview] = {}
        self._room, self._lost = waiting, False

    def feed(self, offset: int, data: memoryview) -> None:
        """``data`` at ``offset``; it must not change any more."""
        if self._lost or not data.nbytes:
            return
        if offset == self._at:
            self._take(data)
        elif offset < self._at or offset in self._ahead or data.nbytes > self._room:
            self._lost = True
            self._ahead.clear()
        else:
            self._ahead[offset] = data
            self._room -= data.nbytes

    def _take(self, data: memoryview | None) -> None:
        """What comes next, and whatever waited for it."""
        while data is not None:
            self._sha256.update(data)
            self._at += data.nbytes
            data = self._ahead.pop(self._at, None)
            self._room += 0 if data is None else data.nbytes

    def result(self, size: int) -> str | None:
        """The SHA-256, if each of the file's ``size`` bytes was fed once."""
        whole = not (self._lost or self._ahead) and self._at == size
        return self._sha256.hexdigest() if whole else None


def digest_bytes(name: str, data: bytes) -> FileDigest:
    """SHA-256 of a small file that is about to be written."""
    return FileDigest(name, len(data), hashlib.sha256(data).hexdigest())


def digest_file(
    path: Path,
    name: str | None = None,
    *,
    is_weight: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> FileDigest:
    """SHA-256 of a file on disk, read in order; ``progress`` is told of bytes as they are read."""
    sha256 = hashlib.sha256()
    length = 0
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sha256.update(memoryview(buffer)[:count])
            length += count
            progress(count)
    return FileDigest(name or path.name, length, sha256.hexdigest(), None, is_weight)
