"""Plain ``AutoTokenizer.from_pretrained`` on a folder with the written files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import quantkit
from quantkit.errors import SourceError
from quantkit.tokenization import compare, corpus, make_files, read_model

DEMO = Path(quantkit.__file__).parent / "data" / "demo-model"
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for name in ("config.json", "spiece.model"):
        shutil.copy(DEMO / name, folder / name)
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    make_files(DEMO / "spiece.model", config).write(folder)
    return folder


def _load(folder: Path, **options: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **options)


@pytest.mark.parametrize("options", [{}, {"use_fast": False}, {"use_fast": True}])
def test_any_way_of_loading_gives_sentencepieces_ids(
    folder: Path, options: dict[str, bool]
) -> None:
    library = _load(folder, **options)
    spiece = folder / "spiece.model"
    report = compare(
        lambda text: library.encode(text, add_special_tokens=False),
        library.decode,
        spiece,
        corpus(read_model(spiece), count=500),
    )
    assert report.passed, report.first


def test_special_ids_are_the_sources(folder: Path) -> None:
    library = _load(folder)
    pieces = [piece.text for piece in read_model(folder / "spiece.model").pieces]
    source = json.loads((DEMO / "tokenizer_config.json").read_text())
    for name in NAMES:
        assert getattr(library, f"{name}_id") == pieces.index(source[name])
    assert len(library) == len(pieces)


def test_the_default_call_adds_what_t5_adds(folder: Path) -> None:
    library = _load(folder)
    plain = library.encode("cat", add_special_tokens=False)
    assert library("cat").input_ids == [*plain, library.eos_token_id]
    assert list(library("cat")) == ["input_ids", "attention_mask"]
    other = library.encode("dog", add_special_tokens=False)
    end = library.eos_token_id
    assert library("cat", "dog").input_ids == [*plain, end, *other, end]


def test_special_strings_in_text_stay_text(folder: Path) -> None:
    library = _load(folder)
    ids = library.encode("a</s>[UNK]<s>[PAD]", add_special_tokens=False)
    assert not set(ids) & set(library.all_special_ids)
    assert library.decode(ids) == "a</s>[UNK]<s>[PAD]"


def test_special_tokens_can_be_skipped_in_decoding(folder: Path) -> None:
    library = _load(folder)
    ids = library("a cat").input_ids
    assert library.decode(ids, skip_special_tokens=True) == "a cat"


def test_saved_again_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    library = _load(folder)
    library.save_pretrained(tmp_path)
    again = _load(tmp_path)
    text = "  two  spaces</s> e\u0301 ｶﾞ "
    assert again(text).input_ids == library(text).input_ids


def test_a_llama_config_adds_bos(folder: Path, tmp_path: Path) -> None:
    files = make_files(folder / "spiece.model", {"tokenizer_class": "LlamaTokenizer"})
    assert files.adds == "<s> text"
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    files.write(tmp_path)
    library = _load(tmp_path)
    assert library("cat").input_ids[0] == library.bos_token_id


def test_unknown_class_or_token_is_refused() -> None:
    with pytest.raises(SourceError, match="XLMRobertaTokenizer"):
        make_files(DEMO / "spiece.model", {"tokenizer_class": "XLMRobertaTokenizer"})
    with pytest.raises(SourceError, match="pad_token '<nowhere>'"):
        make_files(DEMO / "spiece.model", {"pad_token": {"content": "<nowhere>"}})


def test_the_files_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    """Sets of strings are walked in another order in every process; the file must not show it."""
    code = (
        "import json, sys; from pathlib import Path; from quantkit.tokenization import make_files; "
        "p = Path(sys.argv[1]); "
        "c = json.loads((p / 'tokenizer_config.json').read_text()); "
        "sys.stdout.write(make_files(p / 'spiece.model', c).tokenizer_json)"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", code, DEMO], check=True, capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert texts[0] == texts[1]
