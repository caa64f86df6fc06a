"""quantkit beside transformers' own bitsandbytes route: whole processes, in one run.

    python bench/bnb.py                      # 1.1B parameters, NF4 and int8
    python bench/bnb.py --model 267M --runs 1
    python bench/bnb.py --model 3.6B --container torch --recipes bnb-nf4 --runs 1 --clean

Both sides read the same random fp16 GPT-NeoX, made here, and write a folder that
transformers opens. Runs alternate, and the floor is measured in each turn; medians and
ratios are reported, with versions and machine, and appended to bench/RESULTS.md.

The floor is what no implementation in this process model could beat: the measured
start-up (imports and building the model class), plus the larger of (reading the source
and writing the output) and (core-seconds of digests and kernel over the cores, no
digest faster than alone). Where an earlier run digested the source, its bytes are known by
BLAKE3, which then takes the place of their SHA-256 and MD5, in the floor too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models import SIZES, make_model

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"

THEIRS = """
import sys, torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
source, out, kind = sys.argv[1:4]
device = [*sys.argv[4:], "cpu"][0]
if kind == "bnb-int8":
    config = BitsAndBytesConfig(load_in_8bit=True)
else:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                bnb_4bit_compute_dtype="float16")
model = AutoModelForCausalLM.from_pretrained(
    source, quantization_config=config, dtype="auto", device_map=device)
model.save_pretrained(out)
"""

STARTUP = """
import gc, sys
gc.set_threshold(100_000)  # as the command does
from pathlib import Path
from quantkit.recipe import load_recipe
from quantkit.source import open_source
from quantkit.planning import make_plan
from quantkit import pipeline
make_plan(open_source(sys.argv[1]), load_recipe(sys.argv[2]))
"""


@dataclass(frozen=True)
class Run:
    """One whole process: seconds of wall time and of CPU, and peak bytes resident."""

    seconds: float
    cpu: float
    peak: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="1.1B")
    parser.add_argument("--container", choices=["safetensors", "torch"], default="safetensors")
    parser.add_argument("--recipes", nargs="+", default=["bnb-nf4", "bnb-int8"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("/tmp/quantkit-bench"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tokenizer", type=Path, help="a folder whose tokenizer the source gets")
    parser.add_argument("--clean", action="store_true", help="remove the model at the end")
    parser.add_argument("--ours-only", action="store_true", help="without the other side, in a row")
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    source = make_model(args.work, args.model, args.container, args.tokenizer)
    rows = [compare(args, source, recipe) for recipe in args.recipes]
    record(report(args, source, rows), args)
    if args.clean:
        shutil.rmtree(source)


def record(text: str, args: argparse.Namespace) -> None:
    """Print a bench's table, and append it to RESULTS.md unless it was told not to."""
    print(text)
    if not args.no_record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def compare(args: argparse.Namespace, source: Path, recipe: str) -> dict[str, Any]:
    """Runs of both sides in turn, and the floor: measured beside each, as machines drift."""
    floor(args.work, source, recipe, 1 << 20)  # the source is then in the page cache for all
    floors: list[dict[str, float]] = []
    found = in_turn(
        args, source, recipe,
        beside=lambda written: floors.append(floor(args.work, source, recipe, written)),
    )  # fmt: skip
    parts = {name: statistics.median(each[name] for each in floors) for name in floors[0]}
    return found | {"floor": parts}


def in_turn(
    args: argparse.Namespace,
    source: Path,
    recipe: str,
    beside: Callable[[int], object] = lambda written: None,
) -> dict[str, Any]:
    """Runs of both sides in turn, ours of a source never digested before and once more; after a
    first run of ours that finds quantkit's cache empty: it reads the architecture and compiles
    the loops, and is reported too. ``beside`` is called in each turn with the bytes written.

    Without the other side each kind runs in a row, and finds the memory that the one before left;
    after anything else a virtual machine's host may have taken it back, to be asked for anew.
    """
    out = args.work / "out"
    ours_command = [
        sys.executable, "-m", "quantkit", "convert", str(source), "--recipe", recipe,
         "--out", str(out), "--no-gate", "--device", args.device, "--json",
    ]  # fmt: skip
    theirs_command = [sys.executable, "-c", THEIRS, str(source), str(out), recipe, args.device]
    os.environ["QUANTKIT_CACHE"] = str(args.work / "cache")
    shutil.rmtree(args.work / "cache", ignore_errors=True)
    first = process(ours_command, out)
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    ours, again, theirs = [], [], []
    steps: list[Callable[[], object]] = [
        lambda: ours.append(process(ours_command, out)),
        lambda: again.append(process(ours_command, out, recall=True)),
        lambda: beside(written),
        lambda: theirs.append(process(theirs_command, out)),
    ]
    in_a_row = [step for step in steps[:-1] for _ in range(args.runs)]
    for step in in_a_row if args.ours_only else steps * args.runs:
        step()
    shutil.rmtree(out, ignore_errors=True)
    return {
        "recipe": recipe, "first": first, "ours": ours, "again": again, "theirs": theirs,
        "written": written,
    }  # fmt: skip


def process(command: Sequence[str], out: Path, *, recall: bool = False) -> Run:
    """Run to the end and account for it from outside."""
    made = attempt(command, out, recall=recall)
    if isinstance(made, str):
        raise SystemExit(f"{command[:3]} failed: {made}")
    return made


def attempt(
    command: Sequence[str],
    out: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit: float | None = None,
    recall: bool = False,
) -> Run | str:
    """As ``process``; what it said last where it failed, or took longer than ``limit`` seconds.

    quantkit has digested no source before, unless it may ``recall`` or the cache is the user's.
    The disk has taken what earlier processes left to it: none of it is this one's to wait for.

    The peak is the child's own, or that of the largest of those it waited for. Compiled
    modules are written as usual: a shell that forbids it would have ours, which no installer
    compiled, compiled anew in each process.
    """
    env = {k: v for k, v in (env or os.environ).items() if k != "PYTHONDONTWRITEBYTECODE"}
    shutil.rmtree(out, ignore_errors=True)
    if not recall and (cache := env.get("QUANTKIT_CACHE")):
        for path in Path(cache).glob("digests-*"):  # quantkit.checkpoint.known
            path.unlink()
    os.sync()
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=said, env=env, cwd=cwd,
            start_new_session=limit is not None,
        )  # fmt: skip
        timer = threading.Timer(limit or 0, os.killpg, (child.pid, signal.SIGKILL))
        if limit is not None:
            timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except KeyboardInterrupt:
            if limit is not None:  # in a session of its own it is not told
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if status and limit is not None and seconds >= limit:
            return f"stopped after {limit:.0f} s"
        if status:
            said.seek(0)
            return said.read()[-2000:].decode(errors="replace") or f"exit status {status}"
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def floor(work: Path, source: Path, recipe: str, written: int) -> dict[str, float]:
    """Each part of the floor, measured here and now; seconds."""
    files = sorted([*source.glob("*.safetensors"), *source.glob("*.bin")])
    size = sum(path.stat().st_size for path in files)
    start = statistics.median(
        process([sys.executable, "-c", STARTUP, str(source), recipe], work / "none").seconds
        for _ in range(3)
    )
    # in a process of its own: a child's peak memory starts at its parent's
    command = [sys.executable, str(HERE / "floor.py"), recipe, str(written), *map(str, files)]
    rates = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    sha, md5, kernel = rates["sha256"], rates["md5"], rates["kernel"]
    cores = os.cpu_count() or 1
    of_source = sha * size / (size + written)
    streams = rates["read"] + rates["write"]
    bound = max(streams, (sha + md5 + kernel) / cores, md5, of_source)
    blake3, of_output = rates["blake3"], sha - of_source
    known = max(streams, (of_output + blake3 + kernel) / cores, blake3, of_output)
    return {"startup": start, **rates, "floor": start + bound, "floor, known": start + known}


def report(args: argparse.Namespace, source: Path, rows: list[dict]) -> str:
    size = sum(p.stat().st_size for p in source.iterdir() if p.suffix in (".safetensors", ".bin"))
    names = ("torch", "transformers", "bitsandbytes", "numba")
    lines = [
        f"## {time.strftime('%Y-%m-%d %H:%M')} bnb.py: GPT-NeoX {args.model}, "
        f"{args.container}, {size / 1e9:.2f} GB fp16, random weights"
        + (f", the tokenizer of {args.tokenizer.name}" if args.tokenizer else ""),
        "",
        f"{machine()}; python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in names)
        + f"; medians of {args.runs} {'consecutive' if args.ours_only else 'alternating'} whole "
        "processes and floors, `--no-gate`, source in the page cache.",
        "",
        "| recipe | side | wall s | CPU s | peak MB | times transformers | times the floor |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        theirs = median(row["theirs"]) if row["theirs"] else None
        for side, runs, floor_of in (
            ("quantkit", row["ours"], "floor"),
            ("quantkit, source digested before", row["again"], "floor, known"),
        ):
            run, bound = median(runs), row["floor"][floor_of]
            ratio = f"{theirs.seconds / run.seconds:.2f} x faster" if theirs else "not run"
            lines.append(line(row["recipe"], side, run, ratio, f"{run.seconds / bound:.2f}"))
        lines.append(line(row["recipe"], "quantkit, first run, nothing kept", row["first"], "", ""))
        if theirs:
            lines.append(line(row["recipe"], "transformers", theirs, "1", ""))
        parts = ", ".join(f"{name} {value:.2f}" for name, value in row["floor"].items())
        lines.append(f"| {row['recipe']} | floor, seconds | {parts} | | | | |")
    return "\n".join(lines) + "\n"


def line(recipe: str, side: str, run: Run, ratio: str, floor: str) -> str:
    return (
        f"| {recipe} | {side} | {run.seconds:.2f} | {run.cpu:.2f} | {run.peak / 1e6:.0f} "
        f"| {ratio} | {floor} |"
    )


def median(runs: Sequence[Run]) -> Run:
    return Run(
        statistics.median(each.seconds for each in runs),
        statistics.median(each.cpu for each in runs),
        int(statistics.median(each.peak for each in runs)),
    )


def machine() -> str:
    names = [
        text.partition(":")[2].strip()
        for text in Path("/proc/cpuinfo").read_text().splitlines()
        if text.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"


if __name__ == "__main__":
    main()
