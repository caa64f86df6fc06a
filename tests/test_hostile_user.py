"""What a hostile user found, kept found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import write_source

import quantkit
from quantkit.errors import SourceError, UnlistedError, UsageError
from quantkit.inspection import verify


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("hostile") / "source")


@pytest.fixture(scope="module")
def saved(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile") / "out"
    quantkit.convert(source, "rinna-4b-sft-nf4", out, no_gate=True, set=["source.container=auto"])
    return out


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def edited(source: Path, folder: Path, **config: object) -> Path:
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_a_claim_that_nothing_proves_is_not_on_the_card(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert "base_model" not in card
    assert "rinna/" not in card


def test_an_output_of_an_unlisted_source_is_not_verified(saved: Path) -> None:
    assert verify(saved)["status"] == "unlisted"
    with pytest.raises(UnlistedError):
        verify(saved, require_verified=True)


@pytest.mark.parametrize(
    "manifest",
    ['{"schema": 1}', '{"schema": 1, "output": {"files": [{}]}}', '{"schema": 1, "output": 3}'],
)
def test_a_damaged_manifest_is_an_error_in_words(copy: Path, manifest: str) -> None:
    (copy / "quantkit-manifest.json").write_text(manifest)
    with pytest.raises(SourceError, match="not a whole manifest"):
        verify(copy)


def test_a_folder_slipped_into_an_output_is_seen(copy: Path) -> None:
    (copy / "sub").mkdir()
    with pytest.raises(quantkit.QuantkitError, match="sub is no file of the manifest"):
        verify(copy)


@pytest.mark.parametrize("ids", ["[[1, 99999]]", "[[1, 95, 96]]"])
def test_ids_beyond_the_vocabulary_are_refused(source: Path, tmp_path: Path, ids: str) -> None:
    text = tmp_path / "ids.json"
    text.write_text(ids)
    with pytest.raises(UsageError, match="vocab_size"):
        quantkit.convert(source, "fp16", tmp_path / "out", text=text)


@pytest.mark.parametrize("ids", ["[[1, 18446744073709551616]]", "[" * 100_000])
def test_ids_that_are_none_are_refused(source: Path, tmp_path: Path, ids: str) -> None:
    text = tmp_path / "ids.json"
    text.write_text(ids)
    with pytest.raises(UsageError):
        quantkit.convert(source, "fp16", tmp_path / "out", text=text)


def test_a_text_that_cannot_be_encoded_is_refused(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words")
    with pytest.raises(UsageError, match="no tokenizer"):
        quantkit.convert(source, "fp16", tmp_path / "out", text=text)


def test_a_recipe_that_quantizes_nothing_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no module would be quantized"):
        quantkit.plan(source, "bnb-nf4", set=['method.ignore=[".*"]'])


@pytest.mark.parametrize("config", [{"layer_norm_eps": float("nan")}, {"x": "\ud800"}])
def test_a_config_that_is_not_json_is_refused(
    source: Path, tmp_path: Path, config: dict[str, object]
) -> None:
    folder = edited(source, tmp_path / "source", **config)
    with pytest.raises(SourceError, match="cannot be read as JSON"):
        quantkit.plan(folder, "bnb-nf4")


def test_pointers_to_foreign_code_are_not_carried_on(source: Path, tmp_path: Path) -> None:
    folder = edited(source, tmp_path / "source", auto_map={"AutoModel": "evil.Model"})
    assert "auto_map" not in quantkit.plan(folder, "bnb-nf4").config


def test_float64_weights_are_refused(source: Path, tmp_path: Path) -> None:
    folder = write_source(tmp_path / "source", "llama", torch.float64)
    with pytest.raises(SourceError, match="float64"):
        quantkit.plan(folder, "bnb-nf4", set=["method.dtype=float16"])


def test_an_unknown_device_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gpu"):
        quantkit.convert(source, "fp16", tmp_path / "out", device="gpu")  # type: ignore[arg-type]
