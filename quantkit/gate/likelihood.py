"""Level ``perplexity``: what the scores of all tokens come to, and what is allowed.

Definitions, per predicted token with source distribution p and quantized q, in nats:
perplexity is exp(mean of -log q(true)); KL divergence is sum p (log p - log q); top-1
agreement is how often both rank the same token first; the change of the true token's
probability is q(true) - p(true). They are those of llama.cpp's perplexity tool.

The interval of the perplexity ratio is paired: the log ratio is the mean of the tokens'
differences, and its standard error that of the means over blocks of consecutive tokens
(neighbours are not independent), normal, 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, nan
from typing import Any

import numpy as np
import torch

from quantkit.gate.report import HIGHEST, LOWEST, PER_DECADE, Failure, Level, judged
from quantkit.gate.scoring import Scores
from quantkit.recipe import GateSection

#: Consecutive tokens that are taken as one draw, within a window.
BLOCK_TOKENS = 64

#: Standard errors on either side of the mean.
_DEVIATIONS = 1.96


@dataclass(frozen=True)
class Domain:
    """The windows of one text, by their indices."""

    name: str
    sha256: str
    windows: range


def check_likelihood(
    scores: Scores,
    limits: GateSection,
    protocol: dict[str, Any],
    domains: Sequence[Domain] = (),
    floor: Scores | None = None,
) -> Level:
    """Means over all tokens against the recipe's thresholds."""
    measures = likelihood_measures(scores) | {"noise_floor": None, "by_text": []}
    measures["perplexity"] |= protocol
    measures["kl_divergence"]["histogram"] = histogram(scores)
    if floor is not None:
        measures["noise_floor"] = likelihood_measures(floor) | {"histogram": histogram(floor)}
        measures["noise_floor"]["windows"] = len(set(floor.window.tolist()))
    measures["by_text"] = [
        {"text": each.name, "sha256": each.sha256} | likelihood_measures(scores.of(each.windows))
        for each in domains
    ]
    bounds = [
        ("perplexity ratio", measures["perplexity"]["ratio"], limits.max_perplexity_ratio, 1),
        ("mean KL divergence", measures["kl_divergence"]["mean"], limits.max_kl_mean, 1),
        ("top-1 agreement", measures["top1_agreement"], limits.min_top1_agreement, -1),
    ]
    failures = [
        Failure("perplexity", name, value, bound)
        for name, value, bound, sign in bounds
        if not sign * value <= sign * bound  # so that NaN fails
    ]
    return judged("perplexity", measures, failures)


def likelihood_measures(scores: Scores) -> dict[str, Any]:
    """All measures of one set of tokens, as plain JSON."""
    source, saved = (_exp(float(each.mean())) for each in (scores.reference, scores.quantized))
    kl = scores.kl.numpy()
    with np.errstate(invalid="ignore"):  # between two infinite ones it is NaN
        median, p90, p99 = (float(each) for each in np.quantile(kl, (0.5, 0.9, 0.99)))
    return {
        "perplexity": {
            "reference": source,
            "quantized": saved,
            "ratio": saved / source if isfinite(source) else nan,
            "ratio_interval": ratio_interval(scores),
            "tokens": len(kl),
        },
        "kl_divergence": {
            "mean": float(kl.mean()),
            "median": median,
            "p90": p90,
            "p99": p99,
            "max": float(kl.max()),
        },
        "top1_agreement": float(scores.same_top.mean()),
        "probability_change_rms": float(scores.change.square().mean().sqrt()),
    }


def ratio_interval(scores: Scores) -> list[float] | None:
    """The paired 95 % interval of the perplexity ratio; ``None`` for fewer than two blocks."""
    difference = scores.quantized - scores.reference
    block = blocks(scores)
    count = int(block[-1]) + 1
    if count < 2 or not bool(torch.isfinite(difference).all()):
        return None
    zeros = torch.zeros(count, dtype=torch.float64)
    sums = zeros.index_add(0, block, difference)
    tokens = zeros.index_add(0, block, torch.ones_like(difference))
    mean = float(difference.mean())
    # a ratio of two sums over blocks of unlike sizes
    spread = float((sums - tokens * mean).square().sum()) * count / (count - 1)
    error = spread**0.5 / len(difference)
    return [_exp(mean - _DEVIATIONS * error), _exp(mean + _DEVIATIONS * error)]


def blocks(scores: Scores) -> torch.Tensor:
    """The number of each token's block: ``BLOCK_TOKENS`` in a row, within one window."""
    _, lengths = torch.unique_consecutive(scores.window, return_counts=True)
    found, first = [], 0
    for length in lengths.tolist():
        found.append(first + torch.arange(length) // BLOCK_TOKENS)
        first += -(-length // BLOCK_TOKENS)
    return torch.cat(found)


def histogram(scores: Scores) -> list[int]:
    """Tokens by the decimal logarithm of their divergence, from ``LOWEST`` to ``HIGHEST``.

    ``PER_DECADE`` bins a decade; the first and last also hold what lies beyond, zeros too.
    """
    edges = (HIGHEST - LOWEST) * PER_DECADE
    values = np.log10(np.maximum(scores.kl.numpy(), 10.0**LOWEST))
    counts, _ = np.histogram(
        np.clip(np.nan_to_num(values, nan=HIGHEST), LOWEST, HIGHEST), edges, (LOWEST, HIGHEST)
    )
    return [int(each) for each in counts]


def _exp(value: float) -> float:
    """exp, infinite where a float cannot hold it."""
    return inf if value >= 709 else exp(value)
