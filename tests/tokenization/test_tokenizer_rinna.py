"""The real tokenizer and texts, where this machine has them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from quantkit.prompts import restore_newlines
from quantkit.recipe import load_recipe
from quantkit.tokenization import build_tokenizer_json, check_fidelity, make_files, read_model
from quantkit.tokenization.corpus import pieces, random_strings, written
from quantkit.tokenizer import library_tokenizer

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


def test_a_prompt_with_newlines_goes_through_the_tokenizer_and_back(built: Path) -> None:
    """docs/tokenizer.md shows this one."""
    prompt = load_recipe("rinna-3.6b-ppo-nf4").prompt
    assert prompt is not None
    said = "次の三つを訳してください。\n\n一、 dog\n二、 cat"
    form = prompt.render(said)
    assert form == (
        "ユーザー: 次の三つを訳してください。<NL><NL>一、 dog<NL>二、 cat<NL>システム: "
    )
    tokenizer = build_tokenizer_json(read_model(SPIECE))
    ids = tokenizer.encode(form).ids
    assert ids == SentencePieceProcessor(model_file=str(SPIECE)).encode(form)
    back = tokenizer.decode(ids, skip_special_tokens=False)
    assert restore_newlines(prompt, back) == f"ユーザー: {said}\nシステム: "


def test_the_perplexity_through_the_published_files_is_sentencepieces(
    mini_rinna: Path, tmp_path: Path
) -> None:
    """To the last digit, over the first windows (the ids are compared over the whole text); the
    source's own files give other ids, and so another number."""
    from transformers import AutoModelForCausalLM

    config = json.loads((mini_rinna / "tokenizer_config.json").read_text())
    make_files(mini_rinna / "spiece.model", config).write(tmp_path)
    for name in ("config.json", "spiece.model"):
        shutil.copy(mini_rinna / name, tmp_path / name)
    text = (mini_rinna / "heldout.txt").read_text(encoding="utf-8")
    raw = SentencePieceProcessor(model_file=str(mini_rinna / "spiece.model")).encode(text)
    published = library_tokenizer(tmp_path).encode(text, add_special_tokens=False)
    assert library_tokenizer(mini_rinna).encode(text, add_special_tokens=False) != raw
    assert published == raw
    model = AutoModelForCausalLM.from_pretrained(mini_rinna, dtype=torch.float32).eval()
    first = 12 * 256
    assert perplexity(model, published[:first]) == perplexity(model, raw[:first])


def perplexity(model: torch.nn.Module, ids: list[int], window: int = 256) -> float:
    """Over windows that do not overlap, all predicted tokens."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for at in range(0, len(ids) - 1, window):
            tokens = torch.tensor(ids[at : at + window])
            logits = model(tokens[None]).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum")
            total, count = total + loss.item(), count + len(tokens) - 1
    return math.exp(total / count)
