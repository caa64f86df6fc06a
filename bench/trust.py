"""What trust costs: python bench/trust.py

Digests, fingerprint and the checks of what was read, as the share that they add to a
``--no-gate`` NF4 conversion that has none of them; whole processes, alternating. And two
digests of one file beside each of them alone. Appended to bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import bnb
from models import SIZES, make_model

#: The conversion as it would be if nobody asked what the bytes are.
BARE = """
import sys
import quantkit.checkpoint.stream as stream
from quantkit.types import FileDigest
class Nothing:
    def __init__(self, *, md5): pass
    def close(self): pass
    def feed(self, data): return []
    def result(self, name, *, is_weight): return FileDigest(name, 0, "0" * 64, None, is_weight)
stream.StreamDigest = Nothing
stream.keep_known = lambda *found: None
whole = stream.stream_file
stream.stream_file = lambda *a, tensors=None, stamp=None, **k: whole(*a, **k)
import quantkit.checkpoint.shards, quantkit.execution, quantkit.pipeline, quantkit.verification
class NothingWritten:
    def __init__(self, first): pass
    def feed(self, offset, data): pass
    def result(self, size): return "0" * 64
quantkit.checkpoint.shards.RunningDigest = NothingWritten
def digest_file(path, name=None, *, is_weight=False, progress=None):
    return FileDigest(name or path.name, path.stat().st_size, "0" * 64, None, is_weight)
for each in (quantkit.execution, quantkit.pipeline, quantkit.verification):
    each.digest_file = digest_file
"""
RUN = """
import sys
from quantkit.cli import main
sys.argv = ["quantkit", "convert", sys.argv[1], "--recipe", "bnb-nf4", "--no-gate", "--json",
            "--out", sys.argv[2]]
main()
"""
DIGESTS = """
import hashlib, json, sys, time
from pathlib import Path
from quantkit.checkpoint import open_checkpoint
from quantkit.checkpoint.stream import segments, stream_checkpoint, stream_file
from quantkit.digests import StreamDigest
path = Path(sys.argv[1])
index = open_checkpoint(path.parent)
def alone(kind):
    def run():
        found, buffer = hashlib.new(kind), bytearray(2 << 20)
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                found.update(memoryview(buffer)[:count])
    return run
def both():
    stream_file(path, segments([], path.stat().st_size), StreamDigest(md5=True))
def all_three():
    stream_checkpoint(path.parent, index, md5=lambda name, size: True)
runs = {"sha256": alone("sha256"), "md5": alone("md5"), "both": both, "and tensors": all_three}
found = {name: [] for name in runs}
for _ in range(5):
    for name, run in runs.items():
        start = time.perf_counter()
        run()
        found[name].append(time.perf_counter() - start)
print(json.dumps({name: sorted(times)[2] for name, times in found.items()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="1.1B")
    parser.add_argument("--container", choices=["safetensors", "torch"], default="safetensors")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("/tmp/quantkit-bench"))
    parser.add_argument("--make-only", action="store_true", help="write the model and stop")
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["QUANTKIT_CACHE"] = str(args.work / "cache")
    source = make_model(args.work, args.model, args.container)
    if args.make_only:
        return
    text = report(args, source)
    bnb.record(text, args)


def report(args: argparse.Namespace, source: Path) -> str:
    weights = next(path for path in source.iterdir() if path.suffix in (".safetensors", ".bin"))
    load = os.getloadavg()[0]
    out = args.work / "trust-out"
    convert(RUN, source, out)  # caches filled
    turns = [[convert(each, source, out) for each in (RUN, BARE + RUN)] for _ in range(args.runs)]
    whole, bare = (bnb.median(runs) for runs in zip(*turns, strict=True))
    shutil.rmtree(out)
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS, weights], capture_output=True, text=True, check=True
    )
    taken = json.loads(done.stdout)
    slower = max(taken["sha256"], taken["md5"])
    return f"""
## {time.strftime("%Y-%m-%d %H:%M")} trust.py: GPT-NeoX {args.model}, {args.container}, \
{weights.stat().st_size / 1e9:.2f} GB fp16, random weights

{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before; python \
{platform.python_version()}, torch {version("torch")}; NF4, `--no-gate`, \
medians of {args.runs} alternating whole processes, source in the page cache; digests: \
medians of 5.

| what | wall s | CPU s | share of wall, of CPU |
| --- | --- | --- | --- |
| conversion without digests, fingerprint, stamps | {bare.seconds:.2f} | {bare.cpu:.2f} | 1 |
| with them | {whole.seconds:.2f} | {whole.cpu:.2f} | {whole.seconds / bare.seconds - 1:+.1%}, \
{whole.cpu / bare.cpu - 1:+.1%} |
| SHA-256 of the file alone | {taken["sha256"]:.2f} |  |  |
| MD5 alone | {taken["md5"]:.2f} |  |  |
| both in one read | {taken["both"]:.2f} |  | {taken["both"] / slower - 1:+.1%} of the slower |
| both and the fingerprint | {taken["and tensors"]:.2f} |  | \
{taken["and tensors"] / slower - 1:+.1%} of the slower |
"""


def convert(code: str, source: Path, out: Path) -> bnb.Run:
    return bnb.process([sys.executable, "-c", code, str(source), str(out)], out)


if __name__ == "__main__":
    main()
