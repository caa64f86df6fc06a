"""A source that somebody writes to meanwhile: seen, whatever was written, and nothing is saved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tiny import write_source

import quantkit
from quantkit.errors import CheckpointError, SourceError
from quantkit.source import open_source
from quantkit.types import Event


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_source(tmp_path_factory.mktemp("changing") / "source", shards=3)
    (folder / "LICENSE").write_text("Do what you like.")
    return folder


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "source")


def flip(path: Path) -> None:
    """One bit, in place: the size stays."""
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def replace(path: Path) -> None:
    """Another file of the same bytes under its name."""
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" ")


@pytest.mark.parametrize("change", [flip, replace, grow, Path.unlink])
@pytest.mark.parametrize(
    "name", ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "config.json",
             "LICENSE"],
)  # fmt: skip
@pytest.mark.parametrize("stage", ["plan", "convert", "save"])
def test_a_change_at_any_stage_saves_nothing(
    source: Path, tmp_path: Path, name: str, change: object, stage: str
) -> None:
    def interfere(event: Event) -> None:
        if event.stage == stage and source not in done:
            done.append(source)
            change(source / name)  # type: ignore[operator]

    done: list[Path] = []
    with pytest.raises((CheckpointError, SourceError), match=f"{name}|changed|ended") as caught:
        quantkit.convert(source, "bnb-nf4", tmp_path / "out", no_gate=True, listener=interfere)
    assert done, "the stage never came"
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_file_that_is_added_is_seen(source: Path) -> None:
    opened = open_source(source)
    opened.check_unchanged()
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match=r"tokenizer\.json changed"):
        opened.check_unchanged()
