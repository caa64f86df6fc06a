"""The trained models at hand, with what to calibrate and to judge them on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"

#: A model, its source, calibration ids, evaluation text, and what GPTQModel must skip.
Trained = tuple[str, Path, Path, Path | list[Path], dict[str, Any]]


def trained(work: Path, only: Sequence[str] | None = None, draw: int = 0) -> list[Trained]:
    """The trained models at hand, or ``only`` some; each ``draw`` calibrates on other windows."""
    from quantkit.resources import demo_model

    makers = {
        "demo": lambda: _texts(
            work, "demo", demo_model(), demo_model() / "heldout.txt", _help_topics(), draw
        )
    }
    mini, stories = SHARED / "models" / "mini-rinna", SHARED / "models" / "stories260k"
    if mini.is_dir():
        texts = [
            SHARED / "data/text" / n for n in ("wagahaiwa-nekodearu.txt", "wikitext2-valid.txt")
        ]
        words = "\n".join(each.read_text(encoding="utf-8")[:200_000] for each in texts)
        judged = [mini / "heldout.txt", *_unseen(work)]
        makers["mini-rinna"] = lambda: _texts(work, "mini-rinna", mini, judged, words, draw)
    if stories.is_dir():
        makers["stories260k"] = lambda: _sampled(work, stories, draw)
    return [make() for name, make in makers.items() if not only or name in only]


def _unseen(work: Path) -> list[Path]:
    """As much again as the calibration was drawn from: on heldout.txt alone what four bits cost
    mini-rinna is less than chance."""
    rest, other = work / "novel-rest.txt", work / "wikitext2-test.txt"
    novel = (SHARED / "data/text/wagahaiwa-nekodearu.txt").read_text(encoding="utf-8")
    rest.write_text(novel[200_000:], encoding="utf-8")
    wiki = (SHARED / "data/text/wikitext2-test.txt").read_text(encoding="utf-8")
    other.write_text(wiki[:250_000], encoding="utf-8")
    return [rest, other]


def _help_topics() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[key] for key in sorted(topics))


def _texts(
    work: Path, name: str, source: Path, text: Path | list[Path], words: str, draw: int
) -> Trained:
    """128 windows of 256 tokens drawn from ``words``."""
    from quantkit.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(source)
    assert tokenizer is not None
    encoded = tokenizer.encode(words)
    windows = [encoded[at : at + 256] for at in range(0, len(encoded) - 255, 256)]
    ids = work / f"{name}.json"
    ids.write_text(json.dumps(random.Random(draw).sample(windows, 128)))
    return name, source, ids, text, {}


def _sampled(work: Path, stories: Path, draw: int) -> Trained:
    """stories260k has no text: 128 sequences of its own to calibrate on, 64 others to judge on."""
    from transformers import AutoModelForCausalLM

    from quantkit.resources import demo_model

    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    torch.manual_seed(1 + draw)
    made = model.generate(
        torch.full((128, 1), 1), do_sample=True, max_length=256, top_k=0,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    ids, text, source = (work / f"stories-{n}" for n in ("ids.json", "text.json", "source"))
    ids.write_text(json.dumps(made.tolist()))
    samples = json.loads((stories / "token_ids.json").read_text())["samples"]
    text.write_text(json.dumps(samples))
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(stories, source)
    for path in source.iterdir():
        path.chmod(0o644)
    for file in ("spiece.model", "tokenizer_config.json"):  # GPTQModel opens no model without one
        shutil.copy(demo_model() / file, source / file)
    return "stories260k", source, ids, text, {r"-:.*\.mlp\..*": {}}
