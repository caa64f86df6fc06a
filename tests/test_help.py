"""The command line answers quickly: help costs no torch."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commanding import refused, succeeded

from quantkit.resources import shipped_folder

VERBS = ("convert", "plan", "verify", "check-tokenizer", "recipes", "checksums", "demo", "eval")
HEAVY = ("torch", "transformers", "bitsandbytes", "numba", "numpy", "pydantic", "huggingface_hub")


TYPER = """
import typer
app = typer.Typer(rich_markup_mode=None)
app.command()(lambda: None)
"""
OURS = "from quantkit.cli import main as app"


def loaded(code: str) -> set[str]:
    """The modules that ``app --help`` loads."""
    program = (
        f"import atexit, os, sys\nsys.argv = ['app', '--help']\n{code}\n"
        "end = os._exit\n"
        "def told(status=0):\n"
        "    print(*sys.modules, file=sys.stderr, flush=True)\n"
        "    end(status)\n"
        "os._exit = told\n"
        "try:\n    app()\nfinally:\n    told()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "Usage:" in done.stdout, done.stderr
    return set(done.stderr.split())


def test_help_loads_nothing_but_typer_and_our_own_lines() -> None:
    """Its time is a few modules' (bench/RESULTS.md has the start-up's)."""
    further = {name.partition(".")[0] for name in loaded(OURS) - loaded(TYPER)}
    assert "quantkit" in further
    assert further - sys.stdlib_module_names == {"quantkit"}


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
