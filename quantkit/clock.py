"""What a run costs: seconds by stage, and the process's peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Measured:
    """Seconds by stage, and bytes."""

    seconds: Mapping[str, float]
    peak_rss_bytes: int


class Clock:
    """Seconds by stage, and the process's peak memory."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds = {"verify": 0.0, "convert": 0.0, "gate": 0.0}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - start

    def measured(self) -> Measured:
        total = time.perf_counter() - self._start
        return Measured(self._seconds | {"total": total}, _peak_resident())


def _peak_resident() -> int:
    """This process's own peak. ``ru_maxrss`` would inherit that of whoever started it."""
    with suppress(OSError, StopIteration):  # no Linux, or gVisor, which does not say it
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
