"""quantkit beside the weight-only tools that a user would pick instead: time, memory, size.

    python bench/peers.py --peer llmcompressor=envs/llmcompressor/bin/python --peer ...

Every tool is in an environment of its own, as their pins exclude one another:

    for each in torchao==0.18.0 hqq==0.2.8.post1 auto-round==0.16.1 llmcompressor==0.14.0.1 \
            "optimum==2.3.0 gptqmodel==7.6.0"; do
        python -m venv NAME && NAME/bin/pip install torch==2.13.0 transformers accelerate $each
    done

All read the same random fp16 GPT-NeoX and leave a folder on the disk; what is calibrated sees
the same ids. They do not write the same thing: the table says what. A tool that is absent or
fails stands in the table with its error. ``--peer NAME=PYTHON``, with a NAME of
peer_routes.ROUTES.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from bnb import Run, attempt, machine, median, record
from models import SIZES, make_model
from peer_routes import OURS, ROUTES, Route
from scale_sources import write_ids

#: Which package's version says what a peer is.
PACKAGES = {"autoround": "auto-round", "transformers": "bitsandbytes"}


def main() -> None:
    args = parsed()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["QUANTKIT_CACHE"] = str(args.work / "cache")
    source = make_model(args.work, args.model, "safetensors")
    ids = write_ids(args, args.samples, 256)
    peers = dict(each.split("=", 1) for each in args.peer)
    mine = [each for each in OURS if wanted(args, each) and "quantkit" in args.tools]
    rows = [ours(args, source, ids, each) for each in mine]
    for name in args.tools:
        rows += theirs(args, source, ids, name, peers.get(name)) if name in ROUTES else []
    text = report(args, source, rows)
    record(text, args)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--model", choices=SIZES, default="267M")
    parser.add_argument("--runs", type=int, default=3, help="of what is not calibrated")
    parser.add_argument("--samples", type=int, default=32, help="calibration windows of 256")
    parser.add_argument("--only", choices=["calibrated", "rounded"], help="one kind of route")
    parser.add_argument(
        "--tools",
        nargs="+",
        choices=["quantkit", *ROUTES],
        default=["quantkit", *ROUTES],
        help="only these, to stop in between",
    )
    parser.add_argument("--limit", type=int, default=1800, help="seconds a run may take")
    parser.add_argument("--work", type=Path, default=Path("/tmp/quantkit-bench"))
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    return parser.parse_args()


def wanted(args: argparse.Namespace, route: Route) -> bool:
    return args.only is None or (args.only == "calibrated") == route.slow


def ours(args: argparse.Namespace, source: Path, ids: Path, route: Route) -> str:
    words = [
        sys.executable, "-m", "quantkit", "convert", str(source), "--recipe", route.code,
        "--out", str(args.work / "peers-out"), "--no-gate", "--device", "cpu",
    ]  # fmt: skip
    if route.slow:
        words += ["--calibration", str(ids), "--set", "calibration.length=256",
                  "--set", "calibration.packing=apart"]  # fmt: skip
    return measured(args, "quantkit", route, words, dict(os.environ))


def theirs(
    args: argparse.Namespace, source: Path, ids: Path, name: str, python: str | None
) -> list[str]:
    """The rows of one peer; transformers is here anyhow."""
    routes = [each for each in ROUTES[name] if wanted(args, each)]
    if python is None and name == "transformers":
        python = sys.executable
    if python is None:
        return [absent(name, each, f"no --peer {name}=PYTHON") for each in routes]
    package = PACKAGES.get(name, name)
    try:
        named = f"{name} ({package} {installed(python, package)})"
    except (OSError, subprocess.CalledProcessError):
        return [absent(name, each, f"{python} has no {package}") for each in routes]
    out = args.work / "peers-out"
    return [
        measured(args, named, each, [python, "-c", each.code, str(source), str(out), str(ids)],
                 environment())
        for each in routes
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """Offline, and without the paths that lead to quantkit's own packages."""
    found = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return found | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GPTQMODEL_CPU_WORKERS": str(min(2, os.cpu_count() or 1)),
    }


def installed(python: str, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def measured(
    args: argparse.Namespace,
    tool: str,
    route: Route,
    command: Sequence[str],
    env: dict[str, str],
) -> str:
    """A row: medians after a run that is not counted; what is calibrated runs once."""
    out, stands = args.work / "peers-out", args.work / "peers-cwd"
    stands.mkdir(exist_ok=True)
    runs: list[Run] = []
    for _ in range(1 if route.slow else args.runs + 1):
        made = attempt(command, out, env=env, cwd=stands, limit=args.limit)
        if isinstance(made, str):
            return absent(tool, route, made)
        runs.append(made)
    size = weights(out)
    shutil.rmtree(out, ignore_errors=True)
    if not size:
        return absent(tool, route, "left no weights")
    run = median(runs[1:] or runs)
    return (
        f"| {tool} | {route.name} | {route.made} | {run.seconds:.1f} | {run.cpu:.1f} | "
        f"{run.peak / 1e6:.0f} | {size / 1e6:.0f} | |"
    )


def weights(folder: Path) -> int:
    """What the weight files below ``folder`` take: some tools make a folder in it."""
    kinds = (".safetensors", ".bin", ".pt")
    return sum(each.stat().st_size for each in folder.rglob("*") if each.suffix in kinds)


def absent(tool: str, route: Route, why: str) -> str:
    last = next((line for line in reversed(why.splitlines()) if line.strip()), why)
    said = last.strip().replace("|", "/")[:200]
    return f"| {tool} | {route.name} | {route.made} | | | | | {said} |"


def report(args: argparse.Namespace, source: Path, rows: Sequence[str]) -> str:
    size = sum(each.stat().st_size for each in source.glob("*.safetensors"))
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} peers.py: GPT-NeoX {args.model}, "
            f"{size / 1e9:.2f} GB fp16, random weights",
            "",
            f"{machine()}; torch {version('torch')}, transformers {version('transformers')} here, "
            f"each peer in an environment of its own; whole processes, medians of {args.runs} "
            f"after one not counted, calibrated ones ({args.samples} x 256 tokens) once; quantkit "
            "with `--no-gate`. The formats differ: see what is written.",
            "",
            "| tool | route | writes | wall s | CPU s | peak MB | weights MB | error |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
