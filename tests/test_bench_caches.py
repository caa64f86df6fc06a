"""What the benches do to what quantkit keeps between runs: to their own, to nobody else's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_source

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import bnb
import trust

ROOT = Path(__file__).resolve().parents[1]


def test_without_a_cache_named_no_file_of_the_current_folder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QUANTKIT_CACHE")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digests-of-mine").touch()
    bnb.process([sys.executable, "-c", ""], tmp_path / "out")
    assert (tmp_path / "digests-of-mine").exists()


def test_the_digests_that_trust_times_can_be_taken(tmp_path: Path) -> None:
    weights = next(write_source(tmp_path / "source").glob("*.safetensors"))
    words = [sys.executable, "-c", trust.DIGESTS, weights]
    done = subprocess.run(words, capture_output=True, check=True, cwd=ROOT)
    assert set(json.loads(done.stdout)) == {"sha256", "md5", "both", "and tensors"}


@pytest.mark.parametrize("code", [trust.RUN, trust.BARE + trust.RUN], ids=["with", "without"])
def test_trust_times_a_new_source_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("QUANTKIT_CACHE", str(cache))
    source = write_source(tmp_path / "source")
    for _ in range(2):
        cache.mkdir(exist_ok=True)
        (cache / "digests-of-an-earlier-run.bin").touch()
        trust.convert(code, source, tmp_path / "out")
        kept = [path.name for path in cache.glob("digests-*")]
        assert len(kept) == (code == trust.RUN), "and what is no digest is not kept"
        assert "digests-of-an-earlier-run.bin" not in kept
