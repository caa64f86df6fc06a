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
import math
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from bnb import SIZES, Run, machine, make_model, process, record
from random_neox import write
from trained import Trained, trained

PEER = """
import json, os, sys
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
source, out, ids, options = sys.argv[1:5]
os.chdir(os.path.dirname(out))  # it writes its logs where it stands
from gptqmodel import GPTQModel, QuantizeConfig
options = json.loads(options)
model = GPTQModel.load(source, QuantizeConfig(offload_to_disk=False, **options), device="cpu")
windows = json.load(open(ids))
model.quantize([{"input_ids": w, "attention_mask": [1] * len(w)} for w in windows], batch_size=1)
model.save(out)
"""


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
    parser.add_argument("--reuse", action="store_true", help="what an earlier run quantized")
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    record(WORK[args.what](args), args)


#: What differs from 4 bits, groups of 128, symmetric: ours, theirs.
VARIANTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "sym": ([], {}),
    "asym": (["method.sym=false"], {"sym": False}),
    "desc_act": (["method.desc_act=true", "method.group_order=false"], {"desc_act": True}),
}


#: The calibration windows are taken as they are.
USUAL = ["calibration.length=256", "calibration.packing=apart"]


def speed(args: argparse.Namespace) -> str:
    source = make_model(args.work, args.model, "safetensors")
    ids = args.work / "ids.json"
    draw, vocabulary = random.Random(0), SIZES[args.model]["vocab_size"]
    windows = [[draw.randrange(vocabulary) for _ in range(256)] for _ in range(32)]
    ids.write_text(json.dumps(windows))
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
            f"{machine()}; {versions(args.peer)}; one run a side, `--no-gate`. "
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


def ours(source: Path, out: Path, ids: Path, overrides: list[str]) -> list[str]:
    words = [
        sys.executable, "-m", "quantkit", "convert", str(source),
        "--recipe", "gptq-4bit-g128", "--out", str(out), "--no-gate", "--device", "cpu",
        "--calibration", str(ids),
    ]  # fmt: skip
    return words + [
        word for each in [*USUAL, "source.repo=", *overrides] for word in ("--set", each)
    ]


def theirs(python: Path, source: Path, out: Path, ids: Path, options: dict[str, Any]) -> list[str]:
    return [
        str(python),
        "-c",
        PEER,
        str(source),
        str(out),
        str(ids),
        json.dumps({"bits": 4, **options}),
    ]


def versions(peer: Path | None) -> str:
    found = f"torch {version('torch')}, transformers {version('transformers')}"
    if peer is None:
        return f"{found}; GPTQModel absent (--peer)"
    code = "from importlib.metadata import version as v; print(v('gptqmodel'), v('torch'))"
    asked = subprocess.run([peer, "-c", code], capture_output=True, text=True, check=True)
    return "{}; GPTQModel {} on torch {}".format(found, *asked.stdout.split())


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


def quality(args: argparse.Namespace) -> str:
    import quantkit

    rows: list[str] = []
    removed: list[list[float | None]] = []
    for variant, model in product(args.variants, trained(args.work, args.only)):
        name = model[0] if variant == "sym" else f"{model[0]}-{variant}"
        made = quantized(args, model, name, variant)
        found = quantkit.compare(
            list(made.values()), model[1], text=model[3],
            set=["evaluation.window=256", "evaluation.max_windows=0"],
        )  # fmt: skip
        by_label = dict(zip(made, found["folders"], strict=True))
        lost = {}
        for label, each in by_label.items():
            reference, reached = (each["perplexity"][key] for key in ("reference", "quantized"))
            loss, divergence = reached - reference, each["kl_divergence"]["mean"]
            lost[label] = loss, divergence
            rows.append(
                f"| {name} | {label} | {reference:.4f} | {reached:.4f} | {loss:+.4f} | "
                f"{divergence:.5f} |"
            )
        if args.peer:
            pairs = zip(lost["GPTQ, quantkit"], lost["GPTQ, GPTQModel"], strict=True)
            removed.append([_share(mine, peers) for mine, peers in pairs])
            rows.append(_removed(name, removed[-1]))
    if removed:
        known = [[x for x in each if x is not None] for each in zip(*removed, strict=True)]
        means = [sum(each) / len(each) if each else None for each in known]
        rows.append(_removed("mean", means))
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} gptq.py quality: 4 bits, groups of 64, "
            f"{', '.join(args.variants)}",
            "",
            f"{machine()}; {versions(args.peer)}; windows of 256 tokens, the same calibration ids; "
            "weights decoded alike for all.",
            "",
            "| model | side | fp perplexity | perplexity | loss | KL, mean |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def quantized(args: argparse.Namespace, each: Trained, name: str, variant: str) -> dict[str, Path]:
    """The folders of one model, by what made them."""
    import quantkit

    _, source, ids, _, skip = each
    more, options = VARIANTS[variant]
    options = {"group_size": 64, **options} | ({"dynamic": skip} if skip else {})
    made = {}
    for label, recipe, overrides in (
        ("NF4", "bnb-nf4", []),
        ("GPTQ, quantkit", "gptq-4bit-g128", [*more, *USUAL, "method.group_size=64",
                                              "method.ignore=[]"]),
    ):  # fmt: skip
        out = made[label] = args.work / f"{name}-{recipe}"
        if args.reuse and out.is_dir():
            continue
        quantkit.convert(
            source, recipe, out, overwrite=True, no_gate=True,
            calibration=ids if recipe.startswith("gptq") else None,
            set=["source.repo=", *overrides],
        )  # fmt: skip
    if args.peer:
        out = made["GPTQ, GPTQModel"] = args.work / f"{name}-gptqmodel"
        if not (args.reuse and out.is_dir()):
            process(theirs(args.peer, source, out, ids, options), out)
    return made


def draws(args: argparse.Namespace) -> str:
    """How far the calibration's own windows move the result: one model, several draws of them."""
    import quantkit

    rows, gaps = [], []
    for draw in range(args.draws):
        for each in trained(args.work, args.only, draw):
            made = quantized(args, each, f"{each[0]}-{draw}", "sym")
            found = quantkit.compare(
                list(made.values()), each[1], text=each[3],
                set=["evaluation.window=256", f"evaluation.max_windows={args.windows}"],
            )  # fmt: skip
            folders = dict(zip(made, found["folders"], strict=True))
            for label, one in folders.items():
                log = math.log(one["perplexity"]["ratio"])
                kl = one["kl_divergence"]["mean"]
                rows.append(f"| {each[0]} | {draw} | {label} | {100 * log:+.4f} | {kl:.5f} |")
            if args.peer:
                sides = [folders[f"GPTQ, {side}"] for side in ("quantkit", "GPTQModel")]
                ours, peers = (math.log(side["perplexity"]["ratio"]) for side in sides)
                gaps.append(100 * (ours - peers))
    gap = "GPTQModel was not run."
    if len(gaps) > 1:
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        gap = (
            f"quantkit's log perplexity less GPTQModel's: {statistics.fmean(gaps):+.4f} % in the "
            f"mean of {len(gaps)}, standard error {error:.4f} %."
        )
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} gptq.py draws: 4 bits, groups of 64, symmetric",
            "",
            f"{machine()}; {versions(args.peer)}; {args.windows} windows of 256 tokens; each draw "
            "calibrates both on the same 128 windows of 256, other ones than the draws before.",
            "",
            "| model | draw | side | log perplexity ratio, % | KL, mean |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            gap,
            "",
        ]
    )


def _share(mine: float, peers: float) -> float | None:
    """Of the peer's loss, what ours is less; None where the peer lost nothing."""
    return 1 - mine / peers if peers > 0 else None


def _removed(name: str, shares: Sequence[float | None]) -> str:
    said = ["nothing lost" if each is None else f"{each:.2f}" for each in shares]
    return f"| {name} | share of GPTQModel's removed | | | {' | '.join(said)} |"


#: As in the paper.
PLAIN = ["scale_search=false", "true_sequential=false", "error_feedback=0.0"]

#: From the paper's form to the recipe's, key by key.
KEYS = {
    "whole range, source order, one run": [*PLAIN, "group_order=false"],
    "+ group_order": PLAIN,
    "+ scale_search": PLAIN[1:],
    "+ true_sequential": PLAIN[2:],
    "+ error_feedback = 0.5 (the recipe)": [],
    "the recipe, error_feedback = 0.25": ["error_feedback=0.25"],
    "the recipe, error_feedback = 1": ["error_feedback=1.0"],
    "the recipe without group_order": ["group_order=false"],
    "the recipe without true_sequential": ["true_sequential=false"],
    "the recipe, desc_act for group_order": ["desc_act=true", "group_order=false"],
    "the recipe, sym = false": ["sym=false"],
}


def keys(args: argparse.Namespace) -> str:
    import quantkit

    rows = []
    for name, source, ids, text, _ in trained(args.work, args.only):
        made = {}
        for label, overrides in KEYS.items():
            out = made[label] = args.work / "keys" / f"{name}-{len(made)}"
            quantkit.convert(
                source, "gptq-4bit-g128", out, overwrite=True, no_gate=True, calibration=ids,
                set=["source.repo=", *USUAL, "method.group_size=64",
                     *(f"method.{each}" for each in overrides)],
            )  # fmt: skip
        found = quantkit.compare(
            list(made.values()), source, text=text,
            set=["evaluation.window=256", "evaluation.max_windows=0"],
        )  # fmt: skip
        for label, each in zip(made, found["folders"], strict=True):
            ratio, kl = each["perplexity"]["ratio"], each["kl_divergence"]["mean"]
            rows.append(f"| {name} | {label} | {ratio:.5f} | {kl:.5f} |")
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} gptq.py keys: 4 bits, groups of 64, symmetric",
            "",
            f"{machine()}; {versions(None)}; 128 x 256 calibration tokens, windows of 256.",
            "",
            "| model | keys | perplexity ratio | KL, mean |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


WORK = {"speed": speed, "quality": quality, "draws": draws, "keys": keys, "memory": memory}

if __name__ == "__main__":
    main()
