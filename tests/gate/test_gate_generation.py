"""Degenerate answers fail the generation level only where the source gives none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
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


def test_special_ids_may_be_several() -> None:
    config = PretrainedConfig(bos_token_id=2, eos_token_id=[3, 4], pad_token_id=None)
    found = generation._special(SimpleNamespace(config=config), None)
    assert found == {2, 3, 4}
