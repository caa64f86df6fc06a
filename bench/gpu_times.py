"""How long a CUDA device takes, beside others: the pieces of gpu.py that time whole processes."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bnb
import floor
import scale_parts
import scale_sources as sources
from gptq_sides import PEER
from gpu_bits import Row
from models import SIZES

#: What a step may take of the budget at most, in seconds.
LONGEST = 240

#: GPTQ is run with so many layers, after a run that compiles what is needed; and with ``--layers``.
FEW = 1


def nf4(args: argparse.Namespace) -> list[Row]:
    return beside_transformers(args, "bnb-nf4", "at least 3 times transformers")


def int8(args: argparse.Namespace) -> list[Row]:
    return beside_transformers(args, "bnb-int8", "")


def beside_transformers(args: argparse.Namespace, recipe: str, bar: str) -> list[Row]:
    source = sources.source_of(for_scale(args))
    asked = argparse.Namespace(work=args.work, runs=args.runs, device=args.device, ours_only=False)
    found = bnb.in_turn(asked, source, recipe)
    ours, again, theirs = (bnb.median(found[each]) for each in ("ours", "again", "theirs"))
    by_cpu = bnb.in_turn(
        argparse.Namespace(**vars(asked) | {"device": "cpu", "ours_only": True}), source, recipe
    )
    startup, limits = physical(args, source, found["written"])
    name, slowest = max(limits.items(), key=lambda each: each[1])
    parts = ", ".join(f"{each} {seconds:.2f}" for each, seconds in limits.items())
    first = found["first"].seconds
    return [
        (
            f"{recipe}, whole process",
            f"{ours.seconds:.2f} s, {ours.peak / 1e6:.0f} MB (first run {first:.2f} s)",
            f"transformers {theirs.seconds:.2f} s, {theirs.peak / 1e6:.0f} MB: "
            f"{theirs.seconds / ours.seconds:.2f} x faster",
            bar,
        ),
        (
            f"{recipe}, source digested before",
            f"{again.seconds:.2f} s, {again.peak / 1e6:.0f} MB",
            f"{theirs.seconds / again.seconds:.2f} x faster than transformers",
            bar,
        ),
        *(
            (
                f"{recipe}, {side}, computed by the CPU",
                f"{run.seconds:.2f} s, {run.peak / 1e6:.0f} MB",
                f"{theirs.seconds / run.seconds:.2f} x faster than transformers",
                "",
            )
            for side, run in (
                ("new source", bnb.median(by_cpu["ours"])),
                ("digested before", bnb.median(by_cpu["again"])),
            )
        ),
        *(
            (
                f"{recipe}, {side}, beside max(read, copy, write)",
                f"{run.seconds / slowest:.2f} times {name}; with start-up {startup:.2f} s, "
                f"{run.seconds / (startup + slowest):.2f} times both",
                f"{parts} s",
                "at most 2",
            )
            for side, run in (("new source", ours), ("digested before", again))
        ),
    ]


def physical(args: argparse.Namespace, source: Path, written: int) -> tuple[float, dict[str, Any]]:
    """Seconds of start-up, and of reading, copying to the device and writing, each alone."""
    files = sorted([*source.glob("*.safetensors"), *source.glob("*.bin")])
    sample = bytearray(os.urandom(64 << 20))
    code = f"{bnb.STARTUP}\nimport torch\ntorch.zeros(1, device={args.device!r})"
    start = [sys.executable, "-c", code, str(source), "bnb-nf4"]
    startup = statistics.median(bnb.process(start, args.work / "none").seconds for _ in range(3))
    limits = {
        "read": floor.timed(lambda: [floor.consume(path) for path in files]),
        "copy": copy_seconds(args, sources.weight_bytes(source)),
        "write": floor.timed(lambda: floor.produce(args.work / "floor.tmp", sample, written)),
    }
    return startup, limits


def copy_seconds(args: argparse.Namespace, size: int) -> float:
    """Copying ``size`` bytes to the device from page-locked memory, 64 MiB at a time."""
    if args.device == "cpu":
        return 0.0
    import torch

    piece = torch.ones(64 << 20, dtype=torch.uint8).pin_memory()
    there = torch.empty_like(piece, device="cuda")
    found = []
    for _ in range(32):
        torch.cuda.synchronize()
        start = time.perf_counter()
        there.copy_(piece, non_blocking=True)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found) * size / piece.numel()


def gptq(args: argparse.Namespace) -> list[Row]:
    """Both sides with few layers and with more, of which a whole model's time is computed."""
    asked = for_scale(args)
    out = args.work / "scale-out"
    scale_parts.compile_kernels(asked)
    ids = sources.write_ids(asked, asked.samples, asked.length)
    runs, notes = [], {}
    for layers in (FEW, asked.layers):
        words = sources.truncated(asked, layers), out, ids, asked.length, asked.samples
        run, notes = scale_parts.child("gptq", out, *words, asked.device)
        runs.append(run)
    ours = whole(asked, *(run.seconds for run in runs))
    return [
        (
            "gptq-4bit-g128, whole process",
            f"{ours:.0f} s",
            f"{said(asked, *(run.seconds for run in runs))}; {asked.samples} x {asked.length} "
            f"tokens, `--no-gate`; {peer_row(args, ids, ours)}",
            "half of GPTQModel's",
        ),
        (
            "gptq-4bit-g128, device memory",
            f"{notes['device_peak'] / 1e9:.2f} GB",
            f"host {runs[-1].peak / 1e6:.0f} MB",
            "under 8 GB",
        ),
    ]


def peer_row(args: argparse.Namespace, ids: Path, ours: float) -> str:
    """GPTQModel on the same ids, if it is installed here."""
    try:
        named = f"GPTQModel {version('gptqmodel')}"
    except PackageNotFoundError:
        return "GPTQModel is not installed here"
    asked, took = for_scale(args), []
    for layers in (FEW, FEW, asked.layers):
        out = args.work / "gpu-peer"
        made = bnb.attempt(peer_words(args, layers, ids, out), out, limit=LONGEST)
        if isinstance(made, str):
            return f"{named}: {' '.join(made.split())[-300:]}"
        took.append(made.seconds)
    first, *rest = took
    theirs = whole(asked, *rest)
    return (
        f"{named}: {theirs:.0f} s ({said(asked, *rest)}; first run {first:.0f} s): "
        f"{theirs / ours:.2f} x faster"
    )


def whole(asked: argparse.Namespace, short: float, long: float) -> float:
    """What all layers take, of what ``FEW`` and ``asked.layers`` do."""
    each = (long - short) / max(1, asked.layers - FEW)
    return long + (sources.total_layers(asked) - asked.layers) * each


def said(asked: argparse.Namespace, short: float, long: float) -> str:
    total = sources.total_layers(asked)
    return f"{short:.1f} and {long:.1f} s with {FEW} and {asked.layers} of {total} layers"


def peer_words(args: argparse.Namespace, layers: int, ids: Path, out: Path) -> list[str]:
    source = sources.truncated(for_scale(args), layers)
    code = PEER.replace('device="cpu"', f"device={args.device!r}")
    options = json.dumps({"bits": 4, "group_size": 128})
    return [sys.executable, "-c", code, str(source), str(out), str(ids), options]


def gate(args: argparse.Namespace) -> list[Row]:
    asked = for_scale(args)
    asked.layers = sources.total_layers(asked)
    record = scale_parts.gate(asked)[0]
    return [
        (
            f"gate by layer, {args.windows} windows",
            f"{record.seconds:.0f} s",
            f"device {record.device_peak / 1e9:.2f} GB, host {record.peak / 1e6:.0f} MB; "
            f"{record.how}",
            f"{scale_parts.WINDOWS} x 1024 under 60 s",
        )
    ]


def for_scale(args: argparse.Namespace) -> argparse.Namespace:
    """What scale.py's pieces ask of their arguments."""
    return argparse.Namespace(
        model=args.model, container=None, work=args.work, device=args.device, runs=1,
        layers=min(args.layers, SIZES[args.model]["num_hidden_layers"]), samples=args.samples,
        length=args.length, windows=args.windows, window=min(1024, args.length),
    )  # fmt: skip
