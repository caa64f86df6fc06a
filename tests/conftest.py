"""Shared fixtures. Tiny random models are for shapes; trained ones for quality."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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
