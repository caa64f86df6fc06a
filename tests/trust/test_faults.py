"""A random fault in every run: done, or one line of error and nothing at OUT; then the same bytes.

A few of each by default, on the demo model. The matrix of the project's promise, on mini-rinna:
``QUANTKIT_FAULTS=200 pytest tests/trust/test_faults.py -k no_gate``, 20 with ``-k gated`` and
20 with ``-k gptq``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commanding import command, the_error
from tiny import write_source

COUNT = int(os.environ.get("QUANTKIT_FAULTS", "0"))
SERVER = Path(__file__).with_name("fault_runs.py")

QUICK = ("--set", "evaluation.max_windows=1", "--set", "evaluation.new_tokens=1")
NO_GATE = ("--recipe", "bnb-nf4", "--no-gate")
GATED = ("--recipe", "bnb-nf4", *QUICK)
GPTQ = ("--recipe", "gptq-4bit-g128", "--no-gate", "--set", "calibration.samples=8",
        "--set", "calibration.length=128")  # fmt: skip


def run(source: Path, work: Path, count: int, *words: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, SERVER, source, work, "--count", str(count), "--", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    )
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    if report := os.environ.get("QUANTKIT_FAULTS_REPORT"):
        with Path(report).open("a") as file:
            file.writelines(json.dumps({"words": words, **each}) + "\n" for each in runs)
    assert done.returncode == 0
    assert len(runs) == count
    return runs


def test_no_gate(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue("mini_rinna" if COUNT else "demo")
    runs = run(source, tmp_path, COUNT or 2, *NO_GATE)
    assert [each for each in runs if each["problem"]] == []


@pytest.mark.parametrize("words", [GATED, GPTQ], ids=["gated", "gptq"])
def test_what_takes_longer(
    request: pytest.FixtureRequest, tmp_path: Path, words: tuple[str, ...]
) -> None:
    source = request.getfixturevalue("mini_rinna" if COUNT else "demo")
    words = (*words, "--text", str(source / "heldout.txt"))
    if not COUNT and words[1].startswith("gptq"):
        words = (*words, "--set", "method.group_size=64")
    runs = run(source, tmp_path, COUNT or 1, *words)
    assert [each for each in runs if each["problem"]] == []


def test_a_read_only_disk_is_an_error_in_words(tmp_path: Path) -> None:
    source, disk = write_source(tmp_path / "source"), tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a disk")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        words = command("convert", source, *NO_GATE, "--out", disk / "out")
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "Read-only file system" in the_error(done.stderr)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
