"""Two checkouts of quantkit in turn: what a change does to a conversion's time.

    git worktree add ../before COMMIT
    python bench/between.py ../before                # against this checkout: 1.1B, NF4 and int8
    python bench/between.py ../before --model 267M --recipes bnb-nf4 --runs 11

A shared machine drifts by more than most changes are worth, so runs alternate and the ratio is
the median of each turn's own. Appended to bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bnb import HERE, Run, machine, median, process, record
from models import SIZES, make_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--model", choices=SIZES, default="1.1B")
    parser.add_argument("--container", choices=["safetensors", "torch"], default="safetensors")
    parser.add_argument("--recipes", nargs="+", default=["bnb-nf4", "bnb-int8"])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("/tmp/quantkit-bench"))
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    source = make_model(args.work, args.model, args.container)
    trees = [args.before.resolve(), HERE.parent]
    lines = [
        f"## {time.strftime('%Y-%m-%d %H:%M')} between.py: {commit(trees[0])} and "
        f"{commit(trees[1])}, GPT-NeoX {args.model}, {args.container}, random weights",
        "",
        f"{machine()}; {args.runs} turns of whole processes, `--no-gate`, source in the page "
        "cache.",
        "",
        "| recipe | source | before, wall s | after, wall s | before, CPU s | after, CPU s "
        "| time after, of before |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for recipe in args.recipes:
        lines += rows(args, trees, source, recipe)
    record("\n".join(lines) + "\n", args)


def rows(args: argparse.Namespace, trees: list[Path], source: Path, recipe: str) -> list[str]:
    for tree in trees:  # so that both have compiled and kept what they need
        convert(args, tree, source, recipe)
    made = []
    for kind, recall in (("new", False), ("digested before", True)):
        turns = [
            [convert(args, tree, source, recipe, recall=recall) for tree in trees]
            for _ in range(args.runs)
        ]
        before, after = (median([each[side] for each in turns]) for side in (0, 1))
        ratio = statistics.median(new.seconds / old.seconds for old, new in turns)
        made.append(
            f"| {recipe} | {kind} | {before.seconds:.2f} | {after.seconds:.2f} "
            f"| {before.cpu:.2f} | {after.cpu:.2f} | {ratio:.3f} |"
        )
    return made


def convert(
    args: argparse.Namespace, tree: Path, source: Path, recipe: str, *, recall: bool = False
) -> Run:
    """One conversion by the code of ``tree``, with a cache of its own."""
    out = args.work / "between-out"
    os.environ["PYTHONPATH"] = str(tree)
    os.environ["QUANTKIT_CACHE"] = str(args.work / f"between-cache-{commit(tree)}")
    command = [
        sys.executable, "-P", "-m", "quantkit", "convert", str(source), "--recipe", recipe,
        "--out", str(out), "--no-gate", "--device", "cpu",
    ]  # fmt: skip
    try:
        return process(command, out, recall=recall)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def commit(tree: Path) -> str:
    words = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
