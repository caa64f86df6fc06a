"""Checkpoints that bring a sentencepiece model, a tokenizer.json, and tokens beyond its pieces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import SourceError
from quantkit.gate.tokens import TokenizerSettings, check_tokenizer_level
from quantkit.resources import demo_model
from quantkit.tokenization import check_hidden, make_files, read_extras, read_model
from quantkit.tokenizer import keeps_piece_ids, library_tokenizer, open_tokenizer

DEMO = demo_model()
SIZE = len(read_model(DEMO / "spiece.model").pieces)
CHAT = "<|turn|>a cat<|end|>\nand  a dog</s>"
TEXTS = [CHAT, "the  sea ", "<|note|>x"]


def source(folder: Path, *added: tuple[int, str, bool], own: bool = True) -> Path:
    """The demo's tokenizer with ``added`` tokens, as a fine-tuned checkpoint brings it: beside
    the model a tokenizer.json (``own``), or the older added_tokens.json alone."""
    folder.mkdir(parents=True)
    for name in ("config.json", "spiece.model", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    if not own:
        listed = {text: number for number, text, _ in added}
        (folder / "added_tokens.json").write_text(json.dumps(listed))
        return folder
    make_files(DEMO / "spiece.model", config_of(DEMO)).write(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["added_tokens"] = [
        {"id": number, "content": text, "special": special, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": not special}
        for number, text, special in added
    ]  # fmt: skip
    # what makes such files wrong on ordinary text: a prefix that sentencepiece does not add
    first = {"type": "Prepend", "prepend": "\u2581"}
    whole["normalizer"] = {"type": "Sequence", "normalizers": [first, whole["normalizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    shutil.copy(DEMO / "tokenizer_config.json", folder)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer_config.json").read_text())


def written(folder: Path, out: Path, *, split: bool) -> Path:
    """What quantkit writes for the source in ``folder``."""
    out.mkdir()
    for name in ("config.json", "spiece.model"):
        shutil.copy(folder / name, out / name)
    model = folder / "spiece.model"
    make_files(model, config_of(folder), split_special_tokens=split).write(out)
    return out


def level(out: Path, folder: Path, *, split: bool) -> Any:
    ids = open_tokenizer(folder, split_special_tokens=split)
    return check_tokenizer_level(out, folder, TEXTS, {}, TokenizerSettings(True, split, ids))


PLAIN = (SIZE, "<|note|>", False)
TURN, END = (SIZE, "<|turn|>", True), (SIZE + 1, "<|end|>", True)


def test_plain_added_tokens_stay_and_all_else_is_sentencepieces(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", PLAIN)
    out = written(folder, tmp_path / "out", split=True)
    found = level(out, folder, split=True)
    assert found.outcome == "passed", found.failures
    assert found.measures["added_tokens"] == ["<|note|>"]
    assert found.measures["with_special"] == 1
    assert found.measures["different"] == 0
    library = library_tokenizer(out)
    assert library.encode("<|note|>x", add_special_tokens=False)[0] == SIZE
    assert library.decode([SIZE]) == "<|note|>"


def test_the_older_list_of_added_tokens_is_read_too(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", PLAIN, own=False)
    library = library_tokenizer(written(folder, tmp_path / "out", split=True))
    assert library.encode("<|note|>x", add_special_tokens=False)[0] == SIZE


@pytest.mark.parametrize("again", ["<|note|>", ""])
def test_an_added_token_that_tokenizers_would_not_add(tmp_path: Path, again: str) -> None:
    """The tokens after it would get the ids of others."""
    twice = source(tmp_path / "source", PLAIN, (SIZE + 1, again, False), (SIZE + 2, "<|x|>", False))
    with pytest.raises(SourceError, match="is its second, or it is empty"):
        written(twice, tmp_path / "out", split=True)


def test_special_added_tokens_need_the_recipes_word(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", TURN, END)
    with pytest.raises(SourceError, match=r"<\|turn\|>, <\|end\|>.*split_special_tokens = false"):
        written(folder, tmp_path / "refused", split=True)
    with pytest.raises(SourceError, match="split_special_tokens = false"):
        check_hidden(folder / "spiece.model", config_of(folder))
    library = library_tokenizer(written(folder, tmp_path / "out", split=False))
    ids = library.encode(CHAT, add_special_tokens=False)
    assert [ids[0], ids.count(SIZE + 1), ids[-1]] == [SIZE, 1, library.eos_token_id]
    assert "<|end|>" not in library.decode(ids, skip_special_tokens=True)


def test_what_is_measured_on_has_the_added_tokens_too(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", TURN, END)
    tokenizer = open_tokenizer(folder, split_special_tokens=False)
    assert tokenizer is not None
    assert tokenizer.route == "built from sentencepiece"
    library = library_tokenizer(written(folder, tmp_path / "out", split=False))
    for text in TEXTS:
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False)
    assert SIZE in tokenizer.special


def test_the_recipes_word_alone_lets_special_strings_be_tokens(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", own=False)
    out = written(folder, tmp_path / "out", split=False)
    library = library_tokenizer(out)
    assert library.encode("a</s>", add_special_tokens=False)[-1] == library.eos_token_id
    assert level(out, folder, split=False).outcome == "passed"
    # to a recipe that says otherwise, this very folder is wrong
    assert level(out, folder, split=True).outcome == "failed"


def test_a_lost_added_token_fails(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", PLAIN)
    out = written(source(tmp_path / "without", own=False), tmp_path / "out", split=True)
    failures = level(out, folder, split=True).failures
    assert any("added token '<|note|>'" in str(each) for each in failures)


def test_the_sources_own_json_would_fail(tmp_path: Path) -> None:
    """Copied, as other tools do, it is told by its first difference."""
    folder = source(tmp_path / "source", PLAIN)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    found = level(folder, folder, split=True)
    assert found.outcome == "failed"
    assert "texts with other ids" in str(found.failures[0])


def test_what_a_plain_json_adds_is_what_its_template_says(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", PLAIN)
    config = config_of(folder) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert make_files(folder / "spiece.model", config).adds == "text </s>"


def test_a_template_of_what_has_no_id_is_named(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", PLAIN)
    whole = json.loads((folder / "tokenizer.json").read_text())
    text, other = ({"Sequence": {"id": each, "type_id": 0}} for each in "AB")
    whole["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[NOT]", "type_id": 0}}, text],
        "pair": [text, other],
        "special_tokens": {"[NOT]": {"id": "[NOT]", "ids": [5], "tokens": ["[NOT]"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    config = config_of(folder) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    with pytest.raises(SourceError, match=r"\[NOT\], added around a text, cannot be written"):
        make_files(folder / "spiece.model", config)


def test_a_token_that_a_template_cannot_name_is_named(tmp_path: Path) -> None:
    """In a template a colon stands before a number."""
    folder = source(tmp_path / "source", (SIZE, "<end:x>", True))
    config = config_of(folder) | {"eos_token": "<end:x>"}
    with pytest.raises(SourceError, match="<end:x>, added around a text, cannot be written"):
        make_files(folder / "spiece.model", config, split_special_tokens=False)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ((7, "<|x|>", False), "'<|x|>' has the id 7, but"),
        ((SIZE, "</s>", True), "'</s>' has the id"),
        ((SIZE + 2, "<|x|>", False), "without gaps"),
    ],
)
def test_added_tokens_that_cannot_be_kept_are_named(
    tmp_path: Path, added: tuple[int, str, bool], said: str
) -> None:
    folder = source(tmp_path / "source", added)
    with pytest.raises(SourceError) as caught:
        read_extras(folder / "spiece.model")
    assert said in str(caught.value)
    failures = level(folder, folder, split=True).failures
    assert said in str(failures[0])


def test_a_special_token_without_an_id_is_refused() -> None:
    config = config_of(DEMO) | {"additional_special_tokens": ["<extra_id_0>"]}
    with pytest.raises(SourceError, match="without an id: <extra_id_0>"):
        make_files(DEMO / "spiece.model", config)


@pytest.mark.parametrize("tokens", [True, 5, "<s>"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_special_tokens_that_are_no_list_are_refused(key: str, tokens: object) -> None:
    config = config_of(DEMO) | {key: tokens}
    with pytest.raises(SourceError, match="special tokens: expected a list"):
        make_files(DEMO / "spiece.model", config)
    check_hidden(DEMO / "spiece.model", config)


def test_an_id_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text('{"<|x|>": 1e999}')
    with pytest.raises(SourceError, match="lists of added tokens cannot be read"):
        read_extras(tmp_path / "spiece.model")


def test_a_class_that_shifts_ids_is_seen(tmp_path: Path) -> None:
    folder = source(tmp_path / "source")
    whole = json.loads((folder / "tokenizer.json").read_text())
    vocab = whole["model"]["vocab"]
    whole["model"]["vocab"] = [*vocab[:4], ["<new>", -9.0], *vocab[4:]]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert not keeps_piece_ids(folder / "spiece.model")
    assert keeps_piece_ids(DEMO / "spiece.model")
