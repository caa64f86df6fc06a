"""What a folder's tokenizer files do that ordinary texts do not show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from quantkit.gate.around import other_models
from quantkit.gate.report import Level
from quantkit.gate.tokens import TokenizerSettings, check_tokenizer_level


@pytest.fixture
def by_bytes(tmp_path: Path) -> tuple[Path, Path]:
    """Byte-level BPE, which has no sentencepiece model, twice."""
    source = tmp_path / "source"
    source.mkdir()
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"])
    made.train_from_iterator(["hello world 1234 12 99 100"] * 50, trainer)
    made.save(str(source / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return source, shutil.copytree(source, tmp_path / "out")


def level(pair: tuple[Path, Path]) -> Level:
    return check_tokenizer_level(pair[1], pair[0], ["hello sea"], {}, TokenizerSettings(True))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_sentencepiece_model_beside_a_right_tokenizer(
    tokenizer_pair: tuple[Path, Path],
) -> None:
    """Who asks for ``use_fast=False`` in transformers 4, as rinna's card does, gets its ids."""
    source, out = tokenizer_pair
    raw = (out / "spiece.model").read_bytes()
    (source / "tokenizer.model").write_bytes(raw + b"\0")
    shutil.copy(source / "tokenizer.model", out)
    assert list(other_models(out, source / "spiece.model")) == [], "as the source has it"
    shutil.copy(out / "spiece.model", out / "tokenizer.model")
    assert len(list(other_models(out, source / "spiece.model"))) == 1
    (source / "tokenizer.model").unlink()
    assert list(other_models(out, source / "spiece.model")) == [], "the same by its other name"
    (out / "tokenizer.model").write_bytes(raw + b"\0")
    (said,) = map(str, level(tokenizer_pair).failures)
    assert said == "tokenizer: tokenizer.model: another model, expected the source's spiece.model"


@pytest.mark.parametrize("kind", ["tokenizer_pair", "by_bytes"])
def test_what_a_call_returns_besides(kind: str, request: pytest.FixtureRequest) -> None:
    """``model.generate(**tokenizer(text))`` stops at token types."""
    pair = request.getfixturevalue(kind)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    edit(pair[1] / "tokenizer_config.json", model_input_names=names)
    (said,) = map(str, level(pair).failures)
    assert "a default call returns: token_type_ids, expected attention_mask, input_ids" in said
    edit(pair[0] / "tokenizer_config.json", model_input_names=names)
    if kind == "by_bytes":
        assert level(pair).failures == (), "the source's does so too"


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "1234"}, "content": "9"}},
    ],
)
def test_texts_that_part_tokenizers_without_a_model(
    by_bytes: tuple[Path, Path], changes: dict[str, Any]
) -> None:
    edit(by_bytes[1] / "tokenizer.json", **changes)
    assert any("texts with other ids" in str(each) for each in level(by_bytes).failures)
