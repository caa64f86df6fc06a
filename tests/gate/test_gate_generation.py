"""Degenerate answers fail the generation level only where the source gives none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import build
from transformers import PretrainedConfig

from quantkit.evaluation import PromptIds
from quantkit.gate import generation
from quantkit.recipe import load_recipe

ANSWER = list(range(10, 30))
LOOP = [10, 11, *[5] * 18]


def level(monkeypatch: pytest.MonkeyPatch, source: list[int], saved: list[int]):
    answers = {"source": source, "saved": saved}
    monkeypatch.setattr(generation, "_continue", lambda model, ids, recipe: answers[model.name])
    monkeypatch.setattr(generation, "_forced_agreement", lambda *args: 1.0)
    config = PretrainedConfig(bos_token_id=2, eos_token_id=3, pad_token_id=None)
    models = [SimpleNamespace(name=each, config=config) for each in ("source", "saved")]
    recipe = load_recipe("bnb-nf4", ["evaluation.new_tokens=20"])
    prompts = [PromptIds("tell me", (7, 8))] * 2
    return generation.check_generation(*models, prompts, recipe, None, lambda count: None)


@pytest.mark.parametrize(
    ("saved", "kind"), [(LOOP, "loop"), ([3], "empty"), ([2, 2, 2, 3], "special")]
)
def test_what_only_the_quantized_model_does_fails(monkeypatch, saved, kind) -> None:
    found = level(monkeypatch, ANSWER, saved)
    assert found.outcome == "failed"
    assert found.measures["degenerate"] == 2
    assert f"share of {kind} answers" in str(found.failures[0])
    assert "tell me" in str(found.failures[0])


def test_what_the_source_does_too_is_its_own(monkeypatch) -> None:
    found = level(monkeypatch, LOOP, LOOP)
    assert found.outcome == "passed"
    assert found.measures["degenerate"] == 0
    assert found.measures["identical"] == 2


def test_the_first_divergence_is_counted_in_tokens(monkeypatch) -> None:
    saved = [*ANSWER[:7], 99, *ANSWER[8:]]
    found = level(monkeypatch, ANSWER, saved)
    assert found.measures["first_divergence"] == 7
    assert found.measures["examples"][0]["shared"] == ANSWER[:7]
    assert found.measures["token_agreement"] == pytest.approx(19 / 20)
    assert found.outcome == "passed"


def test_special_ids_may_be_several_and_the_tokenizers_own() -> None:
    config = PretrainedConfig(bos_token_id=2, eos_token_id=[3, 4], pad_token_id=9)
    found = generation._special(SimpleNamespace(config=config), None)
    assert found == {2, 3, 4, 9}
    tokenizer = SimpleNamespace(special={3, 7})
    assert generation._special(SimpleNamespace(config=config), tokenizer) == {2, 3, 4, 7, 9}


def test_special_ids_are_the_text_configs_where_no_other_is_stated() -> None:
    text = SimpleNamespace(eos_token_id=5, bos_token_id=6)
    config = SimpleNamespace(eos_token_id=0, bos_token_id=None, get_text_config=lambda: text)
    names = ("eos_token_id", "bos_token_id", "pad_token_id")
    assert [generation._named_id(config, each) for each in names] == [0, 6, None]


def test_answers_are_told_in_words_where_there_is_a_tokenizer() -> None:
    words = SimpleNamespace(decode=lambda ids: "".join(map(str, ids)))
    found = generation._example(PromptIds("tell me", (7,)), [1, 2], [1, 3], words)
    told = ("prompt", "reference", "quantized", "shared")
    assert [found[each] for each in told] == ["tell me", "12", "13", "1"]


@pytest.mark.parametrize(
    ("source", "saved", "agreement", "divergence"),
    [
        ([], [], 1.0, 0),
        ([5, 6], [5, 6, 7], 2 / 3, 2),
        ([5, 6, 7], [5], 1 / 3, 1),
        ([5], [], 0.0, 0),
    ],
)
def test_answers_of_unlike_length(source, saved, agreement, divergence) -> None:
    found = generation._example(PromptIds("", (7, 8)), source, saved, None)
    assert found["agreement"] == pytest.approx(agreement)
    assert found["first_divergence"] == divergence
    assert found["shared"] == source[:divergence]
    assert (found["prompt"], found["reference"], found["quantized"]) == ([7, 8], source, saved)


@pytest.mark.parametrize(("share", "outcome"), [(0.5, "passed"), (0.49, "failed")])
def test_the_share_of_degenerate_answers_may_be_its_limit(share, outcome) -> None:
    limits = load_recipe("bnb-nf4", [f"gate.max_degenerate={share}"]).gate
    examples = [
        {"prompt": each, "forced_agreement": 1.0, "degenerate": each} for each in ("", "loop")
    ]
    failures = list(generation._failures(examples, examples[1:], limits))
    assert bool(failures) == (outcome == "failed")


def test_the_agreement_may_be_its_limit_and_its_worst_prompt_is_named() -> None:
    limits = load_recipe("bnb-nf4", ["gate.min_generation_agreement=0.75"]).gate
    examples = [{"prompt": each, "forced_agreement": each} for each in (0.9, 0.6)]
    assert list(generation._failures(examples, [], limits)) == []
    examples[1]["forced_agreement"] = 0.5
    (failure,) = generation._failures(examples, [], limits)
    assert (failure.where, failure.value) == ("0.6", 0.7)
    examples[1]["forced_agreement"] = float("nan")
    assert len(list(generation._failures(examples, [], limits))) == 1


class Counting:
    """Says the next number; a tenth less sure of 3, which stands in every prompt."""

    device = "cpu"

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, 9)
        logits.scatter_(2, ((input_ids + 1) % 9)[..., None], 1.0)
        logits[..., 3] += 0.95
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(
    ("source", "penalty", "share"),
    [
        ([], "", 1.0),
        ([5, 6, 7, 8], "", 1.0),
        ([5, 6, 1, 2], "", 0.75),  # 7 comes after 6, 2 after 1
        ([5, 6, 7, 8, 0, 1, 2, 3], "", 1.0),
        ([5, 6, 7, 8, 0, 1, 2, 3], "1.5", 1.0),
        ([4, 5], "", 0.5),
        ([8, 0], "", 0.5),
    ],
)
def test_each_token_is_judged_after_those_before_it(source, penalty, share) -> None:
    more = [f"generation.repetition_penalty={penalty}"] if penalty else []
    recipe = load_recipe("bnb-nf4", more)
    assert generation._forced_agreement(Counting(), (3, 4), source, recipe) == share


@pytest.mark.parametrize("penalty", [None, 4.0])
def test_greedy_whatever_the_models_own_settings_are(penalty) -> None:
    model = build("gpt_neox", torch.float32)
    own = model.generation_config
    own.do_sample, own.temperature, own.num_beams, own.max_new_tokens = True, 9.0, 3, 2
    own.repetition_penalty, own.no_repeat_ngram_size, own.suppress_tokens = 9.0, 1, [71]
    own.eos_token_id = 55  # the config's is what both models end at
    model.config.eos_token_id = None
    prompt = [5, 9, 2]
    more = [f"generation.repetition_penalty={penalty}"] if penalty else []
    recipe = load_recipe("bnb-nf4", ["evaluation.new_tokens=12", *more])
    ids = [*prompt]
    for _ in range(12):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        seen = sorted(set(ids))
        better = logits[seen] > 0
        factor = penalty or 1.0
        logits[seen] = torch.where(better, logits[seen] / factor, logits[seen] * factor)
        ids.append(int(logits.argmax()))
    written = generation._continue(model, prompt, recipe)
    assert written == ids[3:]
    assert generation._forced_agreement(model, prompt, written, recipe) == 1.0
    assert model.generation_config is own
    for ends in (ids[5], [95, ids[5]]):
        model.config.eos_token_id = ends
        assert generation._continue(model, prompt, recipe) == ids[3 : ids.index(ids[5], 3) + 1]
