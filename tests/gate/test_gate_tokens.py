"""Nothing is measured on ids that the tokenizer level did not prove; the report names whose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Converted

import quantkit

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
