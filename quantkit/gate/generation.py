"""Level ``generation``: greedy continuations of the recipe's prompts, token by token.

Judged by the teacher-forced agreement: how often the quantized model, led along the
source's own continuation, would choose the same next token. Free-running agreement is
recorded too, but one early flip between two near-equal tokens spoils all that follows.
Judged besides: answers that are degenerate where the source's is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from quantkit.evaluation import PromptIds
from quantkit.gate.degeneration import degenerate
from quantkit.gate.report import Failure, Level, judged
from quantkit.recipe import GateSection, Recipe
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
    special = _special(reference, tokenizer)
    for count, prompt in enumerate(prompts, start=1):
        source = _continue(reference, prompt.ids, recipe)
        saved = _continue(quantized, prompt.ids, recipe)
        forced = _forced_agreement(quantized, prompt.ids, source, recipe)
        found = {"forced_agreement": forced, "degenerate": degenerate(saved, special)}
        found["reference_degenerate"] = degenerate(source, special)
        examples.append(_example(prompt, source, saved, tokenizer) | found)
        progress(count)
    newly = [each for each in examples if each["degenerate"] and not each["reference_degenerate"]]
    measures = {
        "prompts": len(examples),
        "new_tokens": recipe.evaluation.new_tokens,
        "repetition_penalty": _penalty(recipe),
        "token_agreement": _mean(examples, "agreement"),
        "forced_agreement": _mean(examples, "forced_agreement"),
        "identical": sum(each["agreement"] == 1.0 for each in examples),
        "first_divergence": sum(each["first_divergence"] for each in examples) / len(examples),
        "degenerate": len(newly),
        "examples": examples,
    }
    return judged("generation", measures, list(_failures(examples, newly, recipe.gate)))


def _failures(
    examples: Sequence[dict[str, Any]], newly: Sequence[dict[str, Any]], limits: GateSection
) -> Iterator[Failure]:
    agreement, least = _mean(examples, "forced_agreement"), limits.min_generation_agreement
    if not agreement >= least:
        worst = min(examples, key=lambda each: float(each["forced_agreement"]))
        where = repr(worst["prompt"])
        yield Failure("generation", "teacher-forced agreement", agreement, least, where)
    share = len(newly) / len(examples)
    if not share <= limits.max_degenerate:
        kind = f"share of {newly[0]['degenerate']} answers where the source's are none"
        where = repr(newly[0]["prompt"])
        yield Failure("generation", kind, share, limits.max_degenerate, where)


def _special(reference: Any, tokenizer: Tokenizer | None) -> frozenset[int]:
    """Ids that no reader sees: the config's special ones, and the tokenizer's."""
    named = (_named_id(reference.config, f"{each}_token_id") for each in ("bos", "eos", "pad"))
    found = {id for each in named for id in (each if isinstance(each, list) else [each])}
    known = tokenizer.special if tokenizer else ()
    return frozenset({int(each) for each in found if each is not None} | set(known))


def _named_id(config: Any, name: str) -> Any:
    """A special id, or ids; those of the text config where a multimodal one states none."""
    own = getattr(config, name, None)
    return getattr(config.get_text_config(), name, None) if own is None else own


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
    """Greedy, whatever the model's own settings say: the folder has some, the reference none."""
    from transformers import GenerationConfig

    end = _named_id(model.config, "eos_token_id")
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=recipe.evaluation.new_tokens,
        repetition_penalty=_penalty(recipe),
        bos_token_id=_named_id(model.config, "bos_token_id"),
        eos_token_id=end,
        pad_token_id=end[0] if isinstance(end, list) else end,
    )
    prompt = torch.tensor([list(ids)], device=model.device)
    own = model.generation_config
    try:
        # not as an argument alone: generate fills what is unset there from the model's own
        model.generation_config = settings
        with torch.inference_mode():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
            )
    finally:
        model.generation_config = own
    return [int(each) for each in out[0, len(ids) :]]


def _example(
    prompt: PromptIds, source: list[int], saved: list[int], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    same = [a == b for a, b in zip(source, saved, strict=False)]
    longest = max(len(source), len(saved), 1)
    divergence = same.index(False) if False in same else min(len(source), len(saved))
    decode = tokenizer.decode if tokenizer else list
    return {
        "prompt": prompt.text or list(prompt.ids),
        "reference": decode(source),
        "quantized": decode(saved),
        "shared": decode(source[:divergence]),
        "agreement": sum(same) / longest if source or saved else 1.0,
        "first_divergence": divergence,
    }
