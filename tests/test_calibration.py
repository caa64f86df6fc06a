"""What GPTQ calibrates on: documents to windows, and the refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import quantkit
from quantkit.calibration import Calibration, described, read_calibration, refuse_overlap
from quantkit.errors import UsageError
from quantkit.evaluation import read_material
from quantkit.planning import make_plan
from quantkit.recipe import load_recipe
from quantkit.source import open_source
from quantkit.tokenizer import open_tokenizer

RECIPE = "gptq-4bit-g128"


@pytest.fixture(scope="module")
def source(demo: Path):
    return open_source(demo)


@pytest.fixture(scope="module")
def planned(source):
    return make_plan(source, load_recipe(RECIPE))


def calibrate(source, planned, path: Path | None, *overrides: str) -> Calibration:
    found = read_calibration(load_recipe(RECIPE, overrides), path, source, planned, None)
    assert found is not None
    return found


def test_the_text_that_ships_is_the_default(source, planned) -> None:
    found = calibrate(source, planned, None)
    assert found.name == "calibration.txt"
    assert found.route == "sentencepiece"
    assert len(found.windows) == min(128, found.available)
    assert {len(each) for each in found.windows} == {256}, "the model's own limit"


def test_the_text_that_ships_shares_nothing_with_the_evaluation_text(source, planned) -> None:
    recipe = load_recipe(RECIPE)
    material = read_material(source.folder, recipe, ())
    assert read_calibration(recipe, None, source, planned, material) is not None


def test_windows_are_of_the_text_in_order(source, planned, tmp_path: Path) -> None:
    text = "Once upon a time there was a small model. " * 300
    (tmp_path / "a.txt").write_text(text)
    tokenizer = open_tokenizer(source.folder)
    assert tokenizer is not None
    ids = tokenizer.encode(text)
    found = calibrate(source, planned, tmp_path / "a.txt", "calibration.length=64")
    assert found.windows == tuple(
        tuple(ids[at : at + 64]) for at in range(0, len(ids) - 63, 64)
    )  # fmt: skip


def test_a_seed_draws_and_the_draw_is_repeatable(source, planned) -> None:
    few = ("calibration.samples=4", "calibration.length=64")
    first = calibrate(source, planned, None, *few)
    assert calibrate(source, planned, None, *few).ids_sha256 == first.ids_sha256
    other = calibrate(source, planned, None, *few, "calibration.seed=1")
    assert other.ids_sha256 != first.ids_sha256
    assert len(other.windows) == 4


def test_json_lines_of_texts_and_conversations(demo: Path, source, planned, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    turns = [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}]
    path.write_text(json.dumps({"text": "plain words"}) + "\n" + json.dumps({"messages": turns}))
    with pytest.raises(UsageError, match=r"lines\.jsonl:2: a conversation, and the recipe has no"):
        calibrate(source, planned, path)
    prompt = [
        'prompt.user="ユーザー"', 'prompt.system="システム"', 'prompt.separator=": "',
        'prompt.turn_end="<NL>"', 'prompt.newline="<NL>"', "calibration.packing=apart",
    ]  # fmt: skip
    found = calibrate(source, planned, path, *prompt)
    tokenizer = open_tokenizer(demo)
    assert tokenizer is not None
    assert found.windows == (
        tuple(tokenizer.encode("plain words")),
        tuple(tokenizer.encode("ユーザー: a<NL>b<NL>システム: c")),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"text": 1}', "expected"),
        ('{"messages": []}', r"\.\.\.}, \.\.\.\]}$"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "expected"),
    ],
)
def test_bad_lines_are_named(source, planned, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        calibrate(source, planned, path)
    assert "bad.jsonl:1" in str(caught.value)


def test_joined_documents_are_told_apart_by_the_end_of_text(
    source, planned, tmp_path: Path
) -> None:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps([[5, 6, 7], [8, 9], [10, 11, 12]]))
    end = source.config["eos_token_id"]
    found = calibrate(source, planned, path, "calibration.length=4")
    assert found.route == "ids"
    assert found.windows == ((5, 6, 7, end), (8, 9, end, 10))
    apart = calibrate(source, planned, path, "calibration.packing=apart")
    assert apart.windows == ((5, 6, 7), (8, 9), (10, 11, 12))


@pytest.mark.parametrize("end", [None, -1, 999_999, [], [-1, 2]], ids=str)
def test_documents_are_joined_as_they_are_where_no_one_token_ends_them(
    source, planned, tmp_path: Path, end: object
) -> None:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps([[5, 6, 7], [8, 9]]))
    unlike = replace(source, config={**source.config, "eos_token_id": end})
    assert calibrate(unlike, planned, path).windows == ((5, 6, 7, 8, 9),)


def test_of_several_ends_of_text_the_first_tells_documents_apart(
    source, planned, tmp_path: Path
) -> None:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps([[5, 6, 7], [8, 9]]))
    unlike = replace(source, config={**source.config, "eos_token_id": [2, 3]})
    assert calibrate(unlike, planned, path).windows == ((5, 6, 7, 2, 8, 9, 2),)


def test_a_byte_order_mark_and_blank_lines_are_no_text(source, planned, tmp_path: Path) -> None:
    line = json.dumps({"text": "Once upon a time there was a small model."})
    (tmp_path / "plain.jsonl").write_text(f"{line}\n{line}\n")
    (tmp_path / "odd.jsonl").write_bytes(f"\ufeff{line}\r\n\r\n \r\n{line}\r\n".encode())
    apart = "calibration.packing=apart"
    plain = calibrate(source, planned, tmp_path / "plain.jsonl", apart)
    assert len(plain.windows) == 2
    assert calibrate(source, planned, tmp_path / "odd.jsonl", apart).windows == plain.windows


def test_too_little_to_calibrate_on_is_told_of(source, planned, tmp_path: Path) -> None:
    widest = max(each.shape[1] for each in planned.tensors if each.shape)
    windows, ids = [[1, 2] * 16] * (widest // 32), tmp_path / "few.json"
    ids.write_text(json.dumps(windows))
    enough = calibrate(source, planned, ids, "calibration.packing=apart")
    said = described(enough, planned)
    assert (enough.tokens, said) == (widest, f"calibrating on {widest:,} tokens of few.json")
    ids.write_text(json.dumps(windows[1:]))
    few = calibrate(source, planned, ids, "calibration.packing=apart")
    assert f"few for modules of {widest:,} columns" in described(few, planned)


def test_ids_beyond_the_vocabulary(source, planned, tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps([[5, 999_999]]))
    with pytest.raises(UsageError, match="999999"):
        calibrate(source, planned, path)


def test_overlap_with_the_evaluation_text_is_refused(demo: Path, tmp_path: Path) -> None:
    held_out = (demo / "heldout.txt").read_text()
    mine = tmp_path / "mine.txt"
    mine.write_text("Something else first. " * 40 + held_out[3000:6000])
    with pytest.raises(UsageError, match="shares 32 tokens in a row"):
        quantkit.convert(
            demo, RECIPE, tmp_path / "out", text=demo / "heldout.txt", calibration=mine
        )
    assert not list(tmp_path.glob("out*"))


def test_short_overlaps_and_rules_are_not_overlap() -> None:
    windows = (tuple(range(100, 164)), (7,) * 64)
    calibration = Calibration("x", "", "ids", windows, 2)
    refuse_overlap(calibration, [[*range(100, 131)], [7] * 200])
    with pytest.raises(UsageError, match="its window 0"):
        refuse_overlap(calibration, [[1, 2, 3, *range(100, 164)]])


def test_a_format_that_calibrates_nothing_takes_no_calibration(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="calibrates nothing"):
        quantkit.convert(demo, "bnb-nf4", tmp_path / "out", calibration=demo / "heldout.txt")


def test_hub_data_by_a_bad_name(source, planned) -> None:
    with pytest.raises(UsageError, match="expected hub:OWNER/NAME/path"):
        calibrate(source, planned, None, 'calibration.data="hub:owner/name"')


def test_hub_data_from_the_local_cache(
    source, planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, offline, on a cache laid out as it lays it out."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "datasets--owner--texts"
    inside = repo / "snapshots" / commit / "data"
    inside.mkdir(parents=True)
    (inside / "train.txt").write_text("Once upon a time there was a small model. " * 50)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = calibrate(source, planned, None, 'calibration.data="hub:owner/texts/data/train.txt"')
    assert found.name == "train.txt"
    with pytest.raises(UsageError, match="the Hub does not give it"):
        calibrate(source, planned, None, 'calibration.data="hub:owner/texts/data/test.txt"')
