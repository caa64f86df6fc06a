"""A home-made withdrawn release is caught, however it was repacked; its neighbours are not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commanding import refused, succeeded
from safetensors.torch import load_file
from tiny import write_source, write_state

import quantkit
from quantkit.errors import MismatchError, WithdrawnError

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release as its publisher had it: float16, values that bfloat16 holds too."""
    folder = write_source(tmp_path_factory.mktemp("withdrawn") / "release")
    state = load_file(folder / "model.safetensors")
    exact = {name: each.bfloat16().half() for name, each in state.items()}
    exact = {n: torch.where(e.abs() < 2**-14, 0, e) if e.is_floating_point() else e
             for n, e in exact.items()}  # fmt: skip
    write_state(folder, exact, "safetensors")
    return folder


@pytest.fixture(scope="module")
def registry(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What its publisher, or anybody, says of it by ``checksums add``."""
    folder = tmp_path_factory.mktemp("registry")
    succeeded(
        "checksums", "add", release, "--repository", "own/model", "--status", "withdrawn",
        "--date", "2026-01-02", "--kind", "licence", "--reason", "its data was not free",
        "--stated-at", "https://example.org/withdrawn", "--into", folder / "own.toml",
    )  # fmt: skip
    return folder


def repacked(release: Path, folder: Path, change: Callable[[State], State], **how: object) -> Path:
    state = change(load_file(release / "model.safetensors"))
    folder.mkdir()
    shutil.copy(release / "config.json", folder)
    write_state(folder, state, **{"container": "safetensors", **how})  # type: ignore[arg-type]
    return folder


def cast(dtype: torch.dtype) -> Callable[[State], State]:
    return lambda state: {n: e.to(dtype) if e.is_floating_point() else e for n, e in state.items()}


def renamed(state: State) -> State:
    """As transformers 5 would save it: the head under another name, no buffers."""
    return {
        n.replace("embed_out", "lm_head").replace("gpt_neox", "model"): e
        for n, e in state.items()
        if e.is_floating_point()
    }


CATCHES: dict[str, tuple[Callable[[State], State], dict[str, object], str]] = {
    "bin": (dict, {"container": "torch"}, "tensors"),
    "bin in shards": (dict, {"container": "torch", "shards": 4}, "tensors"),
    "safetensors in shards": (dict, {"shards": 3}, "tensors"),
    "backwards": (lambda s: dict(reversed(s.items())), {"container": "torch"}, "tensors"),
    "float32": (cast(torch.float32), {}, "values"),
    "float32 bin in shards": (cast(torch.float32), {"container": "torch", "shards": 2}, "values"),
    "bfloat16": (cast(torch.bfloat16), {}, "values"),
    "renamed": (renamed, {}, "matrices"),
    "renamed, bfloat16, shards": (
        lambda s: cast(torch.bfloat16)(renamed(s)), {"container": "torch", "shards": 3}, "matrices",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CATCHES)
def test_it_is_caught_repacked(release: Path, registry: Path, tmp_path: Path, name: str) -> None:
    change, how, by = CATCHES[name]
    folder = repacked(release, tmp_path / "an-innocent-name", change, **how)
    assert quantkit.verify(folder)["status"] == "unlisted"
    with pytest.raises(WithdrawnError, match=rf"its data was not free.*the {by}' fingerprint"):
        quantkit.verify(folder, checksums=[registry])
    found = quantkit.verify(folder, checksums=[registry], allow_withdrawn=True)
    assert found["status"] == "withdrawn"


def test_a_conversion_of_a_repacked_one_is_refused_and_leaves_nothing(
    release: Path, registry: Path, tmp_path: Path
) -> None:
    folder = repacked(release, tmp_path / "bin", cast(torch.float32), container="torch", shards=2)
    said = refused(
        3, "convert", folder, "--recipe", "bnb-nf4", "--out", tmp_path / "out", "--no-gate",
        "--checksums", registry,
    )  # fmt: skip
    assert "withdrawn" in said
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}


def test_the_release_itself_is_caught_by_its_file(release: Path, registry: Path) -> None:
    """Its entry states an MD5 too, which is not taken where a SHA-256 stands."""
    with pytest.raises(WithdrawnError, match="recognized by the digest of a file"):
        quantkit.verify(release, checksums=[registry])


def test_another_model_is_not(release: Path, registry: Path, tmp_path: Path) -> None:
    def touched(state: State) -> State:
        state["embed_out.weight"][0, 0] += 1
        return state

    folder = repacked(release, tmp_path / "other", touched)
    assert quantkit.verify(folder, checksums=[registry])["status"] == "unlisted"


def test_a_good_release_of_the_same_weights_is_spared(
    release: Path, registry: Path, tmp_path: Path
) -> None:
    """Withdrawn for its config, say: the weights of both releases are the same."""
    mine = shutil.copytree(registry, tmp_path / "registry")
    again = shutil.copytree(release, tmp_path / "again")
    (again / "config.json").write_text((release / "config.json").read_text() + "\n")
    succeeded(
        "checksums", "add", again, "--repository", "own/model", "--status", "current",
        "--date", "2026-02-03", "--stated-at", "https://example.org/again",
        "--into", mine / "own.toml",
    )  # fmt: skip
    folder = repacked(again, tmp_path / "bin", dict, container="torch")
    found = quantkit.verify(folder, checksums=[mine])
    assert (found["status"], found["verdict"]["release"]) == ("verified", "2026-02-03")
    # but another registry's word does not spare it
    with pytest.raises(WithdrawnError):
        quantkit.verify(folder, checksums=[mine, registry])


@pytest.mark.parametrize("states", ["both", "files", "fingerprint"])
def test_a_good_release_of_the_same_matrices_is_spared(
    release: Path, registry: Path, tmp_path: Path, states: str
) -> None:
    """Withdrawn for a broken norm: the corrected upload has all matrices of the withdrawn one."""
    mine = shutil.copytree(registry, tmp_path / "registry")
    norm = "gpt_neox.final_layer_norm.bias"
    mended = repacked(release, tmp_path / "mended", lambda s: s | {norm: s[norm] + 1})
    succeeded(
        "checksums", "add", mended, "--repository", "own/model", "--status", "current",
        "--date", "2026-02-03", "--stated-at", "https://example.org/again",
        "--into", mine / "own.toml",
    )  # fmt: skip
    before, _, added = (mine / "own.toml").read_text().rpartition("[releases.fingerprint]")
    fingerprint, first, files = added.partition("[[releases.files]]")
    if states != "both":
        kept = first + files if states == "files" else f"[releases.fingerprint]{fingerprint}"
        (mine / "own.toml").write_text(before + kept)
    found = quantkit.verify(mended, checksums=[mine])
    assert (found["status"], found["verdict"]["release"]) == ("verified", "2026-02-03")
    with pytest.raises(WithdrawnError, match="the tensors' fingerprint"):
        quantkit.verify(
            repacked(release, tmp_path / "bin", dict, container="torch"), checksums=[mine]
        )


def test_a_release_in_good_standing_is_recognized_repacked(release: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    registry.mkdir()
    succeeded(
        "checksums", "add", release, "--repository", "own/model", "--status", "current",
        "--stated-at", "https://example.org/x", "--into", registry / "own.toml",
    )  # fmt: skip
    shards = repacked(release, tmp_path / "shards", dict, container="torch", shards=2)
    assert quantkit.verify(shards, checksums=[registry])["status"] == "verified"
    wide = repacked(release, tmp_path / "wide", cast(torch.float32), container="torch")
    assert "cast without loss" in quantkit.verify(wide, checksums=[registry])["verdict"]["evidence"]
    # a file of a listed name is held to its digest: what is not in a tensor counts there too
    same = repacked(release, tmp_path / "same", cast(torch.float32))
    found = quantkit.verify(same, checksums=[registry])
    assert found["status"] == "unlisted"
    assert "but for model.safetensors" in found["verdict"]["reason"]
    # matrices alone are no identity: a name may mean another thing
    named = repacked(release, tmp_path / "named", renamed)
    assert quantkit.verify(named, checksums=[registry])["status"] == "unlisted"
    with pytest.raises(MismatchError, match="claims to be"):
        quantkit.verify(named, repo="own/model", checksums=[registry])


def test_a_claimed_revision_that_was_withdrawn(release: Path, tmp_path: Path) -> None:
    """A mirror of a Hub cache at the withdrawn commit, whose digests nobody published."""
    registry = tmp_path / "registry"
    registry.mkdir()
    (registry / "own.toml").write_text(
        'repository = "own/model"\n[[releases]]\nrevision = "9092a8ae57da"\nstatus = "withdrawn"\n'
        'reason = "by mistake"\nstated_at = "https://example.org"\nunpublished = ["*"]\n'
        '[[releases]]\nstatus = "current"\nstated_at = "https://example.org"\n'
        'unpublished = ["*"]\n'
    )
    for commit, status in (("9092a8ae57da39f15b76b309b4f71ff11b6ef01a", 3), ("1" * 40, 0)):
        snapshot = tmp_path / "models--own--model" / "snapshots" / commit
        shutil.copytree(release, snapshot)
        words = ("verify", snapshot, "--checksums", registry)
        if status:
            assert "by mistake" in refused(status, *words)
        else:
            assert "nobody published a digest" in succeeded(*words)


def test_the_built_in_one_is_known_by_its_md5_alone() -> None:
    """So no fingerprint can catch a repacked copy of it; the docs say so."""
    (entry,) = (
        e for e in quantkit.checksums().entries
        if e.named("rinna/bilingual-gpt-neox-4b-instruction-sft")
    )  # fmt: skip
    withdrawn = entry.releases[0]
    assert withdrawn.status == "withdrawn"
    assert withdrawn.fingerprint is None
    assert [(f.md5 is not None, f.sha256) for f in withdrawn.files] == [(True, None)]
