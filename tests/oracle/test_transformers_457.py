"""The tokenizer files are right on transformers 4.57 too, in an environment built here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import environments
from sentencepiece import SentencePieceProcessor

from quantkit.resources import demo_model, evaluation_text
from quantkit.tokenization import compare, corpus, make_files, read_model
from quantkit.tokenization.corpus import pieces, random_strings, written

pytestmark = pytest.mark.oracle

WANTED = ("transformers==4.57.6", "sentencepiece==0.2.1", "protobuf")

# Ids by the first way of loading, and how many texts each other way encodes otherwise.
SCRIPT = """
import json, sys
from transformers import AutoTokenizer
folder, texts, *ways = sys.argv[1:]
options = {"default": {}, "fast": {"use_fast": True}, "slow": {"use_fast": False}}
texts = json.load(open(texts))
found = {"other": {}, "default": {}, "special": {}}
for way in ways:
    tokenizer = AutoTokenizer.from_pretrained(folder, **options[way])
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    found.setdefault("ids", ids)
    found["other"][way] = sum(a != b for a, b in zip(found["ids"], ids))
    found["default"][way] = tokenizer("a")["input_ids"]
    found["special"][way] = [tokenizer.bos_token_id, tokenizer.eos_token_id,
                             tokenizer.pad_token_id, tokenizer.unk_token_id]
print(json.dumps(found))
"""

TEXTS = (
    "wagahaiwa-nekodearu.txt",
    "wikitext2-test.txt",
    "wikitext2-valid.txt",
    "jcommonsenseqa-valid-v1.3.jsonl",
    "vicuna-ja-questions.jsonl",
)


@pytest.fixture(scope="module")
def python_457(tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = environments.make(tmp_path_factory.mktemp("transformers-4.57"))
    environments.install(python, *WANTED)
    return python


@pytest.fixture(scope="module")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return published(demo_model(), tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def rinna_files(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return published(shared / "data" / "rinna-3.6b", tmp_path_factory.mktemp("rinna"))


def published(source: Path, out: Path) -> tuple[Path, Path]:
    """A source's folder, and one with the files that quantkit writes for it."""
    model = source / "spiece.model"
    (out / "spiece.model").write_bytes(model.read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text())
    make_files(model, config).write(out)
    return source, out


def encoded(python: Path, folder: Path, texts: list[str], *ways: str) -> dict[str, Any]:
    path = folder / "texts.json"
    path.write_text(json.dumps(texts))
    said = subprocess.run(
        [python, "-c", SCRIPT, folder, path, *ways], check=True, capture_output=True, text=True
    )
    return json.loads(said.stdout)


def hold_to_sentencepiece(python: Path, out: Path, texts: list[str], *ways: str) -> None:
    found = encoded(python, out, texts, *ways)
    model = out / "spiece.model"
    judge = SentencePieceProcessor(model_file=str(model))
    ids = iter(found["ids"])
    report = compare(lambda text: next(ids), judge.decode, model, texts)
    assert report.different == 0, report.first
    assert report.ties <= 5, report.first_ties
    assert report.compared == len(texts)
    special = [judge.bos_id(), judge.eos_id(), judge.pad_id(), judge.unk_id()]
    assert found["other"] == dict.fromkeys(ways, 0)
    assert found["special"] == dict.fromkeys(ways, special)


def test_the_demos_ids_are_sentencepieces(python_457: Path, demo_files: tuple[Path, Path]) -> None:
    _, out = demo_files
    texts = [
        *corpus(read_model(out / "spiece.model"), 500),
        *evaluation_text().read_text().splitlines(),
    ]
    hold_to_sentencepiece(python_457, out, texts, "default", "fast", "slow")


def bar(shared: Path, model: Path) -> Iterator[str]:
    """What the 3.6B tokenizer is held to: texts by line and whole, pieces, random strings."""
    for name in TEXTS:
        text = (shared / "data" / "text" / name).read_text(encoding="utf-8")
        yield from (*text.splitlines(keepends=True), text)
    yield from written()
    yield from pieces(read_model(model))
    yield from random_strings(100_000)


def test_rinnas_ids_are_sentencepieces(
    python_457: Path, rinna_files: tuple[Path, Path], shared: Path
) -> None:
    _, out = rinna_files
    texts = list(bar(shared, out / "spiece.model"))
    assert len(texts) > 140_000
    hold_to_sentencepiece(python_457, out, texts, "slow", "fast")


@pytest.mark.parametrize("files", ["demo_files", "rinna_files"])
def test_a_default_call_adds_what_the_sources_class_adds(
    python_457: Path, files: str, request: pytest.FixtureRequest
) -> None:
    source, out = request.getfixturevalue(files)
    theirs = encoded(python_457, _writable(source, out), ["a"], "slow")["default"]["slow"]
    ours = encoded(python_457, out, ["a"], "default", "slow")["default"]
    assert ours == {"default": theirs, "slow": theirs}


def _writable(source: Path, out: Path) -> Path:
    """The source's own tokenizer files, where the texts can be put beside them."""
    copy = out / "source"
    copy.mkdir(exist_ok=True)
    for name in ("spiece.model", "tokenizer_config.json"):
        (copy / name).write_bytes((source / name).read_bytes())
    return copy
