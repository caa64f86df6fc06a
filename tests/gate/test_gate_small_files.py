"""``check`` on the files beside the weights: what changes an answer fails, the rest is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Converted
from tiny import write_source

from quantkit.gate.accounting import check_accounts
from quantkit.gate.opened import open_original, open_saved
from quantkit.gate.report import Level
from quantkit.gate.tokens import TokenizerSettings, check_tokenizer_level
from quantkit.prompts import chat_template
from quantkit.recipe import load_recipe
from quantkit.source import open_source
from quantkit.staging import MANIFEST

FORM = "{{ messages[0]['content'] }} answer:"
OTHER = "{{ messages[0]['content'] }} sell something:"
TALKS = load_recipe("rinna-3.6b-sft-nf4")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A source, and a plain copy of it."""
    source = write_source(tmp_path / "source", "mistral")
    return source, shutil.copytree(source, tmp_path / "out")


def structure(pair: tuple[Path, Path], recipe: Any = None) -> Level:
    opened = open_source(pair[0])
    return check_accounts(open_saved(pair[1]), open_original(opened), opened.generation, recipe)


def write(folder: Path, name: str, value: Any) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def said(level: Level) -> str:
    return " ".join(map(str, level.failures))


def remarks(level: Level) -> str:
    return " ".join(level.measures["remarks"])


def test_a_copy_has_no_remarks(pair: tuple[Path, Path]) -> None:
    found = structure(pair)
    assert found.outcome == "passed"
    assert remarks(found) == ""


# chat templates


def in_a_file(folder: Path, text: str) -> None:
    write(folder, "chat_template.jinja", text)


def in_the_config(folder: Path, text: str) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": text})


def by_name(folder: Path, text: str) -> None:
    named = [{"name": "default", "template": text}, {"name": "tool_use", "template": FORM}]
    write(folder, "tokenizer_config.json", {"chat_template": named})


PLACES = [in_a_file, in_the_config, by_name]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("first", PLACES)
def test_another_template_fails_wherever_it_stands(
    pair: tuple[Path, Path],
    first: Callable[[Path, str], None],
    place: Callable[[Path, str], None],
) -> None:
    source, out = pair
    first(source, FORM)
    place(out, FORM + "\n")
    if place != by_name or first == by_name:  # else it brings a second one
        assert structure(pair).outcome == "passed", "Jinja drops the last line's end"
    place(out, OTHER)
    found = said(structure(pair))
    assert "chat template: line 1: " in found
    assert "}} sell something:" in found


def test_a_template_beside_the_one_that_is_used(pair: tuple[Path, Path]) -> None:
    source, out = pair
    for folder in pair:
        in_a_file(folder, FORM)
    in_the_config(source, FORM)
    in_the_config(out, OTHER)
    assert "older loaders read" in said(structure(pair))


def test_a_missing_template_fails_and_an_added_one_is_named(pair: tuple[Path, Path]) -> None:
    source, out = pair
    in_a_file(out, OTHER)
    found = structure(pair)
    assert found.outcome == "passed"
    assert "chat_template.jinja is there, and the source has none" in remarks(found)
    in_a_file(source, FORM)
    (out / "chat_template.jinja").unlink()
    assert "chat template: missing at default" in said(structure(pair))


def test_a_pipe_in_place_of_a_further_template(pair: tuple[Path, Path]) -> None:
    (pair[1] / "additional_chat_templates").mkdir()
    os.mkfifo(pair[1] / "additional_chat_templates" / "x.jinja")
    assert remarks(structure(pair)) == ""


def test_more_templates_than_are_scrutinized(pair: tuple[Path, Path]) -> None:
    for at in range(17):
        write(pair[1], f"additional_chat_templates/{at:02}.jinja", FORM)
    assert "additional_chat_templates: 17, expected at most 16" in said(structure(pair))
    named = [{"name": str(at), "template": FORM} for at in range(17)]
    write(pair[1], "tokenizer_config.json", {"chat_template": named})
    assert "expected at most 16 templates, got 17" in said(structure(pair))


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/x.jinja"])
def test_a_template_without_an_end_is_not_read(pair: tuple[Path, Path], name: str) -> None:
    write(pair[1], name, FORM)
    os.truncate(pair[1] / name, 1 << 40)  # a hole, which no memory holds
    assert "1,099,511,627,776 bytes, expected at most 1,048,576" in said(structure(pair))


def known_by_the_recipe(pair: tuple[Path, Path]) -> str:
    """What fails by itself passes by the recipe, and with a remark by a manifest that names it."""
    assert structure(pair).outcome == "failed"
    assert structure(pair, TALKS).outcome == "passed"
    write(pair[1], MANIFEST, {"schema": 1, "recipe": TALKS.model_dump(mode="json")})
    found = structure(pair)
    assert found.outcome == "passed"
    return remarks(found)


def test_a_recipes_prompt_form_is_known(pair: tuple[Path, Path]) -> None:
    source, out = pair
    in_a_file(source, FORM)
    assert TALKS.prompt is not None
    in_a_file(out, chat_template(TALKS.prompt))
    assert "of the recipe that its quantkit-manifest.json names" in known_by_the_recipe(pair)


# generation defaults


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", 0.3), ("repetition_penalty", 1.5), ("suppress_tokens", [5]),
     ("begin_suppress_tokens", [5]), ("bad_words_ids", [[5]]), ("forced_eos_token_id", 5),
     ("max_new_tokens", 3), ("max_length", 30), ("do_sample", True), ("top_k", 3),
     ("sequence_bias", [[[5], -9.0]]), ("no_repeat_ngram_size", 2), ("num_beams", 4)],
)  # fmt: skip
def test_a_setting_that_changes_answers(pair: tuple[Path, Path], key: str, value: Any) -> None:
    source, out = pair
    stated = json.loads((source / "config.json").read_text())
    ids = {name: stated[name] for name in ("bos_token_id", "eos_token_id")}
    write(out, "generation_config.json", {**ids, key: value})
    assert f"generation_config.json: {value!r} at {key}, expected" in said(structure(pair))
    write(source, "generation_config.json", {**ids, key: value})
    assert structure(pair).outcome == "passed"


def test_defaults_are_nothing_and_harmless_settings_are_named(pair: tuple[Path, Path]) -> None:
    source, out = pair
    stated = {"bos_token_id": 1, "eos_token_id": 2}
    write(source, "generation_config.json", stated)
    usual = {"temperature": 1.0, "top_k": 50, "max_length": 20, "suppress_tokens": [],
             "use_cache": True, "output_scores": False}  # fmt: skip
    write(out, "generation_config.json", stated | usual)
    assert remarks(structure(pair)) == ""
    write(out, "generation_config.json", stated | usual | {"pad_token_id": 0, "use_cache": False})
    found = structure(pair)
    assert found.outcome == "passed"
    assert "states what the source does not: 'pad_token_id' 0, 'use_cache' False" in remarks(found)


def test_a_recipes_settings_are_known(pair: tuple[Path, Path]) -> None:
    source, out = pair
    write(source, "generation_config.json", {"eos_token_id": 2, "temperature": 1.3})
    assert TALKS.generation is not None
    asked = TALKS.generation.model_dump(exclude_none=True)
    write(out, "generation_config.json", {"eos_token_id": 2, **asked})
    assert "'temperature' 0.7, of the recipe that its" in known_by_the_recipe(pair)


# other files, and a setting of no tensor


def test_an_index_is_named_where_it_is_not_what_was_read(pair: tuple[Path, Path]) -> None:
    out = pair[1]
    names = [each.name for each in open_source(out).checkpoint.tensors]
    shard = "model-00001-of-00001.safetensors"
    write(out, "model.safetensors.index.json", {"weight_map": dict.fromkeys(names, shard)})
    assert remarks(structure(pair)).endswith("reads it: model.safetensors.index.json")
    (out / "model.safetensors").rename(out / shard)
    assert remarks(structure(pair)) == ""


def test_code_is_named(pair: tuple[Path, Path]) -> None:
    source, out = pair
    for name in ("custom_generate/generate.py", "modeling_x.py", "same.py"):
        write(out, name, "print('hello')")
    write(source, "same.py", "print('hello')")
    found = structure(pair)
    assert "code: custom_generate/generate.py, modeling_x.py, not the source's" in remarks(found)


def test_an_int8_threshold_is_named(demo: Path, demo_int8: Converted, tmp_path: Path) -> None:
    out = shutil.copytree(demo_int8.folder, tmp_path / "out")
    assert "threshold" not in remarks(structure((demo, out)))
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["llm_int8_threshold"] = 0.0
    write(out, "config.json", config)
    assert "llm_int8_threshold 0.0, usual 6.0 (at 0.0 no outliers" in remarks(
        structure((demo, out))
    )


# what a default call puts around a text, and whose fault other ids are


def tokenizer(pair: tuple[Path, Path]) -> Level:
    return check_tokenizer_level(pair[1], pair[0], ["the sea", "a  b"], {}, TokenizerSettings(True))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    change(whole)
    (folder / "tokenizer.json").write_text(json.dumps(whole))


def begin_instead(whole: dict[str, Any]) -> None:
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    token = {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}}
    whole["post_processor"] |= {"single": [begin, text], "special_tokens": token}


def test_other_special_tokens_around_a_text(tokenizer_pair: tuple[Path, Path]) -> None:
    assert tokenizer(tokenizer_pair).outcome == "passed"
    edit(tokenizer_pair[1], begin_instead)
    words = "tokenizer: a default call gives: <s> (2) text, expected text </s> (3)"
    assert said(tokenizer(tokenizer_pair)) == words


def test_the_id_of_a_special_token_around_a_text(tokenizer_pair: tuple[Path, Path]) -> None:
    def number(whole: dict[str, Any]) -> None:
        whole["post_processor"]["special_tokens"]["</s>"]["ids"] = [9]

    edit(tokenizer_pair[1], number)
    assert "expected text </s> (3)" in said(tokenizer(tokenizer_pair))


def prefixed(whole: dict[str, Any]) -> None:
    first = {"type": "Prepend", "prepend": "\u2581"}
    whole["normalizer"] = {"type": "Sequence", "normalizers": [first, whole["normalizer"]]}


@pytest.mark.parametrize("older", [True, False])
def test_whose_fault_other_ids_are(tokenizer_pair: tuple[Path, Path], older: bool) -> None:
    source, out = tokenizer_pair
    for name in ("tokenizer.json", "tokenizer_config.json") if older else ():
        shutil.copy(out / name, source / name)
    for folder in tokenizer_pair if older else (out,):
        edit(folder, prefixed)
    found = said(tokenizer(tokenizer_pair))
    assert "texts with other ids" in found
    assert ("the source's own files give the same ids in transformers" in found) == older
    assert ("quantkit convert writes a tokenizer.json that has none" in found) == older
