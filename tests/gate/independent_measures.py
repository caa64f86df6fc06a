"""The gate's measures again, without a line of quantkit.

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
    cut = windows(source, text, window, max_windows)
    found = figures(reference, saved, cut)
    settings = config.get("quantization_config", {})
    if settings.get("load_in_4bit"):
        dtype = getattr(torch, settings["bnb_4bit_compute_dtype"])
    if dtype != torch.float32:
        rounded = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()
        floor = figures(reference, rounded, cut[::8])
        found |= {f"floor_{name}": value for name, value in floor.items()}
    return found


def figures(reference: Any, other: Any, cut: list[list[int]]) -> dict[str, float]:
    """All measures of ``other`` beside ``reference``."""
    rows = [compare(logits(reference, ids), logits(other, ids), np.array(ids[1:])) for ids in cut]
    nll, quantized_nll, kl, same, change = (
        np.concatenate(each) for each in zip(*rows, strict=True)
    )
    low, high = interval([row[1] - row[0] for row in rows])
    return {
        "reference": float(np.exp(nll.mean())),
        "quantized": float(np.exp(quantized_nll.mean())),
        "ratio": float(np.exp(quantized_nll.mean()) / np.exp(nll.mean())),
        "ratio_low": low,
        "ratio_high": high,
        "kl_mean": float(kl.mean()),
        "kl_median": float(np.quantile(kl, 0.5)),
        "kl_p90": float(np.quantile(kl, 0.9)),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "kl_max": float(kl.max()),
        "top1": float(same.mean()),
        "change_rms": float(np.sqrt((change**2).mean())),
        "tokens": len(kl),
    }


def interval(differences: list[np.ndarray], block: int = 64) -> tuple[float, float]:
    """exp of the mean difference, give or take 1.96 standard errors over blocks of tokens."""
    pieces = [each[at : at + block] for each in differences for at in range(0, len(each), block)]
    total = sum(len(each) for each in pieces)
    mean = sum(each.sum() for each in pieces) / total
    spread = sum((each.sum() - len(each) * mean) ** 2 for each in pieces)
    error = np.sqrt(spread * len(pieces) / (len(pieces) - 1)) / total
    return float(np.exp(mean - 1.96 * error)), float(np.exp(mean + 1.96 * error))


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
    same = p.argmax(axis=1) == q.argmax(axis=1)
    return -p[at, true], -q[at, true], kl, same, np.exp(q[at, true]) - np.exp(p[at, true])


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


if __name__ == "__main__":
    paths, numbers = sys.argv[1:4], sys.argv[4:]
    print(json.dumps(measure(*map(Path, paths), *map(int, numbers)), indent=2))
