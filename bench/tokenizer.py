"""Encoding speed of the tokenizer that quantkit writes, beside sentencepiece and the source's own.

    python bench/tokenizer.py SOURCE TEXT

SOURCE is a folder with a spiece.model. CPU seconds for the whole text at once and line by
line; ids that differ from sentencepiece's are counted, as a faster wrong answer is none.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from bnb import machine, record
from sentencepiece import SentencePieceProcessor

from quantkit.tokenization import make_files
from quantkit.tokenizer import SENTENCEPIECE_FILES, library_tokenizer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread, as sentencepiece

OWN = "the source's own, by AutoTokenizer"

Encode = Callable[[str], list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    args = parser.parse_args()
    model = next(args.source / n for n in SENTENCEPIECE_FILES if (args.source / n).is_file())
    sides = encoders(args.source, model)
    text = args.text.read_text(encoding="utf-8")
    lines = text.splitlines()
    wanted = [sides["sentencepiece"](each) for each in lines]
    whole, by_line = timed(sides, [text], args.runs), timed(sides, lines, args.runs)
    rows = []
    for name, encode in sides.items():
        wrong = sum(encode(line) != ids for line, ids in zip(lines, wanted, strict=True))
        times = f"{cell(whole, name)} | {cell(by_line, name)}"
        rows.append(f"| {name} | {times} | {wrong} of {len(lines)} |")
    report = "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} tokenizer.py: {args.text.name}, "
            f"{len(text):,} characters, {args.source.name}",
            "",
            f"{machine()}; transformers {version('transformers')}, "
            f"tokenizers {version('tokenizers')}, sentencepiece {version('sentencepiece')}; "
            f"CPU seconds, medians of {args.runs} rounds in turn; load {os.getloadavg()[0]:.1f}.",
            "",
            "| encoder | whole s | times the source's own | by line s | times the source's own | "
            "lines with other ids |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
    record(report, args)


def encoders(source: Path, model: Path) -> dict[str, Encode]:
    config = source / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / model.name).write_bytes(model.read_bytes())
        make_files(model, settings).write(folder)
        theirs, ours = library_tokenizer(source), library_tokenizer(folder)
    judge = SentencePieceProcessor(model_file=str(model))
    return {
        "sentencepiece": judge.encode,
        OWN: lambda t: theirs.encode(t, add_special_tokens=False),
        "quantkit's, by AutoTokenizer": lambda t: ours.encode(t, add_special_tokens=False),
    }


def timed(sides: dict[str, Encode], texts: list[str], runs: int) -> dict[str, list[float]]:
    """CPU seconds of each side, one figure a round. They take turns text by text, in an order
    drawn anew each time, so that what else the machine does meets all alike."""
    draw, names = random.Random(0), list(sides)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        spent = dict.fromkeys(names, 0.0)
        for each in texts:
            for name in draw.sample(names, len(names)):
                start = time.process_time()
                sides[name](each)
                spent[name] += time.process_time() - start
        for name, seconds in spent.items():
            found[name].append(seconds)
    return found


def cell(found: dict[str, list[float]], name: str) -> str:
    """Seconds, and times the source's own tokenizer in the same round: medians, quartiles."""
    ratios = [mine / own for mine, own in zip(found[name], found[OWN], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{statistics.median(found[name]):.3f} | {middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
