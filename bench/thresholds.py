"""What each format costs trained models: the table that the recipes' thresholds are chosen from.

    python bench/thresholds.py

docs/gate.md shows its rows. Of the demo model, and of mini-rinna and stories260k where
``../shared`` is, every folder is measured in one pass by ``quantkit.compare``. Results are
appended to RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnb import machine, record
from gptq_sides import USUAL, versions
from trained import Trained, trained

RECIPES = ("bnb-fp4", "bnb-int8", "bnb-nf4", "bnb-nf4-double", "fp16", "gptq-4bit-g128")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/tmp/quantkit-bench/thresholds"))
    parser.add_argument("--only", nargs="+", help="of the trained models, these")
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["QUANTKIT_CACHE"] = str(args.work / "cache")
    found = [line for each in trained(args.work, args.only) for line in measured(each, args.work)]
    record(section(found), args)


def measured(model: Trained, work: Path) -> list[str]:
    """A row for each recipe that fits the model's widths."""
    import quantkit

    name, source, ids, text, odd_widths = model
    recipes = [each for each in RECIPES if not (odd_widths and each.startswith("gptq"))]
    folders = [converted(source, each, ids, work / f"{name}-{each}") for each in recipes]
    judged = text[0] if isinstance(text, list) else text  # its own; the others are for gptq.py
    found = quantkit.compare(folders, source, text=judged, set=["evaluation.max_windows=0"])
    floor = found["noise_floor"]["kl_divergence"]["mean"]
    pairs = zip(recipes, found["folders"], strict=True)
    return [row(name, recipe, each, floor) for recipe, each in pairs]


def converted(source: Path, recipe: str, ids: Path, out: Path) -> Path:
    import quantkit

    calibrated = recipe.startswith("gptq")
    quantkit.convert(
        source, recipe, out, no_gate=True, overwrite=True, device="cpu",
        calibration=ids if calibrated else None, set=[*USUAL, "source.repo="] if calibrated else [],
    )  # fmt: skip
    return out


def row(name: str, recipe: str, found: Mapping[str, Any], floor: float) -> str:
    likely, divergence = found["perplexity"], found["kl_divergence"]
    low, high = likely["ratio_interval"]
    return (
        f"| {name} | {recipe} ({likely['tokens']} tokens) | {likely['ratio']:.4f} "
        f"[{low:.4f}, {high:.4f}] | {divergence['mean']:.2g} | {divergence['p99']:.2g} | "
        f"{floor:.2g} | {found['top1_agreement']:.1%} | {found['max_weight_error']:.3f} |"
    )


def section(rows: list[str]) -> str:
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} thresholds.py: what each format costs",
            "",
            f"{machine()}; {versions(None)}; GPTQ calibrated on 128 windows of 256 tokens of other "
            "text; each model judged on its own.",
            "",
            "| source | folder | ratio [95 %] | KL mean | KL p99 | noise floor | top-1 | "
            "weight error |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
