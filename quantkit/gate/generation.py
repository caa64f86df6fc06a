"""Level ``generation``: greedy continuations of the recipe's prompts, token by token.

Judged by the teacher-forced agreement: how often the quantized model, led along the
source's own continuation, would choose the same next token. Free-running agreement is
recorded too, but one early flip between two near-equal tokens spoils all that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from quantkit.evaluation import PromptIds
from quantkit.gate.report import Failure, Level, judged
from quantkit.recipe import Recipe
from quantkit.tokenizer import Tokenizer


def check_generation(
    reference: Any,
    quantized: Any,
    prompts: Sequence[PromptIds],
    recipe: Recipe,
    tokenizer: Tokenizer | None,
    progress: Callable[[int], None],
) -> Level:
    """Continue every prompt with both models and compare."""
    examples = []
    for count, prompt in enumerate(prompts, start=1):
        source = _continue(reference, prompt.ids, recipe)
        saved = _continue(quantized, prompt.ids, recipe)
        forced = _forced_agreement(quantized, prompt.ids, source, recipe)
        examples.append(_example(prompt, source, saved, tokenizer) | {"forced_agreement": forced})
        progress(count)
    agreement = _mean(examples, "forced_agreement")
    measures = {
        "prompts": len(examples),
        "new_tokens": recipe.evaluation.new_tokens,
        "token_agreement": _mean(examples, "agreement"),
        "forced_agreement": agreement,
        "identical": sum(each["agreement"] == 1.0 for each in examples),
        "examples": examples,
    }
    failures = []
    if not agreement >= recipe.gate.min_generation_agreement:
        worst = min(examples, key=lambda each: float(each["forced_agreement"]))
        failures.append(
            Failure(
                "generation",
                "teacher-forced agreement",
                agreement,
                recipe.gate.min_generation_agreement,
                repr(worst["prompt"]),
            )
        )
    return judged("generation", measures, failures)


def _mean(examples: Sequence[dict[str, Any]], measure: str) -> float:
    return sum(float(each[measure]) for each in examples) / len(examples)


def _penalty(recipe: Recipe) -> float:
    """The repetition penalty that the model's card asks for."""
    return (recipe.generation and recipe.generation.repetition_penalty) or 1.0


def _forced_agreement(
    model: Any, prompt: Sequence[int], source: Sequence[int], recipe: Recipe
) -> float:
    """Share of ``source``'s tokens that ``model`` would choose too, given those before."""
    from transformers import RepetitionPenaltyLogitsProcessor

    if not source:
        return 1.0
    ids = torch.tensor([[*prompt, *source]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
    penalize = RepetitionPenaltyLogitsProcessor(_penalty(recipe))
    same = 0
    for at, wanted in enumerate(source, start=len(prompt)):
        chosen = penalize(ids[:, :at], logits[at - 1 : at].clone()).argmax()
        same += int(chosen) == wanted
    return same / len(source)


def _continue(model: Any, ids: Sequence[int], recipe: Recipe) -> list[int]:
    """Greedy, whatever the model's own settings say of sampling."""
    from transformers import GenerationConfig

    config = model.config
    end = config.eos_token_id
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=recipe.evaluation.new_tokens,
        repetition_penalty=_penalty(recipe),
        bos_token_id=config.bos_token_id,
        eos_token_id=end,
        pad_token_id=end[0] if isinstance(end, list) else end,
    )
    prompt = torch.tensor([list(ids)], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
        )
    return [int(each) for each in out[0, len(ids) :]]


def _example(
    prompt: PromptIds, source: list[int], saved: list[int], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    same = [a == b for a, b in zip(source, saved, strict=False)]
    longest = max(len(source), len(saved), 1)
    return {
        "prompt": prompt.text or list(prompt.ids),
        "reference": tokenizer.decode(source) if tokenizer else source,
        "quantized": tokenizer.decode(saved) if tokenizer else saved,
        "agreement": (sum(same) + (not source and not saved)) / longest,
        "first_divergence": same.index(False) if False in same else min(len(source), len(saved)),
    }
