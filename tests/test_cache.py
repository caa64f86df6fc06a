"""The cache on disk may be absent, damaged or unwritable; results never change."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from quantkit.cache import remembered

NUMBERS: TypeAdapter[dict[str, int]] = TypeAdapter(dict[str, int])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_second_call_with_the_same_things_is_not_made(folder: Path) -> None:
    made = []
    for _ in range(2):
        assert remembered("k", ["a"], lambda: made.append(1) or {"x": 1}, NUMBERS) == {"x": 1}
    assert len(made) == 1


def test_other_things_are_made_anew(folder: Path) -> None:
    assert remembered("k", ["a"], lambda: {"x": 1}, NUMBERS) == {"x": 1}
    assert remembered("k", ["b"], lambda: {"x": 2}, NUMBERS) == {"x": 2}


@pytest.mark.parametrize("damage", [b"", b"{", b'{"x": "one"}', b"\xff"])
def test_a_damaged_file_is_made_again(folder: Path, damage: bytes) -> None:
    remembered("k", ["a"], lambda: {"x": 1}, NUMBERS)
    next(folder.glob("*.json")).write_bytes(damage)
    assert remembered("k", ["a"], lambda: {"x": 3}, NUMBERS) == {"x": 3}


def test_off_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    assert remembered("k", ["a"], lambda: {"x": 1}, NUMBERS) == {"x": 1}
    assert list(tmp_path.iterdir()) == []
