"""Nothing is measured on ids that the tokenizer level did not prove; the report names whose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Converted

import quantkit
from quantkit.errors import SourceError
from quantkit.gate.tokens import TokenizerSettings, check_tokenizer_level

QUICK = (
    "evaluation.max_windows=2",
    "evaluation.new_tokens=2",
    'evaluation.prompts=["The value of the"]',
)


@pytest.fixture
def pair(demo: Path, demo_nf4: Converted, tmp_path: Path) -> tuple[Path, Path]:
    """The demo and its quantized folder, to be changed."""
    return shutil.copytree(demo, tmp_path / "source"), shutil.copytree(
        demo_nf4.folder, tmp_path / "out"
    )


def without_sentencepiece(source: Path, out: Path) -> None:
    """As a source with byte-level BPE is: library files alone, the same on both sides."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(out / name, source / name)
    for folder in (source, out):
        (folder / "spiece.model").unlink()


def add_a_prefix(out: Path) -> None:
    path = out / "tokenizer.json"
    whole = json.loads(path.read_text())
    first = {"type": "Prepend", "prepend": "\u2581"}
    whole["normalizer"] = {"type": "Sequence", "normalizers": [first, whole["normalizer"]]}
    path.write_text(json.dumps(whole))


def gate_of(out: Path, source: Path) -> dict[str, Any]:
    return quantkit.check(out, source, set=QUICK)["gate"]


def test_ids_of_the_sources_own_files_are_proven_by_the_level(pair: tuple[Path, Path]) -> None:
    source, out = pair
    without_sentencepiece(source, out)
    found = gate_of(out, source)
    assert found["levels"]["tokenizer"] == "passed"
    assert found["tokenizer"]["oracle"] == "the source's own files"
    assert found["tokenizer"]["ids_by"] == "transformers"
    assert "(transformers)" in found["perplexity"]["protocol"]


def test_a_source_without_a_tokenizer_holds_nobodys_to_anything(pair: tuple[Path, Path]) -> None:
    source, out = pair
    for name in ("spiece.model", "tokenizer_config.json"):
        (source / name).unlink()
    config = json.loads((source / "config.json").read_text())
    level = check_tokenizer_level(out, source, [], config, TokenizerSettings(allow_ties=True))
    assert (level.outcome, level.failures) == ("not_run", ())
    assert level.reason == "the source has no tokenizer to hold this one to"
    config["eos_token_id"] = 77
    level = check_tokenizer_level(out, source, [], config, TokenizerSettings(allow_ties=True))
    assert [each.measure for each in level.failures] == ["eos_token_id"]


def ends_with(folder: Path, token: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": token}))


def test_a_source_whose_tokenizer_and_config_differ_in_an_id(pair: tuple[Path, Path]) -> None:
    """The source's to say, and carried on."""
    source, out = pair
    without_sentencepiece(source, out)
    config = json.loads((source / "config.json").read_text())
    settings = TokenizerSettings(allow_ties=True)

    def failures() -> str:
        level = check_tokenizer_level(out, source, ["The value"], config, settings)
        return " ".join(map(str, level.failures))

    ends_with(out, "[SEP]")
    assert "eos_token_id: 5, expected 3" in failures()
    ends_with(source, "[SEP]")
    assert failures() == ""
    ends_with(source, "[CLS]")
    assert "eos_token_id: 5, expected 3" in failures()


def swap_two_rare_tokens(whole: dict[str, Any]) -> None:
    vocab = whole["model"]["vocab"]
    rare = [at for at, (piece, _) in enumerate(vocab) if len(piece) > 4][-2:]
    vocab[rare[0]], vocab[rare[1]] = vocab[rare[1]], vocab[rare[0]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap_two_rare_tokens, "tokens with another id"),
        (lambda whole: whole.update(decoder={"type": "Fuse"}), "texts decoded otherwise"),
    ],
)
def test_the_sources_own_tokens_keep_ids_and_text(
    pair: tuple[Path, Path], change: Callable[[dict[str, Any]], None], said: str
) -> None:
    source, out = pair
    without_sentencepiece(source, out)
    whole = json.loads((out / "tokenizer.json").read_text())
    change(whole)
    (out / "tokenizer.json").write_text(json.dumps(whole))
    assert said in " ".join(gate_of(out, source)["failures"])


@pytest.mark.parametrize(
    "added", [{"auto_map": {"AutoTokenizer": ["evil.Tok", None]}},
              {"chat_template": "{{ ''.__class__.__mro__ }}"}],
)  # fmt: skip
def test_a_tokenizer_config_with_code_is_seen(
    pair: tuple[Path, Path], added: dict[str, Any]
) -> None:
    source, out = pair
    path = out / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | added))
    found = gate_of(out, source)
    assert found["levels"]["structure"] == "failed"
    assert next(iter(added)) in " ".join(found["failures"])


def test_the_librarys_table_is_known_whatever_torchs_default_is(pair: tuple[Path, Path]) -> None:
    source, out = pair
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert gate_of(out, source)["levels"]["reload"] == "passed"
    finally:
        torch.set_default_dtype(torch.float32)


def test_unproven_ids_are_not_measured_on(pair: tuple[Path, Path]) -> None:
    source, out = pair
    without_sentencepiece(source, out)
    add_a_prefix(out)
    found = gate_of(out, source)
    assert found["status"] == "failed"
    assert found["levels"]["tokenizer"] == "failed"
    for name in ("perplexity", "generation"):
        assert found["levels"][name] == "not_run"
        assert "the tokenizer level failed" in found["reasons"][name]
    assert found["perplexity"] is None


def test_sentencepieces_own_ids_are_right_whatever_the_folder_gives(
    pair: tuple[Path, Path],
) -> None:
    source, out = pair
    add_a_prefix(out)
    found = gate_of(out, source)
    assert found["levels"]["tokenizer"] == "failed"
    assert found["levels"]["perplexity"] == "passed"
    assert found["tokenizer"]["ids_by"] == "sentencepiece"
    assert "(sentencepiece)" in found["perplexity"]["protocol"]


def test_the_manifest_says_whose_ids(demo_nf4: Converted) -> None:
    assert demo_nf4.manifest["gate"]["tokenizer"]["ids_by"] == "sentencepiece"
    assert "(sentencepiece)" in demo_nf4.manifest["gate"]["perplexity"]["protocol"]
    assert demo_nf4.manifest["conversion"]["tokenizer"].startswith("built from spiece.model")


def with_a_json_of_its_own(source: Path, out: Path, *, special: bool) -> int:
    """The source brings a tokenizer.json that is wrong, with an added token; its id."""
    shutil.copy(out / "tokenizer.json", source / "tokenizer.json")
    add_a_prefix(source)
    whole = json.loads((source / "tokenizer.json").read_text())
    number = len(whole["model"]["vocab"])
    whole["added_tokens"] = [
        {"id": number, "content": "<|turn|>", "special": special, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
    ]  # fmt: skip
    (source / "tokenizer.json").write_text(json.dumps(whole))
    return number


def test_a_sources_own_json_is_replaced_and_its_added_token_kept(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = pair
    number = with_a_json_of_its_own(source, out, special=False)
    manifest = quantkit.convert(source, "bnb-nf4", tmp_path / "made", set=QUICK)
    assert manifest["conversion"]["tokenizer"].startswith(
        "built from spiece.model; with its added tokens <|turn|>"
    )
    assert manifest["gate"]["levels"]["tokenizer"] == "passed"
    assert manifest["gate"]["tokenizer"]["ids_by"] == "built from sentencepiece"
    made = json.loads((tmp_path / "made" / "tokenizer.json").read_text())
    assert [(each["id"], each["content"]) for each in made["added_tokens"]] == [
        (number, "<|turn|>")
    ]


def test_special_added_tokens_are_refused_before_any_work(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = pair
    with_a_json_of_its_own(source, out, special=True)
    with pytest.raises(SourceError, match=r"<\|turn\|>.*split_special_tokens = false"):
        quantkit.convert(source, "bnb-nf4", tmp_path / "made", set=QUICK)
    plan = quantkit.plan(source, "bnb-nf4", set=["tokenizer.split_special_tokens=false"])
    assert plan.split_special_tokens is False


def test_a_folder_whose_recipe_keeps_special_tokens_whole(demo: Path, tmp_path: Path) -> None:
    """``check`` knows nothing of that recipe: it says what to tell it."""
    out, keep = tmp_path / "out", "tokenizer.split_special_tokens=false"
    quantkit.convert(demo, "bnb-nf4", out, no_gate=True, set=[keep])
    (said,) = gate_of(out, demo)["failures"]
    assert said.startswith("tokenizer: texts with other ids")
    assert f"--set {keep}" in said
    assert quantkit.check(out, demo, set=[*QUICK, keep])["gate"]["status"] == "passed"
