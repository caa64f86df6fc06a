"""All comparisons that need a CUDA device, each in a process of its own, and one table.

    bench/gpu.sh [--wheels DIR]                              # on a bare machine: sets up, then this
    python bench/gpu.py --device cpu --model tiny            # the same, small, without a GPU

A step that fails, or that the budget leaves no time for, stands in the table as that. Where a
tool is not installed its rows say so. Appends to bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import bnb
import gpu_bits
import gpu_times
from bnb import HERE, machine, record
from gpu_bits import Row
from gpu_times import LONGEST
from models import SIZES
from scale_parts import WINDOWS


def main() -> None:
    args = parsed()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["QUANTKIT_CACHE"] = str(args.work / "cache")
    if args.step:
        rows = STEPS[args.step](args)
        (args.work / f"gpu-{args.step}.json").write_text(json.dumps(rows))
        return
    end = time.monotonic() + args.budget
    rows = [row for name in args.steps for row in in_turn(args, name, end)]
    text = report(args, rows)
    record(text, args)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--model", choices=SIZES, default="3.6B")
    parser.add_argument(
        "--layers", type=int, default=6, help="measured for GPTQ; the rest computed"
    )
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--length", type=int, default=2048, help="tokens of one of them")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of the gate")
    parser.add_argument("--runs", type=int, default=1, help="of each side, for nf4 and int8")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all steps")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--work", type=Path, default=Path("/tmp/quantkit-bench"))
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_turn(args: argparse.Namespace, name: str, end: float) -> list[Row]:
    """One step in a process of its own: a device that is lost stops no other."""
    left = min(LONGEST, end - time.monotonic())
    if left < 5:
        return [(name, "not run", "the budget was spent", "")]
    notes = args.work / f"gpu-{name}.json"
    notes.unlink(missing_ok=True)
    words = [sys.executable, str(HERE / "gpu.py"), *sys.argv[1:], "--step", name]
    start = time.monotonic()
    made = bnb.attempt(words, args.work / "none", limit=left)
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    if isinstance(made, str):
        last = next((line for line in reversed(made.splitlines()) if line.strip()), made)
        return [(name, "failed", last.strip().replace("|", "/")[:200], "")]
    return [(row[0], row[1], row[2], row[3]) for row in json.loads(notes.read_text())]


# steps


def tests(args: argparse.Namespace) -> list[Row]:
    """tests/gpu; without a device they are collected and skipped, which is not passing."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    words += ["-n", "12"] if (os.cpu_count() or 1) >= 16 else []
    done = subprocess.run(
        [*words, "tests/gpu"], cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    (args.work / "gpu-tests.log").write_text(done.stdout + done.stderr)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    return [("tests/gpu", last.strip("= "), f"exit status {done.returncode}", "all pass")]


STEPS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "tests": tests,
    "kernels": gpu_bits.kernels,
    "nf4": gpu_times.nf4,
    "int8": gpu_times.int8,
    "agreement": gpu_bits.agreement,
    "gptq": gpu_times.gptq,
    "gate": gpu_times.gate,
}


def report(args: argparse.Namespace, rows: list[Row]) -> str:
    code = "import torch; print(torch.cuda.get_device_name(0))"
    name = "no GPU: the steps ran on the CPU, to show that they run"
    if args.device == "cuda":
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        name = done.stdout.strip() or "no GPU found"
    libraries = ("torch", "transformers", "bitsandbytes")
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} gpu.py: GPT-NeoX {args.model}, random weights, "
            f"--device {args.device}",
            "",
            f"{name}; {machine()}; "
            + ", ".join(f"{each} {version(each)}" for each in libraries)
            + f"; NF4 and LLM.int8 medians of {args.runs}, all else once; "
            f"GPTQ on {args.samples} x {args.length} tokens.",
            "",
            "| what | measured | beside it | bar |",
            "| --- | --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
