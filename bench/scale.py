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
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bnb
import scale_parts
from bnb import HERE, Run, machine, median, process, record
from models import SIZES
from scale_report import FORECAST, Record, parameters, read_records, section, summary
from scale_sources import record_of, source_folder, source_of, weight_bytes

RECORDS = HERE / "scale.jsonl"
PLOT = HERE / "scale.png"


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
    "gptq": scale_parts.gptq,
    "gate": scale_parts.gate,
    "forecast": forecast,
}


if __name__ == "__main__":
    main()
