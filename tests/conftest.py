"""Shared fixtures. Tiny random models are for shapes; trained ones for quality."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub.loopback import TOKEN, Loopback

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: threads of two would crawl
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["QUANTKIT_CACHE"] = tempfile.mkdtemp(prefix="quantkit-tests-")
atexit.register(shutil.rmtree, os.environ["QUANTKIT_CACHE"], ignore_errors=True)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real material, beside the checkout; absent for most people."""
    if not (SHARED / "models").is_dir():
        pytest.skip(f"{SHARED} is absent: real material is for developers and CI")
    return SHARED


@pytest.fixture(scope="session")
def mini_rinna(shared: Path) -> Path:
    return shared / "models" / "mini-rinna"


@pytest.fixture(scope="session")
def stories260k(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@dataclass(frozen=True)
class Converted:
    """A finished folder, what ``convert`` returned, and how it was asked for."""

    folder: Path
    source: Path
    text: Path
    recipe: str
    manifest: dict[str, Any]


@pytest.fixture(scope="session")
def demo() -> Path:
    """The small trained model that ships with quantkit."""
    from quantkit.resources import demo_model

    return demo_model()


@pytest.fixture(scope="session")
def demo_nf4(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The demo model in NF4, gate passed. Do not write into it; copy it."""
    return _converted(demo, "bnb-nf4", tmp_path_factory)


@pytest.fixture(scope="session")
def demo_int8(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return _converted(demo, "bnb-int8", tmp_path_factory)


def _converted(source: Path, recipe: str, factory: pytest.TempPathFactory) -> Converted:
    import quantkit

    out, text = factory.mktemp("converted") / recipe, source / "heldout.txt"
    return Converted(out, source, text, recipe, quantkit.convert(source, recipe, out, text=text))


@pytest.fixture
def tokenizer_pair(tmp_path: Path) -> tuple[Path, Path]:
    """The demo's tokenizer, and the files that quantkit writes for it."""
    from quantkit.resources import demo_model
    from quantkit.tokenization import make_files

    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
        for name in ("config.json", "spiece.model", "tokenizer_config.json"):
            shutil.copy(demo_model() / name, folder / name)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    make_files(source / "spiece.model", settings).write(out)
    return source, out


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A hub on this machine, with huggingface_hub pointed at it and its waits cut short."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http, disable_progress_bars

    disable_progress_bars()

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
    monkeypatch.setattr(time, "sleep", lambda seconds, real=time.sleep: real(min(seconds, 0.01)))
    with Loopback() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running
    _http.close_session()
