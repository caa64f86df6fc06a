"""Loops as machine code: kept whole, made anew when anything differs, and numba's no longer."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantkit import compiled
from quantkit.compiled import Loop

VALUES = np.linspace(-6.5e4, 6.5e4, 1001, dtype=np.float32).astype(np.float16).view(np.uint16)
WANTED = VALUES.view(np.float16).astype(np.float32)

#: Quantizes with each format where there is no numba to be had; prints what came out.
WITHOUT_NUMBA = """
import hashlib, sys
import numpy as np
if sys.argv[1] == "without":
    sys.modules["numba"] = None
from quantkit.kernels.casting import cast
from quantkit.kernels.fourbit import dequantize_4bit, quantize_4bit
from quantkit.kernels.int8 import quantize_int8
values = np.random.default_rng(0).standard_normal((64, 96), np.float32)
half = cast(values.reshape(-1), "float16").reshape(values.shape)
eight = quantize_int8(half)
parts = [half, eight.rows, eight.absmax, cast(half.reshape(-1), "float32")]
for each in (values, half):
    four = quantize_4bit(each.reshape(-1), "nf4", 64)
    back = dequantize_4bit(four.packed, four.absmax, "nf4", 64, each.size)
    parts += [four.packed, four.absmax, back]
print(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def widened() -> np.ndarray:
    words = np.zeros(VALUES.size, np.uint32)
    assert Loop("casting", "widen")(VALUES, words) == 0
    return words.view(np.float32)


def refuse(*arguments: object) -> bytes:
    raise AssertionError("compiled again")


def test_a_loop_is_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.array_equal(widened(), WANTED)
    (kept,) = folder.iterdir()
    monkeypatch.setattr(compiled, "_compile", refuse)
    assert np.array_equal(widened(), WANTED)
    assert [*folder.iterdir()] == [kept]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "nothing but a digest"])
def test_damaged_code_is_never_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    widened()
    (kept,) = folder.iterdir()
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    bad = {"flip": flipped, "cut": whole[:-1], "empty": b"", "nothing but a digest": whole[:32]}
    kept.write_bytes(bad[damage])
    assert np.array_equal(widened(), WANTED)
    seal, code = kept.read_bytes()[:32], kept.read_bytes()[32:]
    assert hashlib.sha256(kept.name.encode() + code).digest() == seal
    kept.write_bytes(bad[damage])
    monkeypatch.setattr(compiled, "_compile", refuse)
    with pytest.raises(AssertionError, match="compiled again"):
        widened()


@pytest.mark.parametrize("how", ["another's", "everyone's"])
def test_code_that_another_user_may_have_written_is_never_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    widened()
    (kept,) = folder.iterdir()
    if how == "everyone's":
        kept.chmod(0o622)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: kept.stat().st_uid + 1)
    monkeypatch.setattr(compiled, "_compile", refuse)
    with pytest.raises(AssertionError, match="compiled again"):
        widened()


@pytest.mark.parametrize("which", range(7))
def test_whatever_it_depends_on_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """The loops' text, numba's and LLVM's versions, numba's settings, and what the machine is."""
    depends_on = list(compiled._depends_on())
    assert len(depends_on) == 7
    widened()
    depends_on[which] += "x"
    monkeypatch.setattr(compiled, "_depends_on", lambda: depends_on)
    monkeypatch.setattr(compiled, "_compile", refuse)
    with pytest.raises(AssertionError, match="compiled again"):
        widened()


def test_a_folder_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "file"))
    assert np.array_equal(widened(), WANTED)


def test_a_full_disk_leaves_no_litter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widened()
    (kept,) = folder.iterdir()
    kept.unlink()
    kept.mkdir()  # nothing can take its name
    assert np.array_equal(widened(), WANTED)
    assert [*folder.iterdir()] == [kept]


def test_what_numba_is_told_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled._depends_on.__wrapped__()
    monkeypatch.setenv("NUMBA_OPT", "0")
    assert compiled._depends_on.__wrapped__() != before


def test_arrays_that_lie_otherwise_are_refused() -> None:
    words = np.zeros(2 * VALUES.size, np.uint32)
    with pytest.raises(ValueError, match="row-major"):
        Loop("casting", "widen")(VALUES, words[::2])
    odd = np.zeros(2 * VALUES.size + 1, np.uint8)[1:].view(np.uint16)
    for bits in (odd, VALUES.astype(">u2"), np.array(7, np.uint16)):
        with pytest.raises(ValueError, match="aligned, row-major"):
            Loop("casting", "widen")(bits, words[: VALUES.size])


def test_without_numba_s_compiler_it_is_said(folder: Path) -> None:
    environment = {**os.environ, "QUANTKIT_CACHE": str(folder), "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA, "with"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert "UsageError: NUMBA_DISABLE_JIT is set" in done.stderr


def test_what_was_compiled_needs_nothing_of_numba(folder: Path) -> None:
    def run(how: str) -> str:
        command = [sys.executable, "-c", WITHOUT_NUMBA, how]
        environment = {**os.environ, "QUANTKIT_CACHE": str(folder)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("with") == run("without")
