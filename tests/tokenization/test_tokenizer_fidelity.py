"""The check finds what is wrong with a tokenizer, and calls a tie a tie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from spm_training import proto, train

from quantkit.errors import SourceError
from quantkit.tokenization import build_tokenizer_json, check_fidelity, compare, corpus, parse_model
from quantkit.tokenization.corpus import random_strings
from quantkit.tokenization.ties import Scores, all_ties

Mutation = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    data = train(
        model_type="unigram",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="nmt_nfkc",
    )
    (folder / "spiece.model").write_bytes(data)
    build_tokenizer_json(parse_model(data)).save(str(folder / "tokenizer.json"))
    return folder


def _check(folder: Path, tokenizer: Path | None = None) -> Any:
    spiece = folder / "spiece.model"
    texts = list(corpus(parse_model(spiece.read_bytes()), count=200))
    return check_fidelity(tokenizer or folder / "tokenizer.json", spiece, texts)


def test_the_faithful_one_passes(built: Path) -> None:
    report = _check(built)
    assert report.passed
    assert report.compared == report.identical + report.ties
    assert report.first == ()


def _drop_a_piece(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"][400][0] = "never found "


def _change_a_score(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"][400][1] -= 12.0


def _swap_two_ids(tokenizer: dict[str, Any]) -> None:
    vocab = tokenizer["model"]["vocab"]
    vocab[400], vocab[401] = vocab[401], vocab[400]


def _prepend_a_space(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"]["normalizers"].insert(0, {"type": "Prepend", "prepend": "\u2581"})


def _collapse_spaces(tokenizer: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    tokenizer["normalizer"]["normalizers"].insert(0, step)


def _charsmap_by_grapheme(tokenizer: dict[str, Any]) -> None:
    steps = tokenizer["normalizer"]["normalizers"]
    charsmap = next(step for step in steps if step["type"] == "Precompiled")
    tokenizer["normalizer"]["normalizers"] = [charsmap, steps[-1]]


def _nfkc_in_front(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"]["normalizers"].insert(0, {"type": "NFKC"})


def _no_byte_fallback(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["byte_fallback"] = False


def _no_split(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = None
    for entry in tokenizer["model"]["vocab"][:259]:
        entry[1] = 0.0


def _special_string_matches(tokenizer: dict[str, Any]) -> None:
    token = {"id": 2, "content": "</s>", "special": True, "single_word": False}
    tokenizer["added_tokens"] = [token | {"lstrip": False, "rstrip": False, "normalized": False}]


def _decoder_strips(tokenizer: dict[str, Any]) -> None:
    step = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    tokenizer["decoder"]["decoders"].append(step)


@pytest.mark.parametrize(
    "mutation",
    [
        _drop_a_piece,
        _change_a_score,
        _swap_two_ids,
        _prepend_a_space,
        _collapse_spaces,
        _charsmap_by_grapheme,
        _nfkc_in_front,
        _no_byte_fallback,
        _no_split,
        _special_string_matches,
        _decoder_strips,
    ],
)
def test_a_changed_tokenizer_fails(built: Path, tmp_path: Path, mutation: Mutation) -> None:
    tokenizer = json.loads((built / "tokenizer.json").read_text())
    mutation(tokenizer)
    changed = tmp_path / "tokenizer.json"
    changed.write_text(json.dumps(tokenizer))
    report = _check(built, changed)
    assert not report.passed
    assert report.different + report.decoded_otherwise > 0
    shown = str(report.first[0])
    assert "sentencepiece" in shown
    assert shown.isprintable()


def test_ids_that_end_too_early_are_shown_from_there(built: Path) -> None:
    model = built / "spiece.model"
    whole = [int(each) for each in SentencePieceProcessor(model_file=str(model)).encode("ab cd")]
    (shown,) = compare(lambda _: whole[:-1], str, model, ["ab cd"]).first
    assert shown.at == len(whole) - 1
    assert (shown.expected_ids, shown.found_ids) == (tuple(whole[-2:]), (whole[-2],))


def test_nothing_compared_is_not_passed(built: Path) -> None:
    report = check_fidelity(built / "tokenizer.json", built / "spiece.model", [])
    assert not report.passed


def test_what_is_no_tokenizer_is_refused(tmp_path: Path, built: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(SourceError, match="not a tokenizer"):
        check_fidelity(broken, built / "spiece.model", ["a"])


def test_a_model_that_sentencepiece_refuses_is_named(tmp_path: Path, built: Path) -> None:
    message = proto((built / "spiece.model").read_bytes())
    next(piece for piece in message.pieces if piece.type == 6).piece = "no byte"
    broken = tmp_path / "spiece.model"
    broken.write_bytes(message.SerializeToString())
    with pytest.raises(SourceError, match=r"not a sentencepiece model: .*byte piece"):
        check_fidelity(built / "tokenizer.json", broken, ["a"])


def _scores(**score: float) -> tuple[Scores, dict[str, int]]:
    message = proto(b"")
    message.pieces.add(piece="<unk>", type=2)
    for text, value in score.items():
        message.pieces.add(piece=text, score=value, type=1)
    scores = Scores.of(parse_model(message.SerializeToString()))
    assert scores is not None
    return scores, {piece.piece: index for index, piece in enumerate(message.pieces)}


def test_equal_sums_are_a_tie() -> None:
    scores, ids = _scores(i=-3.0, ii=-4.1, a=-5.0)
    expected, found = [ids["ii"], ids["i"], ids["a"]], [ids["i"], ids["ii"], ids["a"]]
    assert all_ties(expected, found, scores)


def test_a_worse_segmentation_is_no_tie() -> None:
    scores, ids = _scores(i=-3.0, ii=-4.1)
    assert not all_ties([ids["ii"]], [ids["i"], ids["i"]], scores)


def test_rounding_grows_with_the_text() -> None:
    """A gap of 1/256 is a difference in a sentence and a tie after 250,000."""
    scores, ids = _scores(i=-3.0, ii=-4.0, iii=-7.0 - 1 / 256, a=-5.0)
    one, other = [ids["ii"], ids["i"]], [ids["iii"]]
    assert not all_ties(one, other, scores)
    before = [ids["a"]] * 50_000
    assert np.spacing(np.float32(250_000)) == 1 / 64
    assert all_ties(before + one, before + other, scores)


@pytest.mark.parametrize(("gap", "tie"), [(0.023, True), (0.024, False)])
def test_each_piece_is_rounded_by_half_the_distance(gap: float, tie: bool) -> None:
    """After 250,000, three pieces by 1/128 each: 0.0234."""
    scores, ids = _scores(i=-3.0, ii=-4.0, iii=-7.0 - gap, a=-5.0)
    before = [ids["a"]] * 50_000
    one, other = [ids["ii"], ids["i"]], [ids["iii"]]
    assert all_ties(before + one, before + other, scores) is tie


def test_an_unknown_character_in_place_of_a_piece_is_no_tie() -> None:
    scores, ids = _scores(a=-20.0, i=12.0, iiiiii=-18.0)
    assert not all_ties([ids["<unk>"], ids["i"]], [ids["iiiiii"]], scores), "the sums are equal"


def test_a_character_of_several_bytes_counts_once() -> None:
    model = parse_model(train(byte_fallback=True))
    scores = Scores.of(model)
    assert scores is not None
    ids = {piece.text: index for index, piece in enumerate(model.pieces)}
    first, *others = (scores.score[ids[f"<0x{byte:02X}>"]] for byte in "猫".encode())
    assert first == scores.score[ids["<unk>"]]
    assert others == [0.0, 0.0]


def test_other_text_is_no_tie() -> None:
    scores, ids = _scores(a=-3.0, b=-3.0, ab=-6.0)
    assert not all_ties([ids["a"]], [ids["a"], ids["b"]], scores)
    assert not all_ties([ids["a"]], [], scores)


def test_random_strings_come_from_the_seed() -> None:
    assert list(random_strings(20, seed=4)) == list(random_strings(20, seed=4))
    assert list(random_strings(20, seed=4)) != list(random_strings(20, seed=5))
