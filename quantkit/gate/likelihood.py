"""Level ``perplexity``: both models on the same windows, each window read once.

Definitions, per predicted token with source distribution p and quantized q, in nats:
perplexity is exp(mean of -log q(true)); KL divergence is sum p (log p - log q), as in
llama.cpp's perplexity tool; top-1 agreement is how often both rank the same token first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantkit.gate.report import Failure, Level, judged
from quantkit.recipe import GateSection

#: Positions whose distributions are compared at a time; bounds the float32 logits held.
_ROWS = 64


@dataclass(frozen=True)
class Scores:
    """Per predicted token, over all windows: negative log-likelihoods, KL, top-1 agreement."""

    reference: Tensor
    quantized: Tensor
    kl: Tensor
    same_top: Tensor


def score(
    reference: Any,
    quantized: Any,
    windows: Sequence[Sequence[int]],
    progress: Callable[[int], None],
) -> Scores:
    """Run both models over every window, side by side."""
    total = sum(len(window) - 1 for window in windows)
    # made once: small results allocated between large logits would keep the heap from shrinking
    scores = Scores(*(torch.empty(total, dtype=torch.float64) for _ in range(4)))
    at = 0
    for count, window in enumerate(windows, start=1):
        ids = torch.tensor([list(window)])
        truth = ids[0, 1:]
        _compare(_logits(reference, ids), _logits(quantized, ids), truth, scores, at)
        at += len(truth)
        progress(count)
    return scores


def check_likelihood(scores: Scores, limits: GateSection, protocol: dict[str, Any]) -> Level:
    """Means over all tokens against the recipe's thresholds."""
    source, saved = (_exp(float(each.mean())) for each in (scores.reference, scores.quantized))
    ratio = saved / source if isfinite(source) else nan
    kl = float(scores.kl.mean())
    agreement = float(scores.same_top.mean())
    measures = {
        "perplexity": {
            "reference": source,
            "quantized": saved,
            "ratio": ratio,
            "tokens": scores.kl.numel(),
            **protocol,
        },
        "kl_divergence": {"mean": kl, "p99": float(np.quantile(scores.kl.numpy(), 0.99))},
        "top1_agreement": agreement,
    }
    bounds = [
        ("perplexity ratio", ratio, limits.max_perplexity_ratio, 1),
        ("mean KL divergence", kl, limits.max_kl_mean, 1),
        ("top-1 agreement", agreement, limits.min_top1_agreement, -1),
    ]
    failures = [
        Failure("perplexity", name, value, bound)
        for name, value, bound, sign in bounds
        if not sign * value <= sign * bound  # so that NaN fails
    ]
    return judged("perplexity", measures, failures)


def _exp(value: float) -> float:
    """exp, infinite where a float cannot hold it."""
    return inf if value >= 709 else exp(value)


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=ids.to(model.device), use_cache=False).logits[0, :-1]  # type: ignore[no-any-return]


def _compare(source: Tensor, saved: Tensor, truth: Tensor, scores: Scores, at: int) -> None:
    """One window's measures into ``scores`` from ``at`` on. float64, so that means are exact."""
    for start in range(0, len(truth), _ROWS):
        rows = slice(start, start + _ROWS)
        p = torch.log_softmax(source[rows].float(), dim=-1)
        q = torch.log_softmax(saved[rows].to(p.device).float(), dim=-1)
        true = truth[rows, None].to(p.device)
        place = slice(at + start, at + start + len(p))
        scores.reference[place] = -p.gather(1, true)[:, 0]
        scores.quantized[place] = -q.gather(1, true)[:, 0]
        scores.same_top[place] = (p.argmax(-1) == q.argmax(-1)).double()
        # float64: where the two nearly agree, float32's rounding is as large as what is measured
        p, q = (torch.log_softmax(each[rows].double(), dim=-1) for each in (source, saved))
        scores.kl[place] = p.exp().mul_(p.sub_(q.to(p.device))).sum(-1)
