"""Every option of sentencepiece's trainer: the same ids, or a refusal that names it."""

from __future__ import annotations

import os
import random
from itertools import product
from pathlib import Path

import pytest
from spm_training import LINES, RULES, proto, report_of, train
from tokenizers import Tokenizer

from quantkit.errors import SourceError
from quantkit.prompts import restore_newlines
from quantkit.recipe import load_recipe
from quantkit.tokenization import build_tokenizer_json, limits, parse_model
from quantkit.tokenization.corpus import piece_strings, random_strings, written

OWN = ["<sep>", "ffi", "Ａ", "ｶﾞ", "<|x|>"]
NEVER_MATCHED = ["<ctl>"]


@pytest.mark.parametrize(
    ("kind", "fallback", "dummy", "trim"),
    list(product(["unigram", "bpe", "char"], [True, False], [True, False], [True, False])),
)
def test_spaces_and_fallback(
    tmp_path: Path, kind: str, fallback: bool, dummy: bool, trim: bool
) -> None:
    data = train(
        model_type=kind,
        byte_fallback=fallback,
        add_dummy_prefix=dummy,
        remove_extra_whitespaces=trim,
        normalization_rule_name="identity",
        control_symbols=NEVER_MATCHED,
    )
    report = report_of(data, tmp_path)
    assert report.passed, report.first


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_normalization_rules(tmp_path: Path, kind: str, rule: str) -> None:
    data = train(model_type=kind, byte_fallback=True, normalization_rule_name=rule)
    report = report_of(data, tmp_path, count=1500)
    assert report.passed, report.first


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("own", [[], OWN])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_rules_of_ones_own(tmp_path: Path, kind: str, own: list[str], trim: bool) -> None:
    rules = tmp_path / "rules.tsv"
    rules.write_text(RULES)
    data = train(
        model_type=kind,
        byte_fallback=True,
        normalization_rule_tsv=str(rules),
        user_defined_symbols=own,
        remove_extra_whitespaces=trim,
    )
    report = report_of(data, tmp_path)
    assert report.passed, report.first


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
@pytest.mark.parametrize("fallback", [True, False])
def test_user_defined_pieces(tmp_path: Path, kind: str, rule: str, fallback: bool) -> None:
    data = train(
        model_type=kind,
        byte_fallback=fallback,
        normalization_rule_name=rule,
        user_defined_symbols=OWN,
        control_symbols=NEVER_MATCHED,
    )
    report = report_of(data, tmp_path)
    assert report.passed, report.first


@pytest.mark.parametrize("rule", ["nfkc", "identity"])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("trim", [True, False])
def test_whitespace_as_suffix(tmp_path: Path, kind: str, rule: str, trim: bool) -> None:
    data = train(
        model_type=kind,
        normalization_rule_name=rule,
        treat_whitespace_as_suffix=True,
        remove_extra_whitespaces=trim,
    )
    report = report_of(data, tmp_path)
    assert report.passed, report.first


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_options_of_the_bilingual_4b(tmp_path: Path, kind: str, rule: str) -> None:
    """Whitespace is a token of its own; newlines and tabs are recognized."""
    data = train(
        model_type=kind,
        byte_fallback=True,
        normalization_rule_name=rule,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n", "\t", "\u2581"],
    )
    report = report_of(data, tmp_path)
    assert report.passed, report.first
    tokenizer = build_tokenizer_json(parse_model(data))
    assert tokenizer.encode("\n\t  ").tokens == ["\n", "\t", "\u2581", "\u2581"]


def test_65536_pieces(tmp_path: Path) -> None:
    """As many as the bilingual 4B has, with its options, and text made to hold them."""
    chooser = random.Random(0)
    letters = [*map(chr, range(ord("あ"), ord("そ"))), *"日月火水木金土山川田", *"abcdefghij"]
    words = ["".join(chooser.choices(letters, k=chooser.randint(4, 7))) for _ in range(130_000)]
    lines = [" ".join(words[at : at + 20]) for at in range(0, len(words), 20)]
    data = train(
        lines=[*LINES, *lines, *lines],
        model_type="bpe",
        vocab_size=65536 - 256,
        hard_vocab_limit=True,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n", "\t", "\u2581"],
    )
    model = parse_model(data)
    assert len(model.pieces) == 65536
    assert not any("\u2581" in piece.text for piece in model.pieces if len(piece.text) > 1)
    texts = [*written(), *piece_strings(model, 500), *random_strings(200), *lines[:20]]
    report = report_of(data, tmp_path, texts=texts)
    assert report.passed, report.first
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("\n\t  \n").tokens == ["\n", "\t", "\u2581", "\u2581", "\n"]
    prompt = load_recipe("rinna-4b-sft-nf4").prompt
    assert prompt is not None
    form = prompt.render("次の三つを訳してください。\n\n一、\tdog\n二、  cat")
    assert form.startswith("ユーザー: 次の三つを")
    assert form.endswith("  cat\nシステム: ")
    back = tokenizer.decode(tokenizer.encode(form).ids, skip_special_tokens=False)
    assert restore_newlines(prompt, back) == form


# Every option with every other, the slowest to prepare outermost.
CROSS = list(
    product(
        ["nmt_nfkc", "nfkc", "identity", "own"],  # normalization rules
        [False, True],  # user-defined and control pieces
        ["unigram", "bpe", "char"],
        [True, False],  # byte fallback
        [True, False],  # dummy prefix
        [True, False],  # extra whitespace removed
    )
)
# Few by default, as the tests above take the options by twos and threes; all of them take
# minutes: QUANTKIT_CROSS_STEP=1.
STEP = int(os.environ.get("QUANTKIT_CROSS_STEP", "67"))


@pytest.mark.parametrize("options", CROSS[::STEP])
def test_options_together(tmp_path: Path, options: tuple[str | bool, ...]) -> None:
    rule, own, kind, fallback, dummy, trim = options
    rules = tmp_path / "rules.tsv"
    rules.write_text(RULES)
    named = {"normalization_rule_tsv": str(rules)} if rule == "own" else {}
    data = train(
        model_type=kind,
        byte_fallback=fallback,
        add_dummy_prefix=dummy,
        remove_extra_whitespaces=trim,
        **(named or {"normalization_rule_name": rule}),
        **({"user_defined_symbols": OWN, "control_symbols": NEVER_MATCHED} if own else {}),
    )
    report = report_of(data, tmp_path)
    assert report.passed, report.first


@pytest.mark.parametrize(
    ("own", "texts"),
    [
        ("\t", ["a\u200bb", "\u200ba\tb", "a\t\u200b\u3000b"]),
        ("\uff9e", ["a\uff9eb", "\uff9e\u3099", "\u304b\uff9e\uff9e"]),
        ("\u2581\u2581", ["a\u2581 b", "a\u2581\tb", "a\u2581\u2581b", "a \u2581 b"]),
    ],
)
def test_user_defined_pieces_that_rules_make_like_others(
    tmp_path: Path, own: str, texts: list[str]
) -> None:
    """A mark stands before what joins, too: there it must not be taken for such a piece."""
    data = train(model_type="char", normalization_rule_name="nmt_nfkc", user_defined_symbols=[own])
    report = report_of(data, tmp_path, texts=texts)
    assert report.passed, report.first


@pytest.mark.parametrize("suffix", [False, True])
def test_the_space_that_is_added_is_no_part_of_a_user_defined_piece(
    tmp_path: Path, suffix: bool
) -> None:
    data = train(
        model_type="char",
        normalization_rule_name="nmt_nfkc_cf",
        user_defined_symbols=["The\u2581" if suffix else "\u2581The"],
        treat_whitespace_as_suffix=suffix,
        remove_extra_whitespaces=False,
    )
    texts = ["The", "The sea", "a The", "a\u2581The", "\u2581The\u2581", " The ", " ", ""]
    report = report_of(data, tmp_path, texts=texts)
    assert report.passed, report.first


def test_runs_of_spaces_as_pieces(tmp_path: Path) -> None:
    data = train(
        model_type="unigram",
        allow_whitespace_only_pieces=True,
        split_by_whitespace=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
    )
    assert report_of(data, tmp_path).passed


def test_unused_pieces_of_a_unigram_model(tmp_path: Path) -> None:
    message = proto(train(model_type="unigram", byte_fallback=True))
    for piece in list(message.pieces)[300::7]:
        piece.type = 5
    assert report_of(message.SerializeToString(), tmp_path).passed


def test_scores_above_zero(tmp_path: Path) -> None:
    message = proto(train(model_type="unigram", user_defined_symbols=["the", "hewa", "fo"]))
    for piece in message.pieces:
        piece.score += 6 if piece.type == 1 else 0
    assert report_of(message.SerializeToString(), tmp_path).passed


def test_control_pieces_that_other_pieces_spell(tmp_path: Path) -> None:
    """No split can part them, so their score is what keeps them from matching."""
    message = proto(train(model_type="unigram", byte_fallback=True))
    for text in ("<s", "s>", "</", "/s", "<", ">", "/", "s", "</s"):
        if text not in {piece.piece for piece in message.pieces}:
            message.pieces.add(piece=text, score=-9.0, type=1)
    report = report_of(message.SerializeToString(), tmp_path)
    assert report.passed, report.first


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model_type": "word"}, "model_type=word"),
        ({"control_symbols": ["x"]}, "control piece of one character"),
        ({"user_defined_symbols": ["a  b"]}, "user_defined_symbols with two spaces"),
    ],
)
def test_refusals_from_training(options: dict[str, object], named: str) -> None:
    with pytest.raises(SourceError, match=named):
        build_tokenizer_json(parse_model(train(**options)))


def test_refusals_from_a_changed_model() -> None:
    message = proto(train(model_type="bpe"))
    message.normalizer_spec.escape_whitespaces = False
    with pytest.raises(SourceError, match="escape_whitespaces"):
        build_tokenizer_json(parse_model(message.SerializeToString()))

    message = proto(train(model_type="bpe"))
    message.denormalizer_spec.precompiled_charsmap = b"x"
    with pytest.raises(SourceError, match="denormalizer"):
        build_tokenizer_json(parse_model(message.SerializeToString()))

    message = proto(train(model_type="bpe"))
    message.pieces[-1].type = 5
    with pytest.raises(SourceError, match="unused pieces"):
        build_tokenizer_json(parse_model(message.SerializeToString()))

    message = proto(train(model_type="bpe"))
    next(piece for piece in message.pieces if piece.piece == "e").piece = "\u4e00"
    with pytest.raises(SourceError, match="no piece"):
        build_tokenizer_json(parse_model(message.SerializeToString()))

    message = proto(train(model_type="bpe"))
    merged = [piece for piece in message.pieces if piece.type == 1 and len(piece.piece) > 1]
    merged[0].score = merged[1].score
    with pytest.raises(SourceError, match="equal score"):
        build_tokenizer_json(parse_model(message.SerializeToString()))


def test_limits_are_named() -> None:
    assert limits(parse_model(train(model_type="unigram"))) == ()
    message = proto(train(model_type="unigram"))
    next(piece for piece in message.pieces if piece.piece == "e").piece = "\u4e00"
    assert "no piece themselves" in limits(parse_model(message.SerializeToString()))[0]
    suffix = train(treat_whitespace_as_suffix=True, normalization_rule_name="nmt_nfkc")
    assert "deleted" in limits(parse_model(suffix))[0]
