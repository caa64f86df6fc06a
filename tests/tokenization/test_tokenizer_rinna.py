"""The real tokenizer and texts, where this machine has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.tokenization import build_tokenizer_json, check_fidelity, read_model
from quantkit.tokenization.corpus import pieces, random_strings, written

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SPIECE = SHARED / "rinna-3.6b" / "spiece.model"
TEXTS = (
    "wagahaiwa-nekodearu.txt",
    "wikitext2-test.txt",
    "wikitext2-valid.txt",
    "jcommonsenseqa-valid-v1.3.jsonl",
    "vicuna-ja-questions.jsonl",
)

pytestmark = pytest.mark.skipif(not SPIECE.is_file(), reason=f"{SPIECE} is not here")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rinna") / "tokenizer.json"
    build_tokenizer_json(read_model(SPIECE)).save(str(path))
    return path


def test_pieces_and_stumbling_blocks(built: Path) -> None:
    report = check_fidelity(built, SPIECE, [*written(), *pieces(read_model(SPIECE))])
    assert report.different == report.decoded_otherwise == report.ties == 0, report.first


def test_a_hundred_thousand_random_strings(built: Path) -> None:
    report = check_fidelity(built, SPIECE, random_strings(100_000))
    assert report.passed, report.first
    assert report.ties <= 5, report.first_ties


@pytest.mark.parametrize("name", TEXTS)
def test_texts_by_line_and_whole(built: Path, name: str) -> None:
    path = SHARED / "text" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    text = path.read_text(encoding="utf-8")
    report = check_fidelity(built, SPIECE, [*text.splitlines(keepends=True), text])
    assert report.passed, report.first
    assert report.ties <= 5, report.first_ties


def test_the_examples_of_the_card(built: Path) -> None:
    tokenizer = build_tokenizer_json(read_model(SPIECE))
    assert tokenizer.encode("吾輩は猫である").tokens == ["吾", "輩", "は", "猫", "である"]
    text = "გამარჯობა 吾輩は  猫である "
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert read_model(SPIECE).unk_id not in ids
