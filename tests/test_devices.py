"""What a machine or its container leaves a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from quantkit import devices

GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"),
    [
        (f"{16 * GIB}", 15 * GIB, 10 * GIB, 11 * GIB),
        (f"{16 * GIB}", 15 * GIB, 0, GIB),
        (f"{16 * GIB}", 17 * GIB, 0, 0),
        (f"{256 * GIB}", GIB, 0, 64 * GIB),
        ("max", GIB, 0, 64 * GIB),
    ],
)
def test_what_a_container_has_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: int, cached: int, free: int
) -> None:
    """Of a machine with 64 GiB. Who has read a model holds it in the container's cache of files."""
    monkeypatch.setattr(devices, "_CONTROL_GROUP", tmp_path)
    machine = SimpleNamespace(available=64 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    assert devices.free_memory() == 64 * GIB, "there is no control group"
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon {GIB}\ninactive_file {cached}\nactive_file 7\n")
    assert devices.free_memory() == free
