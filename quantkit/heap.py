"""What the C library does with memory that is let go."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

#: glibc's name for it in malloc.h.
_M_MMAP_THRESHOLD = -3

#: Blocks of this many bytes or more are mapped one by one, and so go back when they are freed.
_LARGE = 1 << 20


def return_large_blocks() -> None:
    """Have large blocks go back to the system as soon as they are freed, in this process.

    By itself glibc raises its bound for such blocks to 32 MiB as they come and go; matrices
    below that then leave holes in the heap. Elsewhere than on glibc nothing happens.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
