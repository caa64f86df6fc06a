"""The pieces of scale.py that are measured in part: GPTQ and the gate; the rest is computed."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnb import HERE, Run, process
from models import SIZES, make_model
from scale_report import Record, parameters
from scale_sources import record_of, total_layers, truncated, weight_bytes, whole_bytes, write_ids

#: What a whole gate is: a recipe's windows, of which the noise floor takes one in so many.
WINDOWS, FLOOR_STRIDE = 64, 8

#: Bytes of hidden states that a walk keeps in memory (quantkit/gate/runners.py).
ROOM = 256 << 20


def gptq(args: argparse.Namespace) -> list[Record]:
    layers = min(args.layers or 2, total_layers(args))
    assert layers > 1, "a layer's time is that between two layers' beginnings"
    source, out = truncated(args, layers), args.work / "scale-out"
    compile_kernels(args)
    ids = write_ids(args, args.samples, args.length)
    run, notes = child("gptq", out, source, out, ids, args.length, args.samples, args.device)
    one = statistics.mean(notes["layers"][1:] or notes["layers"])  # all is new to the first
    bytes_here, bytes_all = weight_bytes(source), whole_bytes(args)
    reading = notes["verify"] * (bytes_all / bytes_here - 1)
    missing = total_layers(args) - layers
    output = notes["output_bytes"] + missing * notes["layer_bytes"]
    shutil.rmtree(out)
    tokens = args.samples * args.length
    how = (
        f"{layers} of {total_layers(args)} layers measured ({run.seconds:.0f} s), each further "
        f"one at {one:.1f} s computed; {args.samples} x {args.length} tokens, `--no-gate`"
    )
    return [
        record_of(
            args,
            "gptq",
            replace(run, seconds=run.seconds + missing * one + reading, cpu=0.0),
            matrix_seconds("floor", SIZES[args.model], tokens),
            how,
            source_bytes=bytes_all,
            output_bytes=output,
            whole=missing == 0,
            device_peak=notes["device_peak"],
        )
    ]


def compile_kernels(args: argparse.Namespace) -> None:
    """Once for each installation, on the smallest model there is."""
    tiny = argparse.Namespace(**vars(args) | {"model": "tiny"})
    source, out = make_model(args.work, "tiny", "safetensors"), args.work / "scale-out"
    ids = write_ids(tiny, 2, 64)
    child("gptq", out, source, out, ids, 64, 2, args.device)


def gate(args: argparse.Namespace) -> list[Record]:
    layers = min(args.layers or 12, total_layers(args))
    source, saved = truncated(args, layers), args.work / "scale-saved"
    ids = write_ids(args, args.windows, args.window)
    words = ["convert", str(source), "--recipe", "bnb-nf4", "--out", str(saved), "--no-gate"]
    process([sys.executable, "-m", "quantkit", *words, "--device", args.device], saved)
    run, notes = child(
        "gate", args.work / "none", source, saved, ids, args.window, args.windows, args.device
    )
    shutil.rmtree(saved)
    seconds = run.seconds + unmeasured(notes, layers, total_layers(args), args.windows)
    hidden = SIZES[args.model]["hidden_size"]
    states = WINDOWS * args.window * hidden
    more = min(ROOM, 4 * states) + min(ROOM, 2 * states) + 2 * states // FLOOR_STRIDE
    how = (
        f"{layers} of {total_layers(args)} layers and {args.windows} of {WINDOWS} windows of "
        f"{args.window} measured ({run.seconds:.0f} s), the rest computed; the peak is that of "
        f"the measured part, hidden states of {WINDOWS} windows hold up to {more / 1e6:.0f} MB"
    )
    size = SIZES[args.model]
    return [
        record_of(
            args,
            "gate",
            replace(run, seconds=seconds, cpu=0.0),
            matrix_seconds("passes", size, WINDOWS * args.window),
            how,
            source_bytes=whole_bytes(args),
            whole=(layers, args.windows) == (total_layers(args), WINDOWS),
            device_peak=notes["device_peak"],
        )
    ]


def unmeasured(notes: Mapping[str, Any], layers: int, total: int, windows: int) -> float:
    """What the other layers and windows would cost, at the rates of the measured ones."""
    few, many = -(-windows // FLOOR_STRIDE), WINDOWS // FLOOR_STRIDE
    each = {name: statistics.mean(times) for name, times in notes["spent"].items()}
    counts = {"reference": (windows, WINDOWS), "saved": (windows, WINDOWS), "floor": (few, many)}
    found = (total - layers) * notes["load"]
    for role, (here, there) in counts.items():
        found += each[f"run {role}"] * (total * there - layers * here)
        found += each[f"logits {role}"] * (there - here)
    return found + each["compare"] * (WINDOWS + many - windows - few)


def child(task: str, out: Path, *words: object) -> tuple[Run, dict[str, Any]]:
    """``task`` of this script in a process of its own, and what it noted."""
    notes = Path(str(words[2])).with_name("scale-notes.json")
    command = [sys.executable, str(HERE / "scale_children.py"), task, *map(str, words)]
    run = process([*command, str(notes)], out)
    return run, dict(json.loads(notes.read_text()))


def matrix_seconds(what: str, size: Mapping[str, Any], tokens: int) -> float:
    """A floor at this machine's measured matrix rate; torch is kept out of this process."""
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import gptq, scale_parts; "
        f"size, tokens = {dict(size)!r}, {tokens}; "
        "print(gptq.floor(size, tokens) if sys.argv[1] == 'floor' else "
        "scale_parts.passes(size, tokens) / gptq.matrix_rate())"
    )
    command = [sys.executable, "-c", code, what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def passes(size: Mapping[str, Any], tokens: int) -> float:
    """Operations of the source's pass and of the saved model's, each a product a weight."""
    embedding = size["vocab_size"] * size["hidden_size"]
    return 2 * 2.0 * (parameters(size) - embedding) * tokens
