"""What GPTQ costs trained models, beside GPTQModel and NF4: ``gptq.py quality, draws, keys``."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from bnb import machine, process
from gptq_sides import USUAL, VARIANTS, theirs, versions
from trained import Trained, trained


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
            texts = each[3]
            found = quantkit.compare(
                list(made.values()), each[1],
                text=texts[0] if args.held_out and isinstance(texts, list) else texts,
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
    if gaps:
        error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
        gap = (
            f"quantkit's log perplexity less GPTQModel's: {statistics.fmean(gaps):+.4f} % in the "
            f"mean of {len(gaps)}, standard error {error:.4f} %."
        )
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} gptq.py draws: 4 bits, groups of 64, symmetric",
            "",
            f"{machine()}; {versions(args.peer)}; {args.windows or 'all'} windows of 256 tokens"
            f"{' of the text that came with the model' if args.held_out else ''}; each draw "
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
