"""One flipped bit anywhere: found, and its file named.

Some dozens by default; the project's promise is a thousand:
``QUANTKIT_FLIPS=1000 pytest tests/trust/test_bit_flips.py``.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commanding import succeeded
from tiny import write_source

import quantkit
from quantkit.errors import QuantkitError

COUNT = int(os.environ.get("QUANTKIT_FLIPS", "48"))


@contextmanager
def flipped(path: Path, rng: random.Random) -> Iterator[int]:
    sound = path.read_bytes()
    at = rng.randrange(len(sound) * 8)
    damaged = bytearray(sound)
    damaged[at // 8] ^= 1 << at % 8
    path.write_bytes(damaged)
    try:
        yield at
    finally:
        path.write_bytes(sound)


def hunt(files: list[Path], count: int, verify: Callable[[], object], seed: int) -> None:
    """``count`` flips, each file as often as the others."""
    rng = random.Random(seed)
    for turn in range(count):
        path = files[turn % len(files)]
        with flipped(path, rng) as at, pytest.raises(QuantkitError) as caught:
            verify()
        assert path.name in str(caught.value), (path.name, at, str(caught.value))
    verify()


@pytest.fixture(scope="module", params=["safetensors", "torch"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flips") / "source"
    write_source(folder, container=request.param, shards=2)
    (folder / "LICENSE").write_text("Do what you like.")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "spiece.vocab").write_text("a\t0\nb\t-1\n")
    return folder


@pytest.fixture(scope="module")
def registry(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    succeeded(
        "checksums", "add", source, "--repository", "own/model", "--status", "current",
        "--stated-at", "https://example.org", "--into", folder / "own.toml",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def output(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flips") / "out"
    quantkit.convert(source, "bnb-nf4", out, no_gate=True)
    return out


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_in_a_source_with_known_digests(source: Path, registry: Path) -> None:
    def verify() -> object:
        return quantkit.verify(source, repo="own/model", checksums=[registry])

    hunt(files_of(source), COUNT // 4, verify, seed=1)


def test_in_a_source_that_claims_nothing(source: Path, registry: Path) -> None:
    """It is not called verified, and what differs is named."""

    def verify() -> object:
        return quantkit.verify(source, require_verified=True, checksums=[registry])

    weights = [path for path in files_of(source) if path.suffix in (".bin", ".safetensors")]
    hunt(weights[:1], COUNT // 8, verify, seed=2)


def test_in_an_output(output: Path) -> None:
    hunt(files_of(output), COUNT // 4, lambda: quantkit.verify(output), seed=3)


def test_in_a_manifest(output: Path) -> None:
    manifest = output / "quantkit-manifest.json"
    hunt([manifest], COUNT // 4, lambda: quantkit.verify(output), seed=4)


def test_in_a_published_folder(output: Path, tmp_path: Path) -> None:
    """As a Hub cache keeps it: links into blobs, and the hub's own file beside."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("1" * 40)
    shutil.copytree(output, blobs)
    snapshot.mkdir(parents=True)
    (snapshot / ".gitattributes").write_text("*.safetensors filter=lfs")
    for path in files_of(blobs):
        (snapshot / path.name).symlink_to(path)
    hunt(files_of(blobs), COUNT // 8, lambda: quantkit.verify(snapshot), seed=5)
