"""The documentation: the tutorial's every block runs as printed, and the site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commanding import COMMAND

pytestmark = pytest.mark.oracle

ROOT = Path(__file__).resolve().parents[2]


def blocks(name: str) -> list[tuple[str, str]]:
    """``(language, text)`` of every fenced block of a page."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


def test_the_tutorial_runs_as_printed(tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    script = bin_ / "quantkit"
    script.write_text(f"#!{sys.executable}\n{COMMAND[-1]}\n")
    script.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    ran = 0
    for language, text in blocks("tutorial.md"):
        if language == "console":
            lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
            words = ["bash", "-euc", "\n".join(lines)]
        else:
            assert language == "python"
            words = [sys.executable, "-c", text]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"
        ran += 1
    assert ran >= 5


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'quantkit[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install 'quantkit[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    for name in ("convert", "verify", "check", "compare", "publish", "eval"):
        assert f".{name}" in reference
