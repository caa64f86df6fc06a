"""What is measured, on what ids, and what is said where nothing can be: each rule alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import write_source

import quantkit
from quantkit.evaluation import EvaluationText, Material
from quantkit.gate import field, judging
from quantkit.gate.case import make_case
from quantkit.gate.report import Level
from quantkit.recipe import load_recipe
from quantkit.types import silent


def text(name: str, route: str, *sequences: tuple[int, ...]) -> EvaluationText:
    return EvaluationText(name, "", name * 2, route, sequences)


def case(*texts: EvaluationText, positions: int | None = 64, tokenizer: Any = None) -> Any:
    original = SimpleNamespace(
        architecture=SimpleNamespace(max_positions=positions),
        parsed=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=96)),
    )
    recipe = load_recipe("bnb-nf4", ["evaluation.window=100", "evaluation.max_windows=2"])
    material = Material(tokenizer, texts, (), ())
    return make_case(original, None, recipe, material, "cpu", silent)  # type: ignore[arg-type]


def test_every_text_has_its_own_windows_as_long_as_the_model_takes_them() -> None:
    texts = text("a", "ids", tuple(range(70)), (1, 2, 3)), text("b", "ids", (4, 5))
    made = case(*texts)
    assert made.length == 64
    assert [len(each) for each in made.windows] == [64, 6, 2]
    assert made.windows[2] == (4, 5)
    told = [(each.name, each.sha256, [*each.windows]) for each in made.domains]
    assert told == [("a", "aa", [0, 1]), ("b", "bb", [2])]
    assert case(*texts, positions=None).length == 100
    assert case(*texts, positions=200).length == 100


def test_the_first_id_beyond_the_vocabulary_fails() -> None:
    assert judging._unknown_id(case(text("a", "ids", (0, 95)), text("b", "ids", (95, 1)))) is None
    level = judging._unknown_id(case(text("a", "ids", (0, 95)), text("b", "ids", (1, 96), (2, 3))))
    assert level is not None
    assert (level.name, level.outcome) == ("perplexity", "failed")
    assert str(level.failures[0]).endswith("largest token id: 96 at b, expected below 96")


@pytest.mark.parametrize(("length", "runs"), [(31, False), (32, True)])
def test_so_few_tokens_show_nothing(
    monkeypatch: pytest.MonkeyPatch, length: int, runs: bool
) -> None:
    """Predicted ones, over all windows: each of two windows predicts one fewer than it has."""
    made = case(text("a", "ids", (1,) * 11, (1,) * (length - 10 + 1)))
    scored = []
    monkeypatch.setattr(judging, "score", lambda *given: scored.append(given) or [None])
    monkeypatch.setattr(judging, "protocol", lambda *given: {})
    monkeypatch.setattr(judging, "check_likelihood", lambda *given: Level("perplexity", "passed"))
    opened = SimpleNamespace(reference=None, saved=[None], floor=None)
    level = judging._perplexity(made, opened)  # type: ignore[arg-type]
    assert (level.outcome, bool(scored)) == (("passed", True) if runs else ("not_run", False))
    assert ("31 predicted tokens are too few" in level.reason) == (not runs)


@pytest.mark.parametrize("names", ["a", "ab"])
def test_several_texts_are_told_of_one_by_one(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    made = case(*(text(each, "ids", (1,) * 40) for each in names))
    monkeypatch.setattr(judging, "score", lambda *given: [None])
    monkeypatch.setattr(judging, "protocol", lambda *given: {})
    monkeypatch.setattr(judging, "check_likelihood", lambda *given: given)
    opened = SimpleNamespace(reference=None, saved=[None], floor=None)
    _, _, _, several, *floor = judging._perplexity(made, opened)  # type: ignore[arg-type,misc]
    assert [each.name for each in several] == (["a", "b"] if names == "ab" else [])
    assert floor == []


def test_nothing_to_measure_on_is_said() -> None:
    for run, words in ((judging._perplexity, "no tokenizer"), (judging._generation, "no prompts")):
        level = run(case(), None)  # type: ignore[arg-type]
        assert level.outcome == "not_run"
        assert words in level.reason


@pytest.mark.parametrize(
    ("texts", "prompts", "perplexity", "generation"),
    [
        (["ids"], None, "", ""),
        (["ids"], "tokenizer.json", "", "tokenizer.json"),
        (["tokenizer.json", "ids"], "tokenizer.json", "tokenizer.json", "tokenizer.json"),
        (["sentencepiece"], "sentencepiece", "", ""),
        (["b", "a"], "sentencepiece", "a, b", ""),
    ],
)
def test_only_ids_that_the_tokenizer_level_proves_depend_on_it(
    texts: list[str], prompts: str | None, perplexity: str, generation: str
) -> None:
    made = case(
        *(text(each, each, (1, 2)) for each in texts),
        tokenizer=prompts and SimpleNamespace(route=prompts),
    )
    for name, doubtful in (("perplexity", perplexity), ("generation", generation)):
        assert judging._unproven(name, made, Level("tokenizer", "passed")) is None
        assert judging._unproven(name, made, Level("tokenizer", "not_run")) is None
        level = judging._unproven(name, made, Level("tokenizer", "failed"))
        assert (level is None) == (not doubtful)
        if level is not None:
            assert (level.name, level.outcome) == (name, "not_run")
            assert f"the ids ({doubtful})" in level.reason


# how the models are held


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}, "bfloat16"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "torch.float32"}, "float32"),
        ({"load_in_4bit": True}, "float16"),
        ({"load_in_8bit": True, "bnb_4bit_compute_dtype": "float32"}, "float16"),
    ],
)
def test_what_a_folder_computes_in(settings: dict[str, Any], dtype: str) -> None:
    opened = SimpleNamespace(settings=settings, dtype="float16")
    assert field.compute_dtype(opened) == dtype  # type: ignore[arg-type]


def test_models_fit_where_all_of_them_and_some_room_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source as float32, as the noise floor's type, and each folder as it is."""
    sizes = {("source", "float32"): 400, ("source", "float16"): 200, ("saved", None): 50}
    monkeypatch.setattr(field, "resident_bytes", lambda which, dtype=None: sizes[which, dtype])
    needed = 400 + 200 + 50 + 50 + (2 << 30)
    for free, fit in ((needed, False), (needed + 1, True)):
        monkeypatch.setattr(field, "free_memory", lambda free=free: free)
        assert field.fits("source", ["saved", "saved"], "cpu") == fit  # type: ignore[arg-type]
    monkeypatch.setattr(field, "free_memory", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (needed + 1, 0))
    assert field.fits("source", ["saved", "saved"], "cuda")  # type: ignore[arg-type]


def test_activations_spill_beside_the_weights_where_one_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert field._scratch(tmp_path) == tmp_path
    monkeypatch.setattr(field.os, "access", lambda *given: False)
    monkeypatch.setattr(field.tempfile, "gettempdir", lambda: "/elsewhere")
    assert field._scratch(tmp_path) == Path("/elsewhere")


def test_what_does_not_fit_is_walked_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, ids = write_source(tmp_path / "source"), tmp_path / "ids.json"
    ids.write_text(json.dumps([[at % 90 for at in range(40)]] * 9))
    out = tmp_path / "out"
    quantkit.convert(source, "bnb-nf4", out, no_gate=True)
    asked = ["gate.min_top1_agreement=0.0", "gate.min_generation_agreement=0.0",
             "evaluation.max_windows=9", "evaluation.new_tokens=2"]  # fmt: skip
    monkeypatch.setattr(judging, "fits", lambda *given: False)
    found = quantkit.check(out, source, recipe="bnb-nf4", text=ids, set=asked)["gate"]
    assert found["levels"]["perplexity"] == "passed"
    assert found["levels"]["generation"] == "not_run"
    assert "they do not fit whole" in found["reasons"]["generation"]
    assert found["noise_floor"]["windows"] == 2, "the first and the ninth"
