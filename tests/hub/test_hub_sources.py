"""Sources on a hub: one commit, only what is needed, nothing damaged, and clear refusals."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Converted
from hub.loopback import Fault, Loopback
from huggingface_hub import constants
from keys import make_key
from tiny import write_source

import quantkit
from quantkit.checkpoint.known import find_known, keep_known
from quantkit.checkpoint.reading import stamp_of
from quantkit.errors import MismatchError, SourceError, UsageError, VerificationError
from quantkit.hub import reason
from quantkit.signing import open_signer

REPO = "quantkit/demo"
WEIGHTS = "pytorch_model.bin"


def large(path: Path) -> str:
    """The download of a large file, as the hub sees it."""
    return f"GET /cdn/.*{hashlib.sha256(path.read_bytes()).hexdigest()}"


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def served(hub: Loopback, demo: Path) -> Loopback:
    others = ("flax_model.msgpack", "sub/pytorch_model.bin", "training_args.bin",
              "consolidated.safetensors")  # fmt: skip
    hub.add(REPO, files_of(demo) | {each: b"\0" + each.encode() for each in others})
    return hub


def fetched(hub: Loopback) -> set[str]:
    got = hub.lines("(GET|HEAD) /.*/resolve/")
    return {line.rpartition("/")[2] for line in got}


def test_only_what_is_needed_is_fetched(served: Loopback) -> None:
    assert quantkit.verify(REPO)["status"] == "verified"
    assert fetched(served) == {
        WEIGHTS, "config.json", "README.md", "spiece.model", "tokenizer_config.json"
    }  # fmt: skip


def test_a_branch_that_moves_meanwhile_changes_nothing(served: Loopback) -> None:
    repository = served.repositories[REPO]
    first = repository.branches["main"]
    moved = Fault("GET /.*/tree/", before=lambda: repository.add({"config.json": b"{}"}))
    served.faults.append(moved)
    found = quantkit.verify(REPO)
    assert found["revision"] == first
    assert found["status"] == "verified"
    assert repository.branches["main"] != first


def test_a_revision_is_taken_by_branch_and_by_commit(served: Loopback, demo: Path) -> None:
    repository = served.repositories[REPO]
    first = repository.branches["main"]
    repository.add({"config.json": b"{}"})
    repository.branches["old"] = first
    assert quantkit.verify(REPO, revision="old")["revision"] == first
    assert quantkit.verify(REPO, revision=first)["revision"] == first
    with pytest.raises(SourceError, match="check the revision"):
        quantkit.verify(REPO, revision="nowhere")


@pytest.mark.parametrize("name", ["config.json", "spiece.model", WEIGHTS])
def test_a_bit_flipped_once_on_the_way_is_found(served: Loopback, demo: Path, name: str) -> None:
    """Small files are fetched once more; weights stop the run, and a rerun fetches them anew."""
    on = f"GET .*{name}" if name == "config.json" else large(demo / name)
    served.faults.append(Fault(on, flip=100))
    if name == WEIGHTS:
        with pytest.raises(SourceError, match=r"not the bytes that the Hub lists.*run again"):
            quantkit.verify(REPO)
    assert quantkit.verify(REPO)["status"] == "verified"
    assert served.faults[0].times == 0, "the fault happened"


@pytest.mark.parametrize("verb", ["plan", "convert", "verify", "check"])
@pytest.mark.parametrize("at", [5000, 2_000_000], ids=["header", "tensor"])
def test_weights_that_are_always_damaged_are_never_used(
    served: Loopback, demo_nf4: Converted, tmp_path: Path, verb: str, at: int
) -> None:
    repository = served.repositories[REPO]
    entry = repository.commits[repository.branches["main"]].files[WEIGHTS]
    good = repository.objects[entry.oid]
    repository.objects[entry.oid] = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    act = {
        "plan": lambda: quantkit.plan(REPO, "bnb-nf4"),
        "convert": lambda: quantkit.convert(REPO, "bnb-nf4", tmp_path / "out", no_gate=True),
        "verify": lambda: quantkit.verify(REPO),
        "check": lambda: quantkit.check(demo_nf4.folder, REPO),
    }[verb]
    with pytest.raises((MismatchError, SourceError), match=r"the Hub lists.*run again"):
        act()
    assert not (tmp_path / "out").exists()


def test_a_digest_that_an_earlier_run_took_wrongly_is_no_damage(
    hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "cache"))
    hub.add("me/tiny", files_of(write_source(tmp_path / "source")))
    quantkit.convert("me/tiny", "bnb-nf4", tmp_path / "one", no_gate=True)
    (path,) = Path(constants.HF_HUB_CACHE).rglob("model.safetensors")
    known = find_known(stamp_of(path), md5=False)
    assert known is not None
    keep_known(stamp_of(path), replace(known, sha256="0" * 64))
    found = quantkit.convert("me/tiny", "bnb-nf4", tmp_path / "other", no_gate=True)["source"]
    assert found["recalled"] == []
    assert known.sha256 in [each["sha256"] for each in found["files"]]


def test_a_small_file_that_is_always_damaged_is_refused(served: Loopback) -> None:
    served.faults.append(Fault("GET .*config.json", times=9, flip=3))
    with pytest.raises(SourceError, match=r"config.json: not the bytes that the Hub lists"):
        quantkit.plan(REPO, "bnb-nf4")


def test_a_broken_download_goes_on_where_it_stopped(
    served: Loopback, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    served.faults.append(Fault(large(demo / WEIGHTS), drop_after=3_000_000))
    assert quantkit.verify(REPO)["status"] == "verified"
    asked = [each for each in served.seen if each.line.startswith("GET /cdn/")]
    assert [each.headers["range"] for each in asked if "range" in each.headers] == [
        "bytes=3000000-"
    ]


def test_a_rerun_fetches_only_files_that_did_not_arrive_whole(served: Loopback, demo: Path) -> None:
    """The client keeps no part of a file from one process to the next."""
    served.faults.append(Fault(large(demo / WEIGHTS), drop_after=0, times=99))
    with pytest.raises(SourceError, match="connection broke"):
        quantkit.verify(REPO)
    served.faults.clear()
    before = len(served.seen)
    assert quantkit.verify(REPO)["status"] == "verified"
    got = [each.line for each in served.seen[before:] if each.sent > 10_000]
    assert [bool(re.match(large(demo / WEIGHTS), each)) for each in got] == [True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hub: hub.repositories.clear(), "no such repository"),
        (lambda hub: setattr(hub.repositories[REPO], "gated", True), "ask for access"),
        (lambda hub: hub.faults.append(Fault("GET", 99, 401, "Invalid credentials in "
                                             "Authorization header")), "log in anew"),
        (lambda hub: hub.faults.append(Fault("GET", 99, 429)), "wait a few minutes"),
        (lambda hub: hub.faults.append(Fault("GET", 99, 500)), "error of its own"),
        (lambda hub: hub.faults.append(Fault("GET", 99, drop_after=0)), "connection broke"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_explained(served: Loopback, change: object, words: str) -> None:
    change(served)  # type: ignore[operator]
    with pytest.raises(SourceError, match=words) as caught:
        quantkit.plan(REPO, "bnb-nf4")
    assert REPO in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_private_repository_needs_a_token(
    served: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.repositories[REPO].private = True
    assert quantkit.verify(REPO)["status"] == "verified"
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SourceError, match="private one that the token"):
        quantkit.verify(REPO, revision="main")


def test_offline_the_cache_serves_and_its_bytes_are_checked(
    served: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(quantkit.verify(REPO)["files"] and constants.HF_HUB_CACHE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(served.seen)
    assert quantkit.verify(REPO)["status"] == "verified"
    assert len(served.seen) == before
    with pytest.raises(SourceError, match="offline mode is on"):
        quantkit.verify("quantkit/other")
    config = next(folder.glob("*/snapshots/*/config.json"))
    config.write_bytes(config.read_bytes().replace(b"128", b"129"))
    with pytest.raises(SourceError, match=r"config.json: not the bytes"):
        quantkit.verify(REPO)


@pytest.mark.parametrize("name", ["config.json", "README.md"])
def test_offline_a_link_of_the_cache_to_nothing_is_named(
    served: Loopback, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    quantkit.verify(REPO)
    link = next(Path(constants.HF_HUB_CACHE).glob(f"*/snapshots/*/{name}"))
    link.resolve().unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=f"{name}: cannot be read"):
        quantkit.plan(REPO, "bnb-nf4")


def test_links_of_the_cache_that_lead_in_a_circle_are_no_files_of_it(served: Loopback) -> None:
    quantkit.verify(REPO)
    (snapshot,) = Path(constants.HF_HUB_CACHE).glob("*/snapshots/*")
    (snapshot / "circle").symlink_to("circle")
    assert quantkit.verify(snapshot)["status"] == "verified"


def test_check_compare_and_verify_take_a_published_folder_by_its_id(
    served: Loopback, demo_nf4: Converted
) -> None:
    served.add("me/demo-nf4", files_of(demo_nf4.folder))
    found = quantkit.verify("me/demo-nf4")
    assert (found["kind"], found["status"]) == ("output", "verified")
    quick = ["evaluation.max_windows=1", "evaluation.new_tokens=1"]
    checked = quantkit.check("me/demo-nf4", REPO, text=demo_nf4.text, set=quick)
    assert checked["gate"]["status"] == "passed"
    compared = quantkit.compare(["me/demo-nf4"], REPO, text=demo_nf4.text, set=quick)
    assert (
        compared["folders"][0]["kl_divergence"]["mean"] == checked["gate"]["kl_divergence"]["mean"]
    )
    served.repositories["me/demo-nf4"].add({"extra.py": b"import os"})
    with pytest.raises(MismatchError, match=r"extra.py is not in the manifest"):
        quantkit.verify("me/demo-nf4")


# what the small files tell comes before the weights are fetched


def weights_asked_for(hub: Loopback) -> set[str]:
    return {name for name in fetched(hub) if name.endswith((".safetensors", ".bin"))}


def test_a_signature_is_judged_before_the_weights_are_fetched(
    hub: Loopback, demo_nf4: Converted, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    (mine, public), (_, other) = (make_key(tmp_path, name) for name in ("mine", "other"))
    folder = shutil.copytree(demo_nf4.folder, tmp_path / "demo-nf4")
    hub.add("me/unsigned", files_of(folder))
    open_signer(mine).sign(folder)
    hub.add("me/signed", files_of(folder))
    hub.add("me/another", files_of(folder) | {"quantkit-manifest.json": b"{}"})
    no_key = tmp_path / "none.pub"
    no_key.write_text("no key")
    with pytest.raises(UsageError, match=r"none\.pub"):
        quantkit.verify("me/signed", public_key=no_key)
    assert hub.seen == []
    for repo, key, words in (
        ("me/unsigned", public, "expects one"),
        ("me/signed", other, "not this key's signature"),
        ("me/another", public, "not a readable quantkit manifest"),
    ):
        with pytest.raises((MismatchError, SourceError), match=words):
            quantkit.verify(repo, public_key=key)
    assert weights_asked_for(hub) == set()
    assert quantkit.verify("me/signed", public_key=public)["signature"] == "valid"
    assert weights_asked_for(hub) == {"model.safetensors"}


def test_a_source_is_refused_with_a_key_before_its_weights_are_fetched(
    served: Loopback, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    with pytest.raises(MismatchError, match=r"no quantkit-manifest\.json"):
        quantkit.verify(REPO, public_key=make_key(tmp_path, "mine")[1])
    assert weights_asked_for(served) == set()


@pytest.mark.parametrize("wrong", ["config.json has changed", "extra.py", "withdrawn", "--repo"])
def test_an_output_is_refused_by_its_small_files_before_its_weights_are_fetched(
    hub: Loopback, demo_nf4: Converted, tmp_path: Path, wrong: str
) -> None:
    files = files_of(demo_nf4.folder)
    if wrong.startswith("config.json"):
        files["config.json"] += b" "
    if wrong == "extra.py":
        files["extra.py"] = b"import os"
    digest = hashlib.sha256((demo_nf4.source / WEIGHTS).read_bytes()).hexdigest()
    (tmp_path / "own.toml").write_text(
        'repository = "own/model"\n[[releases]]\nstatus = "withdrawn"\nreason = "withdrawn"\n'
        f'stated_at = "x"\n[[releases.files]]\nname = "{WEIGHTS}"\nsha256 = "{digest}"\n'
    )
    hub.add("me/demo-nf4", files)
    with pytest.raises((VerificationError, UsageError), match=wrong):
        quantkit.verify(
            "me/demo-nf4",
            repo="own/model" if wrong == "--repo" else None,
            checksums=[tmp_path] if wrong == "withdrawn" else (),
        )
    assert weights_asked_for(hub) == set()


def test_a_source_without_weights_says_so(hub: Loopback, tmp_path: Path) -> None:
    files = files_of(write_source(tmp_path / "source"))
    hub.add("me/bare", {"config.json": files["config.json"]})
    with pytest.raises(SourceError, match=r"bare.*point to the folder"):
        quantkit.plan("me/bare", "bnb-nf4")


def test_an_adapter_is_told_by_its_names_and_not_fetched(hub: Loopback) -> None:
    hub.add("me/lora", {"adapter_config.json": b"{}", "tokenizer.json": b"{}"})
    with pytest.raises(SourceError, match=r"me/lora: .*an adapter"):
        quantkit.plan("me/lora", "bnb-nf4")
    assert not fetched(hub)


def test_a_recipe_may_ask_for_one_of_two_containers(served: Loopback, tmp_path: Path) -> None:
    """Such as the one whose digests a registry knows; also where a cache holds both."""
    from safetensors.torch import save_file

    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors")
    served.repositories[REPO].add(
        {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    )
    with pytest.raises(SourceError):
        quantkit.plan(REPO, "bnb-nf4")
    plan = quantkit.plan(REPO, "bnb-nf4", set=["source.container=torch"])
    assert {each.source.file for each in plan.tensors} == {WEIGHTS}


def test_an_error_that_causes_itself_is_explained_too() -> None:
    error = RuntimeError("it broke")
    error.__cause__ = error
    assert reason(error) == "it broke"
