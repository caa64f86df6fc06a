"""A model that is in memory, as lm-evaluation-harness sees it: its HFLM, set up our way.

The library's defaults would add an end-of-text token behind every text where the tokenizer's
class does, take the softmax in float16, and draw bars.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def adapter(model: Any, tokenizer: Any, batch_size: int, told: Callable[[int, int], None]) -> Any:
    """The model and its ``tokenizer`` for the library; ``told`` hears of requests answered.

    The result counts in ``truncated`` the requests that it cut to the model's positions.
    """
    from lm_eval.api.model import CacheHook
    from lm_eval.models.huggingface import HFLM

    class Counter(CacheHook):  # type: ignore[misc]
        """Counts answers, of which the library tells its cache, to say how far it is."""

        def __init__(self) -> None:
            super().__init__(None)
            self.done = self.total = 0

        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            self.done += 1
            told(self.done, self.total)

    class Adapter(HFLM):  # type: ignore[misc]
        """A model that is loaded; says nothing on the terminal, and counts what is cut."""

        truncated = 0

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self.cache_hook.total += len(requests)
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self.cache_hook.total += len(requests)
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self.cache_hook.total += len(requests)
            return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
            room = self.max_length + 1
            self.truncated += sum(
                len(context or ()) + len(said) > room for _, context, said in requests
            )
            return super()._loglikelihood_tokens(requests, **{**kwargs, "disable_tqdm": True})

    made = Adapter(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        softmax_dtype="float32",
        add_bos_token=prepends_bos(tokenizer),
    )
    made.set_cache_hook(Counter())
    return made


def prepends_bos(tokenizer: Any) -> bool:
    """Whether a default call puts the beginning-of-text token first, and nothing last.

    Some (T5's class, which rinna's models use) put an end-of-text token last instead: after
    it no continuation could be scored, so then nothing is added at all.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return bool(tokenizer("a")["input_ids"] == [tokenizer.bos_token_id, *plain])
