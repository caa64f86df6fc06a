"""Several models beside the source on the same windows, each window read once for all.

Every model is a :class:`~quantkit.gate.runners.Runner`. Logits of one window at a time are
in memory; of the distributions only a few numbers a token are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from quantkit.gate.runners import Runner, Windows

#: Positions whose distributions are compared at a time; bounds the float64 values held.
_ROWS = 64


@dataclass(frozen=True)
class Scores:
    """Float64, one number a predicted token, window after window.

    ``reference`` and ``quantized`` are negative log-likelihoods of the true token in nats,
    ``kl`` the divergence of the next-token distributions, ``same_top`` 1 where both rank the
    same token first, ``change`` the true token's probability in the quantized model less
    that in the source. ``window`` is the index of the token's window.
    """

    reference: Tensor
    quantized: Tensor
    kl: Tensor
    same_top: Tensor
    change: Tensor
    window: Tensor

    def of(self, windows: Sequence[int]) -> Scores:
        """Only the tokens of these windows."""
        chosen = torch.isin(self.window, torch.tensor(list(windows), dtype=torch.int64))
        return Scores(**{each.name: getattr(self, each.name)[chosen] for each in fields(self)})


@dataclass(frozen=True)
class Candidate:
    """A model to be scored on ``windows``, indices into those of the source.

    Its runner knows only these, in this order.
    """

    runner: Runner
    windows: Sequence[int]


def score(
    reference: Runner,
    candidates: Sequence[Candidate],
    windows: Windows,
    progress: Callable[[int], None],
) -> list[Scores]:
    """One :class:`Scores` a candidate."""
    found = [_empty([windows[at] for at in each.windows], each.windows) for each in candidates]
    done = [0 for _ in candidates]
    for index, window in enumerate(windows):
        truth = torch.tensor(list(window[1:]))
        source = reference.logits(index)[:-1]
        for which, candidate in enumerate(candidates):
            if index not in candidate.windows:
                continue
            saved = candidate.runner.logits(list(candidate.windows).index(index))[:-1]
            _compare(source, saved, truth, found[which], done[which])
            done[which] += len(truth)
        progress(index + 1)
    return found


def _empty(windows: Windows, indices: Sequence[int]) -> Scores:
    # made once: small results allocated between large logits would keep the heap from shrinking
    lengths = torch.tensor([len(window) - 1 for window in windows])
    window = torch.repeat_interleave(torch.tensor(list(indices)), lengths)
    made = [torch.empty(len(window), dtype=torch.float64) for _ in range(5)]
    return Scores(made[0], made[1], made[2], made[3], made[4], window)


def _compare(source: Tensor, saved: Tensor, truth: Tensor, scores: Scores, at: int) -> None:
    """One window's measures into ``scores`` from ``at`` on.

    float64: where the two nearly agree, float32's rounding is as large as what is measured.
    """
    for start in range(0, len(truth), _ROWS):
        rows = slice(start, start + _ROWS)
        p = torch.log_softmax(source[rows].float().double(), dim=-1)
        q = torch.log_softmax(saved[rows].to(p.device).float().double(), dim=-1)
        true = truth[rows, None].to(p.device)
        place = slice(at + start, at + start + len(p))
        of_source, of_saved = (each.gather(1, true)[:, 0] for each in (p, q))
        scores.reference[place], scores.quantized[place] = -of_source, -of_saved
        scores.change[place] = of_saved.exp() - of_source.exp()
        scores.same_top[place] = (p.argmax(-1) == q.argmax(-1)).double()
        scores.kl[place] = p.exp().mul_(p.sub_(q)).sum(-1)
