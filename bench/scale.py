"""Time and memory against the size of the model, up to rinna's 3.6B and bilingual 4B.

    python bench/scale.py nf4 --model 3.6B      # one piece, one size; each under ten minutes
    python bench/scale.py table                 # all that was recorded: a table and scale.png

Pieces: plan, verify, nf4, int8, gptq, gate, forecast, table, make (only write the source)
and clean (remove it). The sources are random fp16 GPT-NeoX models in the true geometry and
container: 3.6B is one ``.bin``, 3.8B (rinna's bilingual 4B) five safetensors shards, both
with the old mask buffers that rinna's files hold.

plan, verify, nf4 and int8 are whole processes, medians of ``--runs`` after one that is not
counted, source in the page cache. What takes hours here is measured in part, and the rest
is computed and *said to be computed*:

gptq     a model of the first ``--layers`` layers; every further layer costs what one did.
gate     the sweep over the first ``--layers`` layers and two windows; every further layer,
         window and noise-floor window costs what those did.
forecast a 13B plan from headers alone (files that are holes). Its times are lines through
         the sizes that were measured.

Each piece appends to bench/RESULTS.md, and a line to bench/scale.jsonl, from which ``table``
is made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bnb
from bnb import HERE, SIZES, Run, machine, make_model, median, process, record
from scale_report import FORECAST, Record, parameters, read_records, section, summary

RECORDS = HERE / "scale.jsonl"
PLOT = HERE / "scale.png"

#: The container that a size is published in.
CONTAINERS = {"3.6B": "torch"}

#: What a whole gate is: a recipe's windows, and how many of them the noise floor takes.
WINDOWS, FLOOR_STRIDE = 64, 8

#: Bytes of hidden states that a walk keeps in memory (quantkit/gate/runners.py).
ROOM = 256 << 20


def main() -> None:
    args = parsed()
    if args.piece == "clean":
        for each in (source_folder(args), *args.work.glob(f"{args.model}-*-layers-*")):
            shutil.rmtree(each, ignore_errors=True)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["QUANTKIT_CACHE"] = str(args.work / "cache")
    if args.piece == "make":
        made = source_of(args)
        print(f"{made}: {weight_bytes(made) / 1e9:.2f} GB")
        return
    if args.piece == "table":
        record(summary(args, read_records(args.records)), args)
        return
    found = [stamped(each) for each in PIECES[args.piece](args)]
    record(section(args, found), args)
    if not args.no_record:
        with args.records.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(each)) + "\n" for each in found)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("piece", choices=[*PIECES, "table", "make", "clean"])
    parser.add_argument("--model", choices=SIZES, default="3.6B")
    parser.add_argument("--container", choices=["safetensors", "torch"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, help="of the model, for gptq (2) and gate (12)")
    parser.add_argument("--samples", type=int, default=32, help="calibration windows")
    parser.add_argument("--length", type=int, default=256, help="tokens of one of them")
    parser.add_argument("--windows", type=int, default=2, help="evaluation windows")
    parser.add_argument("--window", type=int, default=1024, help="tokens of one of them")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--work", type=Path, default=Path("/tmp/quantkit-bench"))
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--no-record", action="store_true", help="write neither file nor plot")
    return parser.parse_args()


# sources


def container_of(args: argparse.Namespace) -> str:
    return str(args.container or CONTAINERS.get(args.model, "safetensors"))


def source_folder(args: argparse.Namespace) -> Path:
    return bnb.model_folder(args.work, args.model, container_of(args))


def source_of(args: argparse.Namespace) -> Path:
    return make_model(args.work, args.model, container_of(args))


def truncated(args: argparse.Namespace, layers: int) -> Path:
    """The model's first layers alone, all else as in the whole model."""
    folder = args.work / f"{args.model}-{layers}-layers-{container_of(args)}"
    size = SIZES[args.model] | {"num_hidden_layers": layers}
    return bnb.make_source(folder, size, container_of(args))


def weight_bytes(folder: Path) -> int:
    """What its weight files take."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))


def record_of(
    args: argparse.Namespace, piece: str, run: Run, floor: float, how: str, **more: Any
) -> Record:
    return Record(
        piece=piece,
        model=args.model,
        container=container_of(args),
        parameters=parameters(SIZES[args.model]),
        source_bytes=more.pop("source_bytes"),
        output_bytes=more.pop("output_bytes", 0),
        seconds=run.seconds,
        cpu=run.cpu,
        peak=run.peak,
        floor=floor,
        how=how,
        **more,
    )


def stamped(record: Record) -> Record:
    libraries = ("torch", "transformers", "bitsandbytes", "numba")
    return replace(
        record,
        when=time.strftime("%Y-%m-%d %H:%M"),
        machine=machine(),
        versions=", ".join(f"{name} {version(name)}" for name in libraries),
    )


# whole processes

#: The start-up of ``verify``.
OPENED = """
import sys
from quantkit import inspection
from quantkit.source import open_source
open_source(sys.argv[1])
"""


def plan(args: argparse.Namespace) -> list[Record]:
    source = source_of(args)
    run = medians(args, ["plan", str(source), "--recipe", "bnb-nf4", "--json"])
    how = f"medians of {args.runs}"
    return [record_of(args, "plan", run, 0.0, how, source_bytes=weight_bytes(source))]


def verify(args: argparse.Namespace) -> list[Record]:
    """Beside its floor: start-up, and the slowest of the read and of each digest."""
    source = source_of(args)
    run = medians(args, ["verify", str(source), "--json"])
    parts = bnb.floor(args.work, source, "bnb-nf4", 1 << 20)
    # unlike a conversion it builds no model class
    opening = [sys.executable, "-c", OPENED, str(source)]
    start = [process(opening, args.work / "none") for _ in range(3)]
    both = (parts["sha256"] + parts["md5"]) / (os.cpu_count() or 1)
    bound = median(start).seconds + max(parts["read"], parts["sha256"], parts["md5"], both)
    how = f"medians of {args.runs}"
    return [record_of(args, "verify", run, bound, how, source_bytes=weight_bytes(source))]


def nf4(args: argparse.Namespace) -> list[Record]:
    return [converted(args, "nf4", "bnb-nf4")]


def int8(args: argparse.Namespace) -> list[Record]:
    return [converted(args, "int8", "bnb-int8")]


def converted(args: argparse.Namespace, piece: str, recipe: str) -> Record:
    source, out = source_of(args), args.work / "scale-out"
    words = ["convert", str(source), "--recipe", recipe, "--out", str(out), "--no-gate"]
    run = medians(args, [*words, "--device", args.device, "--json"], out)
    written = weight_bytes(out)
    memory = json.loads((out / "quantkit-manifest.json").read_text())["sizes"]
    assert memory["output_bytes"] == written, "the folder and its manifest differ"
    shutil.rmtree(out)
    return record_of(
        args,
        piece,
        run,
        bnb.floor(args.work, source, recipe, written)["floor"],
        f"`--no-gate`, medians of {args.runs}",
        source_bytes=weight_bytes(source),
        output_bytes=written,
        plan_bytes=planned(source, recipe)["memory_bytes"],
    )


def medians(args: argparse.Namespace, words: Sequence[str], out: Path | None = None) -> Run:
    """Of whole processes, after one that fills the caches."""
    command = [sys.executable, "-m", "quantkit", *words]
    gone = out or args.work / "none"
    process(command, gone)
    return median([process(command, gone) for _ in range(args.runs)])


def planned(source: Path, recipe: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "quantkit", "plan", str(source), "--recipe", recipe, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


# in part, the rest computed


def gptq(args: argparse.Namespace) -> list[Record]:
    layers = min(args.layers or 2, total_layers(args))
    assert layers > 1, "a layer's time is that between two layers' beginnings"
    source, out = truncated(args, layers), args.work / "scale-out"
    if args.device == "cpu":
        compile_kernels(args)
    ids = write_ids(args, args.samples, args.length)
    run, notes = child("gptq", out, source, out, ids, args.length, args.samples, args.device)
    one = statistics.mean(notes["layers"][1:] or notes["layers"])  # all is new to the first
    bytes_here, bytes_all = weight_bytes(source), whole_bytes(args)
    reading = 2 * notes["verify"] * (bytes_all / bytes_here - 1)
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


def total_layers(args: argparse.Namespace) -> int:
    return int(SIZES[args.model]["num_hidden_layers"])


def whole_bytes(args: argparse.Namespace) -> int:
    """Of the model's weights in fp16, with its old masks."""
    size = SIZES[args.model]
    masks = total_layers(args) * 2048**2 if "mask" in size else 0
    return 2 * parameters(size) + masks


def write_ids(args: argparse.Namespace, windows: int, length: int) -> Path:
    draw, vocabulary = random.Random(0), SIZES[args.model]["vocab_size"]
    ids = [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(windows)]
    path = Path(args.work) / "scale-ids.json"
    path.write_text(json.dumps(ids))
    return path


def child(task: str, out: Path, *words: object) -> tuple[Run, dict[str, Any]]:
    """``task`` of this script in a process of its own, and what it noted."""
    notes = Path(str(words[2])).with_name("scale-notes.json")
    command = [sys.executable, str(HERE / "scale_children.py"), task, *map(str, words)]
    run = process([*command, str(notes)], out)
    return run, dict(json.loads(notes.read_text()))


def matrix_seconds(what: str, size: Mapping[str, Any], tokens: int) -> float:
    """A floor at this machine's measured matrix rate; torch is kept out of this process."""
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import gptq, scale; "
        f"size, tokens = {dict(size)!r}, {tokens}; "
        "print(gptq.floor(size, tokens) if sys.argv[1] == 'floor' else "
        "scale.passes(size, tokens) / gptq.matrix_rate())"
    )
    command = [sys.executable, "-c", code, what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def passes(size: Mapping[str, Any], tokens: int) -> float:
    """Operations of the source's pass and of the saved model's, each a product a weight."""
    embedding = size["vocab_size"] * size["hidden_size"]
    return 2 * 2.0 * (parameters(size) - embedding) * tokens


# without the weights


def forecast(args: argparse.Namespace) -> list[Record]:
    """Plans for a 13B model of which only the headers exist."""
    folder = args.work / "13B-headers"
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import random_neox as r; " + (
        f"r.write_hollow({str(folder)!r}, {json.dumps(FORECAST)})"
    )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", code], check=True)
    found = []
    for piece, recipe in (("nf4", "bnb-nf4"), ("int8", "bnb-int8"), ("gptq", "gptq-4bit-g128")):
        words = ["plan", str(folder), "--recipe", recipe, "--json"]
        made = planned(folder, recipe)
        found.append(
            Record(
                piece=f"plan {piece}",
                model="13B",
                container="safetensors",
                parameters=parameters(FORECAST),
                source_bytes=made["source_bytes"],
                output_bytes=made["output_bytes"],
                **asdict(medians(args, words)),
                floor=0.0,
                how=f"headers alone, medians of {args.runs}",
                plan_bytes=made["memory_bytes"],
            )
        )
    shutil.rmtree(folder)
    return found


PIECES: dict[str, Callable[[argparse.Namespace], list[Record]]] = {
    "plan": plan,
    "verify": verify,
    "nf4": nf4,
    "int8": int8,
    "gptq": gptq,
    "gate": gate,
    "forecast": forecast,
}


if __name__ == "__main__":
    main()
