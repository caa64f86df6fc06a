"""The cache on disk may be absent, damaged or unwritable; results never change."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from tiny import write_source

from quantkit.cache import recall, remembered
from quantkit.resources import demo_model

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


def sealed(path: Path, value: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + value).digest() + value


@pytest.mark.parametrize("damage", [b"", b"{", b'{"x": "one"}', b"\xff"])
def test_a_damaged_file_is_made_again(folder: Path, damage: bytes) -> None:
    for made in ("as it is", "whole"):
        remembered("k", [made], lambda: {"x": 1}, NUMBERS)
        (path,) = folder.iterdir()
        path.write_bytes(sealed(path, damage) if made == "whole" else damage)
        assert remembered("k", [made], lambda: {"x": 3}, NUMBERS) == {"x": 3}
        path.unlink()


def test_no_bit_of_a_file_may_be_another(folder: Path) -> None:
    """Also where it then says something else that it might have said."""
    remembered("k", ["a"], lambda: {"x": 1}, NUMBERS)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for at in range(len(whole) * 8):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(data)
        assert recall("k", ["a"], NUMBERS) is None, at
    path.write_bytes(whole)
    assert recall("k", ["a"], NUMBERS) == {"x": 1}


def test_a_file_in_the_place_of_another_is_made_again(folder: Path) -> None:
    remembered("k", ["a"], lambda: {"x": 1}, NUMBERS)
    (path,) = folder.iterdir()
    remembered("k", ["b"], lambda: {"x": 2}, NUMBERS)
    (other,) = set(folder.iterdir()) - {path}
    path.replace(other)
    assert remembered("k", ["b"], lambda: {"x": 3}, NUMBERS) == {"x": 3}


def test_what_another_may_have_written_is_made_again(folder: Path) -> None:
    remembered("k", ["a"], lambda: {"x": 1}, NUMBERS)
    (path,) = folder.iterdir()
    path.write_bytes(sealed(path, b'{"x": 2}'))
    assert remembered("k", ["a"], lambda: {"x": 3}, NUMBERS) == {"x": 2}, "this user's own"
    path.chmod(0o666)
    assert remembered("k", ["a"], lambda: {"x": 3}, NUMBERS) == {"x": 3}
    path.unlink()
    os.mkfifo(path)
    assert remembered("k", ["a"], lambda: {"x": 4}, NUMBERS) == {"x": 4}, "and it does not wait"


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    """Whoever may write to the folder could lead it to a file of this user's with any text."""
    remembered("k", ["a"], lambda: {"x": 1}, NUMBERS)
    (path,) = folder.iterdir()
    downloaded = path.rename(tmp_path / "README.md")
    path.symlink_to(downloaded)
    assert remembered("k", ["a"], lambda: {"x": 3}, NUMBERS) == {"x": 3}
    assert not path.is_symlink(), "and what was made is kept in its place"


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_who_is_stopped_while_writing_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def broken(_: Path, __: Path) -> None:
        raise stop

    monkeypatch.setattr(Path, "replace", broken)
    with suppress(KeyboardInterrupt):
        assert remembered("k", ["a"], lambda: {"x": 1}, NUMBERS) == {"x": 1}
    assert list(folder.iterdir()) == []


def test_an_interrupt_after_the_writing_is_not_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def interrupted(path: Path, target: Path) -> None:
        replace(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remembered("k", ["a"], lambda: {"x": 1}, NUMBERS)
    assert remembered("k", ["a"], lambda: {"x": 2}, NUMBERS) == {"x": 1}


def test_what_nothing_asks_for_goes_after_90_days(folder: Path) -> None:
    for each in "ab":
        remembered("k", [each], lambda: {"x": 1}, NUMBERS)
    (folder / "quantkit-of_1_killed.part").touch()
    (folder / "quantkit-of_1_that_runs.part").touch()
    others = [folder / "notes.bin", folder / "tmpabc", folder / f"dump-{'0' * 64}.bin.old"]
    for path in others:
        path.touch()
    for path in folder.iterdir():
        if "runs" not in path.name:
            os.utime(path, (time.time() - 91 * 86400,) * 2)
    assert recall("k", ["a"], NUMBERS) == {"x": 1}  # asked for: it stays
    remembered("k", ["c"], lambda: {"x": 1}, NUMBERS)
    assert recall("k", ["a"], NUMBERS) == recall("k", ["c"], NUMBERS) == {"x": 1}
    assert recall("k", ["b"], NUMBERS) is None
    left = {path.name for path in folder.iterdir() if not path.name.startswith("k-")}
    assert left == {"quantkit-of_1_that_runs.part", *(path.name for path in others)}


def test_off_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    assert remembered("k", ["a"], lambda: {"x": 1}, NUMBERS) == {"x": 1}
    assert list(tmp_path.iterdir()) == []


#: Converts, and says which of the large libraries was imported for it.
CONVERT = """
import json, sys, quantkit
quantkit.convert(*sys.argv[1:], no_gate=True, overwrite=True)
print(json.dumps([name for name in ("torch", "transformers", "numba") if name in sys.modules]))
"""


def test_once_a_config_is_read_the_large_libraries_stay_out(folder: Path, tmp_path: Path) -> None:
    """They take longer to import than most models take to quantize; the tokenizer wants none."""
    source = write_source(tmp_path / "source")
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(demo_model() / name, source)

    def imported(recipe: str) -> list[str]:
        arguments = [sys.executable, "-c", CONVERT, str(source), recipe, str(tmp_path / "out")]
        run = subprocess.run(arguments, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found: list[str] = json.loads(run.stdout)
        return found

    assert imported("bnb-nf4") == ["torch", "transformers", "numba"]
    assert imported("bnb-int8") == ["numba"], "its loop is compiled"
    for recipe in ("bnb-nf4", "bnb-int8", "bnb-fp4"):
        assert imported(recipe) == [], recipe
    imported("bnb-nf4-double")
    assert imported("bnb-nf4-double") == ["torch"], "its mean is torch's"


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    for name in ("QUANTKIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert remembered("k", ["a"], lambda: {"x": 1}, NUMBERS) == {"x": 1}


def test_what_the_tests_themselves_keep_goes_with_their_process() -> None:
    tests = Path(__file__).parent
    code = "import os, conftest, fuzz.targets as t; print(os.environ['QUANTKIT_CACHE'], t._HOME)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tests.parent)},
    )  # fmt: skip
    assert [each for each in done.stdout.split() if Path(each).exists()] == []
