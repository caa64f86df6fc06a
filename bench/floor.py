"""The parts of bnb.py's floor, each measured alone: python floor.py RECIPE WRITTEN FILE ...

Prints one JSON object of seconds: reading the files, writing ``WRITTEN`` bytes and
flushing them, the digests of all of it (BLAKE3: of the files), and the kernel over the files'
bytes, each on one core. MD5 counts where the conversion takes it too: of files that the registry
knows by MD5 alone, by what their size allows.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from quantkit.registry import checksums


def main() -> None:
    recipe, written, *names = sys.argv[1:]
    files = [Path(name) for name in names]
    sample = bytearray(os.urandom(256 << 20))
    sizes = {path.name: path.stat().st_size for path in files}
    size, out, registry = sum(sizes.values()), int(written), checksums()
    for_md5 = sum(count for name, count in sizes.items() if registry.needs_md5(name, count))
    print(
        json.dumps(
            {
                "read": timed(lambda: [consume(path) for path in files]),
                "write": timed(lambda: produce(files[0].with_name("floor.tmp"), sample, out)),
                "sha256": timed(lambda: hashlib.sha256(sample)) * (size + out) / len(sample),
                "md5": timed(lambda: hashlib.md5(sample)) * for_md5 / len(sample),
                "blake3": timed(lambda: blake3(sample)) * size / len(sample),
                "kernel": kernel_seconds(recipe) * size,
            }
        )
    )


def kernel_seconds(recipe: str) -> float:
    """Seconds a byte of fp16 input, on one core."""
    import numpy as np

    from quantkit.kernels.fourbit import quantize_4bit
    from quantkit.kernels.int8 import quantize_int8

    values = np.random.default_rng(0).standard_normal(16 << 20, np.float32).astype(np.float16)
    if recipe == "bnb-int8":
        rows = values.reshape(-1, 2048)
        quantize_int8(rows)
        return timed(lambda: quantize_int8(rows)) / values.nbytes
    quantize_4bit(values, "nf4", 64)
    return timed(lambda: quantize_4bit(values, "nf4", 64)) / values.nbytes


def timed(work: Callable[[], object]) -> float:
    """The median of three."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def consume(path: Path) -> None:
    buffer = bytearray(8 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def produce(path: Path, sample: bytearray, size: int) -> None:
    """As fast as there is a way: its space set aside before, as ours."""
    from quantkit.checkpoint.shards import set_aside

    with path.open("wb", buffering=0) as file:
        set_aside(file.fileno(), size)
        for at in range(0, size, len(sample)):
            file.write(memoryview(sample)[: min(len(sample), size - at)])
        os.fsync(file.fileno())
    path.unlink()


if __name__ == "__main__":
    main()
