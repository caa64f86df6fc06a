"""What the C library does with memory that is let go."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: glibc's names for them in malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

#: Blocks of this many bytes or more are mapped one by one, and so go back when they are freed.
#: The second is for where blocks are reused; glibc takes no more.
_LARGE, _LARGE_REUSED = 4 << 20, 32 << 20

#: How much may be free at the end of the heap; the second where blocks are reused.
_FREE, _FREE_REUSED = 16 << 20, 1 << 30

#: The same while segments come and go: a few of each thread's.
_FREE_STREAMING = 64 << 20

#: One entry for each :func:`large_blocks_return` that is open.
_returning: list[bool] = []


def small_blocks_stay() -> None:
    """From here on, have blocks below 4 MiB reused when freed, and larger ones returned.

    A stream makes and drops arrays of a megabyte or two by the thousand; mapped one by one,
    each of their pages is a fault and 4 KiB of zeros. It stays so: see below.
    """
    _set(_M_MMAP_THRESHOLD, _LARGE)
    _set(_M_TRIM_THRESHOLD, _FREE_STREAMING)


@contextmanager
def large_blocks_return() -> Iterator[None]:
    """Have large blocks go back to the system as soon as they are freed, in this process.

    By itself glibc raises its bound for such blocks to 32 MiB as they come and go; matrices
    below that then leave holes in the heap, and in one for each thread. Elsewhere than on
    glibc nothing happens. It stays so afterwards: there is no way to ask what it was.
    """
    _set(_M_ARENA_MAX, 1)
    _set(_M_MMAP_THRESHOLD, _LARGE)
    _set(_M_TRIM_THRESHOLD, _FREE)
    _returning.append(True)
    try:
        yield
    finally:
        _returning.pop()


@contextmanager
def blocks_reused() -> Iterator[None]:
    """Inside :func:`large_blocks_return`, where large blocks come and go all the time.

    A layer's activations are made and dropped for each window, and each page that the system
    gives anew costs as much as what is computed on it. What is free afterwards goes back.
    """
    if not _returning:
        yield
        return
    _set(_M_MMAP_THRESHOLD, _LARGE_REUSED)
    _set(_M_TRIM_THRESHOLD, _FREE_REUSED)
    try:
        yield
    finally:
        _set(_M_MMAP_THRESHOLD, _LARGE)
        _set(_M_TRIM_THRESHOLD, _FREE)
        _call("malloc_trim", 0)


def _set(what: int, value: int) -> None:
    _call("mallopt", what, value)


def _call(name: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(None), name)(*arguments)
