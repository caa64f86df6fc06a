"""What is let go goes back to the system, and is reused while it comes and goes."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: Makes and drops 24 MiB again and again; prints the pages that the system gave for it after the
#: first time, and what the process then holds and did hold before, in MiB.
SCRIPT = """
import sys
from contextlib import nullcontext
from resource import RUSAGE_SELF, getrusage
from quantkit.heap import blocks_reused, large_blocks_return

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

def come_and_go(times):
    for _ in range(times):
        b"1" * (24 << 20)

with large_blocks_return():
    before = held()
    with blocks_reused() if sys.argv[1] == "reused" else nullcontext():
        come_and_go(1)
        pages = getrusage(RUSAGE_SELF).ru_minflt
        come_and_go(5)
        pages = getrusage(RUSAGE_SELF).ru_minflt - pages
    print(pages, held() - before)
"""


def measured(how: str, script: str = SCRIPT) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", script, how], capture_output=True, text=True, check=True
    )
    pages, grown = done.stdout.split()
    return int(pages), int(grown)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing happens")
def test_blocks_are_reused_and_then_go_back() -> None:
    pages, grown = measured("reused")
    assert pages < 1000
    assert grown < 8


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing happens")
def test_otherwise_each_is_asked_for_anew() -> None:
    pages, grown = measured("returned")
    assert pages > 5 * 24 * 200
    assert grown < 8


STREAM = """
import sys
from resource import RUSAGE_SELF, getrusage
from quantkit.heap import small_blocks_stay

if sys.argv[1] == "stay":
    small_blocks_stay()

def come_and_go(times):
    for _ in range(times):
        [b"1" * (size << 19) for size in (1, 2, 3, 4, 1, 2, 3, 4)]

come_and_go(2)
pages = getrusage(RUSAGE_SELF).ru_minflt
come_and_go(20)
print(getrusage(RUSAGE_SELF).ru_minflt - pages, 0)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing happens")
def test_what_a_stream_drops_is_reused() -> None:
    assert measured("stay", STREAM)[0] < 1000 < measured("as it is", STREAM)[0]
