"""quantkit's GPTQ beside GPTQModel's: the same ids, whole processes, in one run.

    python bench/gptq.py speed   --peer PYTHON    # 267M GPT-NeoX, random weights
    python bench/gptq.py quality --peer PYTHON    # trained models: perplexity, KL divergence
    python bench/gptq.py draws   --peer PYTHON    # the same over several calibrations
    python bench/gptq.py keys                     # what each of the recipe's keys buys
    python bench/gptq.py memory                   # with 8 and with 32 layers

PYTHON is an interpreter with GPTQModel installed (it has pins of its own):

    python -m venv peer && peer/bin/pip install torch==2.13.0 transformers==5.23.0 \
        optimum gptqmodel==7.6.0 sentencepiece protobuf

Both sides calibrate on the same windows of ids. Results are appended to RESULTS.md. The
floor of ``speed`` is the arithmetic at this machine's measured matrix rate: one run of each
layer, the upper half of each Hessian, its factor, and the update. (Until 2026-11-26 15:18 it
counted two runs, and an inverse.)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from pathlib import Path

import torch
from bnb import Run, machine, process, record
from gptq_quality import draws, keys, quality
from gptq_sides import VARIANTS, ours, theirs, versions, warm
from models import SIZES, make_model
from random_neox import write
from scale_sources import write_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*WORK])
    parser.add_argument("--peer", type=Path, help="an interpreter with GPTQModel")
    parser.add_argument("--work", type=Path, default=Path("/tmp/quantkit-bench"))
    parser.add_argument("--model", choices=SIZES, default="267M")
    parser.add_argument("--variants", nargs="+", default=["sym"], choices=[*VARIANTS])
    parser.add_argument("--only", nargs="+", help="of the trained models, these")
    parser.add_argument("--draws", type=int, default=5, help="of calibration windows")
    parser.add_argument("--windows", type=int, default=256, help="that draws are judged on")
    parser.add_argument(
        "--held-out", action="store_true", help="draws: judged on the model's own text alone"
    )
    parser.add_argument("--reuse", action="store_true", help="what an earlier run quantized")
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["QUANTKIT_CACHE"] = str(args.work / "cache")
    record(WORK[args.what](args), args)


def speed(args: argparse.Namespace) -> str:
    source = make_model(args.work, args.model, "safetensors")
    ids = write_ids(args, 32, 256)
    warm(args.work, args.peer)
    rows, bound = [], floor(SIZES[args.model], 32 * 256)
    for variant in args.variants:
        overrides, options = VARIANTS[variant]
        mine = process(ours(source, args.work / "ours", ids, overrides), args.work / "ours")
        rows.append(f"| {variant} | quantkit | {cells(mine)} | {mine.seconds / bound:.2f} |")
        if args.peer:
            words = theirs(
                args.peer, source, args.work / "theirs", ids, {"group_size": 128, **options}
            )
            peer = process(words, args.work / "theirs")
            rows.append(f"| {variant} | GPTQModel | {cells(peer)} | {peer.seconds / bound:.2f} |")
            rows.append(
                f"| {variant} | quantkit / GPTQModel | {mine.seconds / peer.seconds:.2f} | "
                f"{mine.cpu / peer.cpu:.2f} | {mine.peak / peer.peak:.2f} | |"
            )
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} gptq.py speed: GPT-NeoX {args.model}, random "
            "weights, 32 x 256 tokens, 4 bits, groups of 128",
            "",
            f"{machine()}; {versions(args.peer)}; one run a side, each after "
            "one of a tiny model that is not counted, `--no-gate`. "
            f"Floor: {bound:.0f} s.",
            "",
            "| variant | side | wall s | CPU s | peak MB | times the floor |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def memory(args: argparse.Namespace) -> str:
    """Peak of a whole process over the number of layers, all else equal."""
    ids = args.work / "ids.json"
    draw = random.Random(0)
    ids.write_text(json.dumps([[draw.randrange(4096) for _ in range(256)] for _ in range(32)]))
    warm(args.work)
    found = {}
    for layers in (8, 32):
        source = args.work / f"memory-{layers}"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        size = {"hidden_size": 512, "num_hidden_layers": layers, "vocab_size": 4096}
        write(str(source), size, "safetensors")
        found[layers] = process(ours(source, args.work / "ours", ids, []), args.work / "ours")
    rows = [f"| {layers} | {cells(run)} |" for layers, run in found.items()]
    growth = found[32].peak / found[8].peak - 1
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} gptq.py memory: GPT-NeoX, hidden 512, random "
            "weights, 32 x 256 tokens, 4 bits, groups of 128",
            "",
            f"{machine()}; {versions(None)}; `--no-gate`.",
            "",
            "| layers | wall s | CPU s | peak MB |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"Peak, 32 layers against 8: {growth:+.1%}.",
            "",
        ]
    )


def cells(run: Run) -> str:
    return f"{run.seconds:.1f} | {run.cpu:.1f} | {run.peak / 1e6:.0f}"


def floor(size: dict[str, int], tokens: int) -> float:
    """Seconds of arithmetic for a GPT-NeoX, at the rate of a square product measured here."""
    hidden, layers = size["hidden_size"], size["num_hidden_layers"]
    shapes = [(3 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden)]
    runs = sum(2 * rows * columns * tokens for rows, columns in shapes)
    hessians = sum(columns * columns * tokens for _, columns in shapes)
    factors = sum(columns**3 / 3 for _, columns in shapes)
    updates = sum(rows * columns * columns for rows, columns in shapes)
    return layers * (runs + hessians + factors + updates) / matrix_rate()


def matrix_rate() -> float:
    """Operations a second of a float32 product, the best of five."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        left @ right
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start))
    return best


WORK = {"speed": speed, "quality": quality, "draws": draws, "keys": keys, "memory": memory}

if __name__ == "__main__":
    main()
