"""Level ``generation``: greedy continuations of the recipe's prompts, token by token."""

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
        examples.append(_example(prompt, source, saved, tokenizer))
        progress(count)
    agreement = sum(each["agreement"] for each in examples) / len(examples)
    measures = {
        "prompts": len(examples),
        "new_tokens": recipe.evaluation.new_tokens,
        "token_agreement": agreement,
        "identical": sum(each["agreement"] == 1.0 for each in examples),
        "examples": examples,
    }
    failures = []
    if not agreement >= recipe.gate.min_generation_agreement:
        worst = min(examples, key=lambda each: float(each["agreement"]))
        failures.append(
            Failure(
                "generation",
                "token agreement",
                agreement,
                recipe.gate.min_generation_agreement,
                repr(worst["prompt"]),
            )
        )
    return judged("generation", measures, failures)


def _continue(model: Any, ids: Sequence[int], recipe: Recipe) -> list[int]:
    """Greedy, with the repetition penalty that the model's card asks for."""
    from transformers import GenerationConfig

    penalty = recipe.generation.repetition_penalty if recipe.generation else None
    config = model.config
    end = config.eos_token_id
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=recipe.evaluation.new_tokens,
        repetition_penalty=penalty or 1.0,
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
