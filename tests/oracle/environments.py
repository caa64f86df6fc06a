"""Environments of other versions, built on the spot; what all have alike is lent, not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

#: torch is most of what an environment weighs.
_TORCH = ("torch", "torchgen", "functorch")


def make(folder: Path) -> Path:
    """An empty environment's interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def install(python: Path, *wanted: str | Path, **variables: str) -> None:
    """What is imported once at most is not compiled."""
    words = ["-m", "pip", "install", "--quiet", "--no-compile", *wanted]
    subprocess.run([python, *words], check=True, env=os.environ | variables)


def lend_torch(python: Path, wanted: Sequence[str]) -> None:
    """Links to the torch that is here; pip takes it for installed, and adds what it needs.

    Only where it is the one that is wanted: pip would remove another through the links.
    """
    torch = distribution("torch")
    if f"torch=={torch.version.partition('+')[0]}" not in wanted:
        return
    here = Path(str(torch.locate_file("")))
    metadata = next(here.glob(f"torch-{torch.version}.dist-info"))
    for name in (*_TORCH, metadata.name):
        (_packages(python) / name).symlink_to(here / name)


def lend_all(python: Path) -> None:
    """Everything that is here, behind what will be installed there."""
    here = Path(str(distribution("torch").locate_file("")))
    (_packages(python) / "lent.pth").write_text(f"{here.resolve()}\n", encoding="utf-8")


def _packages(python: Path) -> Path:
    return next(python.parents[1].glob("lib/python*/site-packages"))
