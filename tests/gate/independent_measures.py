"""Perplexity, KL divergence and top-1 agreement again, without a line of quantkit.

    python tests/gate/independent_measures.py SOURCE QUANTIZED TEXT_OR_IDS [WINDOW [MAX_WINDOWS]]

Only transformers, torch, numpy and sentencepiece. The source in float32, the folder as
it says itself, log-softmax and sums in float64.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM


def measure(
    source: Path, quantized: Path, text: Path, window: int = 1024, max_windows: int = 64
) -> dict[str, float]:
    """The gate's figures, computed from the definitions in design.md, section 3."""
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    config = json.loads((quantized / "config.json").read_text())
    dtype = getattr(torch, config.get("dtype") or config["torch_dtype"])
    saved = AutoModelForCausalLM.from_pretrained(quantized, dtype=dtype, device_map="cpu").eval()
    for module in saved.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    window = min(window, reference.config.max_position_embeddings)
    rows = [
        compare(logits(reference, ids), logits(saved, ids), np.array(ids[1:]))
        for ids in windows(source, text, window, max_windows)
    ]
    nll, quantized_nll, kl, same = (np.concatenate(each) for each in zip(*rows, strict=True))
    found = {"reference": np.exp(nll.mean()), "quantized": np.exp(quantized_nll.mean())}
    return {
        **{name: float(value) for name, value in found.items()},
        "ratio": float(found["quantized"] / found["reference"]),
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "top1": float(same.mean()),
        "tokens": len(kl),
    }


def windows(source: Path, text: Path, window: int, limit: int) -> list[list[int]]:
    """The text's ids in pieces that do not overlap; a piece of one token predicts nothing."""
    if text.suffix == ".json":
        stories = json.loads(text.read_text())
        if isinstance(stories, dict):
            lists = (each for each in stories.values() if isinstance(each, list))
            stories = next(each for each in lists if isinstance(each[0], list))
    else:
        pieces = SentencePieceProcessor(model_file=str(source / "spiece.model"))
        stories = [pieces.encode(text.read_text(encoding="utf-8"))]
    cut = [ids[at : at + window] for ids in stories for at in range(0, len(ids), window)]
    return [each for each in cut if len(each) > 1][: limit or None]


def logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].double().numpy()


def compare(p: np.ndarray, q: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, ...]:
    p, q = log_softmax(p), log_softmax(q)
    at = np.arange(len(true))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    return -p[at, true], -q[at, true], kl, p.argmax(axis=1) == q.argmax(axis=1)


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


if __name__ == "__main__":
    paths, numbers = sys.argv[1:4], sys.argv[4:]
    print(json.dumps(measure(*map(Path, paths), *map(int, numbers)), indent=2))
