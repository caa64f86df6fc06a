"""The tokenizer files are right on transformers 4.57 too, in an environment built here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from quantkit.resources import demo_model, evaluation_text
from quantkit.tokenization import corpus, make_files, read_model

pytestmark = pytest.mark.oracle

WANTED = ("transformers==4.57.6", "sentencepiece==0.2.1", "protobuf")

SCRIPT = """
import json, sys
from transformers import AutoTokenizer
folder, texts, option = sys.argv[1:4]
options = {} if option == "default" else {"use_fast": option == "fast"}
tokenizer = AutoTokenizer.from_pretrained(folder, **options)
texts = json.load(open(texts))
print(json.dumps({
    "ids": [tokenizer.encode(text, add_special_tokens=False) for text in texts],
    "default": tokenizer("a")["input_ids"],
    "special": [tokenizer.bos_token_id, tokenizer.eos_token_id,
                tokenizer.pad_token_id, tokenizer.unk_token_id],
}))
"""


@pytest.fixture(scope="module")
def python_457(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformers-4.57")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *WANTED], check=True)
    return python


@pytest.fixture(scope="module", params=["demo", "rinna"])
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A source's folder, and one with the files that quantkit writes for it."""
    if request.param == "demo":
        source = demo_model()
    else:
        source = request.getfixturevalue("shared") / "data" / "rinna-3.6b"
    out = tmp_path_factory.mktemp(request.param)
    model = source / "spiece.model"
    (out / "spiece.model").write_bytes(model.read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text())
    make_files(model, config).write(out)
    return source, out


def ids_of(python: Path, folder: Path, texts: list[str], option: str) -> dict[str, list]:
    path = folder / "texts.json"
    path.write_text(json.dumps(texts))
    said = subprocess.run(
        [python, "-c", SCRIPT, folder, path, option], check=True, capture_output=True, text=True
    )
    return json.loads(said.stdout)


@pytest.mark.parametrize("option", ["default", "fast", "slow"])
def test_every_id_is_sentencepieces(
    python_457: Path, published: tuple[Path, Path], option: str
) -> None:
    _, out = published
    model = out / "spiece.model"
    texts = [*corpus(read_model(model), 500), *evaluation_text().read_text().splitlines()]
    judge = SentencePieceProcessor(model_file=str(model))
    found = ids_of(python_457, out, texts, option)
    different = [
        text for text, ids in zip(texts, found["ids"], strict=True) if ids != judge.encode(text)
    ]
    assert different == []
    assert found["special"] == [judge.bos_id(), judge.eos_id(), judge.pad_id(), judge.unk_id()]


def test_a_default_call_adds_what_the_sources_class_adds(
    python_457: Path, published: tuple[Path, Path]
) -> None:
    source, out = published
    theirs = ids_of(python_457, _writable(source, out), ["a"], "slow")["default"]
    assert ids_of(python_457, out, ["a"], "default")["default"] == theirs


def _writable(source: Path, out: Path) -> Path:
    """The source's own tokenizer files, where the texts can be put beside them."""
    copy = out / "source"
    copy.mkdir(exist_ok=True)
    for name in ("spiece.model", "tokenizer_config.json"):
        (copy / name).write_bytes((source / name).read_bytes())
    return copy
