"""What the C library does with memory that is let go."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

#: glibc's names for them in malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

#: Blocks of this many bytes or more are mapped one by one, and so go back when they are freed.
_LARGE = 17 << 20

#: So much may be free at the end of the heap: what comes and goes is not asked for anew.
_FREE = 16 << 20


def release_free() -> None:
    """Give back to the system whatever is free, in this process."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks() -> None:
    """Have large blocks go back to the system as soon as they are freed, in this process.

    By itself glibc raises its bound for such blocks to 32 MiB as they come and go; matrices
    below that then leave holes in the heap, and in one for each thread. Smaller blocks, as
    activations are, come and go too often to be asked for anew each time. Elsewhere than on
    glibc nothing happens.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
            library.mallopt(_M_TRIM_THRESHOLD, _FREE)
            library.mallopt(_M_ARENA_MAX, 1)
