"""The documentation: every block of every page runs as printed, and the site builds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commanding import COMMAND, succeeded
from hub.loopback import Loopback

from quantkit.recipe import TokenizerSection
from quantkit.releases import read_entry
from quantkit.resources import demo_model

pytestmark = pytest.mark.oracle

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))

#: What the pages tell people to do beforehand, and CI does for itself.
DONE_ALREADY = ("make ", "pip install ")


def blocks(page: str) -> list[tuple[str, str]]:
    """``(language, text)`` of every fenced block that names its language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> str:
    """What stands behind the prompts, with the lines that go on; not what is printed."""
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    return "\n".join(each for each in found if not each.startswith(DONE_ALREADY))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized folder that somebody else made."""
    out = tmp_path_factory.mktemp("made") / "nf4"
    succeeded("convert", demo_model(), "--recipe", "bnb-nf4", "--no-gate", "--out", out)
    return out


@pytest.fixture
def desk(tmp_path: Path, made: Path, hub: Loopback, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the pages take for granted, and the command on the PATH."""
    shutil.copytree(demo_model(), tmp_path / "my-model")
    text = (demo_model() / "heldout.txt").read_text(encoding="utf-8")
    first, last = (text.index("\n", len(text) * part // 4) for part in (1, 3))
    (tmp_path / "my-text.txt").write_text(text[:first], encoding="utf-8")
    (tmp_path / "my-evaluation.txt").write_text(text[last:], encoding="utf-8")
    for name in ("anybodys-4bit", "a", "b"):
        shutil.copytree(made, tmp_path / name)
    (tmp_path / "checksums").mkdir()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    script = tmp_path / "bin" / "quantkit"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{COMMAND[-1]}\n")
    script.chmod(0o755)
    return tmp_path


def run(words: list[str], desk: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{desk / 'bin'}:{environment['PATH']}"
    done = subprocess.run(
        words, cwd=desk, env=environment, capture_output=True, text=True, input="y\n", check=False
    )
    assert done.returncode == 0, f"{words[-1]}\n{done.stderr[-3000:]}"


def signed(desk: Path) -> None:
    """What ``docs/verification.md`` begins with: somebody's signed folder, and their key."""
    pytest.importorskip("model_signing", reason="pip install 'quantkit[sign]'")
    key = "openssl ecparam -name prime256v1 -genkey -noout -out their.pem"
    run(["bash", "-euc", f"{key} && openssl ec -in their.pem -pubout -out their-key.pub"], desk)
    made = desk / "their-model-nf4"
    succeeded(
        "convert", desk / "my-model", "--recipe", "bnb-nf4", "--no-gate", "--out", made,
        "--sign", desk / "their.pem",
    )  # fmt: skip


@pytest.mark.parametrize("page", [each for each in PAGES if blocks(each)])
def test_every_block_of_a_page_runs_as_printed(page: str, desk: Path, made: Path) -> None:
    if page == "docs/verification.md":
        signed(desk)
    if page == "docs/tokenizer.md":
        shutil.copytree(made, desk / "my-model-nf4")
    for language, text in blocks(page):
        if language == "console":
            run(["bash", "-euc", commands(text)], desk)
        elif language == "python":
            run([sys.executable, "-c", text], desk)
        else:
            assert language == "toml"
            check_toml(text, desk)


def check_toml(text: str, desk: Path) -> None:
    """A registry entry, its digests left out, or a recipe's table."""
    if "[[releases]]" not in text:
        TokenizerSection(**tomllib.loads(text)["tokenizer"])
        return
    for key, length in (("sha256", 64), ("md5", 32), ("tensors", 64), ("values", 64),
                        ("matrices", 64)):  # fmt: skip
        text = re.sub(rf'^({key}\s*= )"…"', rf'\1"{"0" * length}"', text, flags=re.MULTILINE)
    path = desk / "entry.toml"
    path.write_text(text, encoding="utf-8")
    assert read_entry(path).repository == "own/model"


def test_blocks_are_found() -> None:
    found = {page: len(blocks(page)) for page in PAGES}
    assert found["README.md"] >= 3
    assert found["docs/tutorial.md"] >= 5
    assert "quantkit convert" in "".join(commands(text) for _, text in blocks("docs/gptq.md"))


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
