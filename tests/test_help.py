"""The command line answers quickly: help costs no torch."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from commanding import command, refused, succeeded

from quantkit.resources import shipped_folder

VERBS = ("convert", "plan", "verify", "check-tokenizer", "recipes", "checksums", "demo", "eval")
HEAVY = ("torch", "transformers", "bitsandbytes", "numba", "numpy", "pydantic", "huggingface_hub")


def seconds(words: list[str]) -> float:
    """The median of five whole processes."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return statistics.median(once() for _ in range(5))


def test_help_takes_little_more_than_the_interpreter() -> None:
    script = shutil.which("quantkit", path=Path(sys.executable).parent)
    words = [script, "--help"] if script else command("--help")
    if os.getloadavg()[0] > 2 * (os.cpu_count() or 1):
        pytest.skip("the machine is too busy to time anything")
    bare = seconds([sys.executable, "-c", "pass"])
    assert seconds(words) - bare < 0.3


@pytest.mark.parametrize("statement", ["import quantkit", "import quantkit.cli"])
def test_importing_brings_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print(*[n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_names_every_verb_and_the_exit_codes() -> None:
    said = succeeded("--help")
    for word in (*VERBS, "130 interrupted", "4 gate failed", "2 usage"):
        assert word in " ".join(said.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(verb: str) -> None:
    assert "--json" in succeeded(verb, "--help")


def test_the_version() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert succeeded("--version") == f"quantkit {project['version']}\n"


def test_lists() -> None:
    assert "bnb-nf4-double" in succeeded("recipes")
    assert "rinna/bilingual-gpt-neox-4b-instruction-sft" in succeeded("checksums")
    shown = succeeded("recipes", "bnb-nf4")
    assert shown == (shipped_folder("recipes") / "bnb-nf4.toml").read_text(encoding="utf-8")
    assert "edf190a323c0ae63f71476700fb0b462" in succeeded(
        "checksums", "rinna/bilingual-gpt-neox-4b-instruction-sft"
    )
    assert "no/such" in refused(2, "checksums", "no/such")
