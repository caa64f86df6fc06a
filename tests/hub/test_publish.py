"""publish: refusals, the push, what is verified, and every way it can break."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from commanding import refused, succeeded
from conftest import Converted
from hub.loopback import READ_TOKEN, TOKEN, Fault, Loopback
from keys import make_key
from typer.testing import CliRunner

import quantkit
from quantkit import amending, lineage, pushing, readiness
from quantkit.cli.app import app
from quantkit.digests import digest_file
from quantkit.errors import (
    GateError,
    HubError,
    LicenceError,
    MismatchError,
    QuantkitError,
    RemoteError,
    UsageError,
    WithdrawnError,
)
from quantkit.records import read_manifest, write_manifest
from quantkit.signatures import SIGNATURE
from quantkit.signing import Signer, open_signer
from quantkit.staging import commit, staging_for
from quantkit.types import Event, Verdict

REPO = "me/demo-nf4"
TITLE = "Publish with quantkit: bnb-nf4 of demo-model"


@pytest.fixture(scope="module")
def small(demo_nf4: Converted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's folder with its largest files cut, to be pushed about many times."""
    folder = shutil.copytree(demo_nf4.folder, tmp_path_factory.mktemp("small") / "demo-nf4")
    names = ("model.safetensors", "tokenizer.json", "spiece.model", "report/report.html")
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:20_000])

    def listed(manifest: dict) -> None:  # type: ignore[type-arg]
        for each in manifest["output"]["files"]:
            if each["name"] in names:
                each |= asdict(digest_file(folder / each["name"], each["name"],
                                           is_weight=each["is_weight"]))  # fmt: skip

    edit(folder, listed)
    return folder


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small, tmp_path / "demo-nf4")


def here(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def there(hub: Loopback, repo: str = REPO) -> dict[str, bytes | None]:
    return {k: v for k, v in hub.repositories[repo].files.items() if k != ".gitattributes"}


def edit(folder: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    manifest = read_manifest(folder)
    change(manifest)
    write_manifest(manifest, folder)


# a push that goes well


def test_a_signed_folder_is_not_changed(folder: Path) -> None:
    (folder / SIGNATURE).write_text("{}")
    assert "remove the signature" in refused(2, "publish", folder, REPO, "--yes")


def test_a_folder_is_signed_as_it_is_published(hub: Loopback, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    private, public = make_key(tmp_path, "mine")
    assert SIGNATURE not in [each["name"] for each in quantkit.publish(folder, REPO)["files"]]
    done = quantkit.publish(folder, REPO, sign=private)
    assert (done["signed"], done["sent"]) == (True, [SIGNATURE])
    assert there(hub) == here(folder)
    assert quantkit.verify(folder, public_key=public)["signature"] == "valid"
    assert quantkit.verify(REPO, public_key=public)["signature"] == "valid"
    head = hub.repositories[REPO].branches["main"]
    again = quantkit.publish(folder, REPO, sign=private)
    assert (again["sent"], again["commit"]) == ([], head), "signed already, by this key"
    (folder / SIGNATURE).unlink()
    with pytest.raises(UsageError, match="what is there is signed, and this is not"):
        quantkit.publish(folder, REPO)
    assert quantkit.publish(folder, REPO, overwrite=True)["removed"] == [SIGNATURE]
    assert there(hub) == here(folder)


def test_a_folder_is_published_private_and_whole(hub: Loopback, folder: Path) -> None:
    done = quantkit.publish(folder, REPO)
    repository = hub.repositories[REPO]
    assert there(hub) == here(folder)
    assert repository.private
    assert list(repository.branches) == ["main"], "nothing is left waiting"
    assert repository.log == [TITLE, "initial commit"]
    assert done["commit"] == repository.branches["main"]
    assert done["url"] == f"{hub.url}/{REPO}"
    assert done["sent_bytes"] == done["read_back_bytes"] == sum(map(len, here(folder).values()))
    assert quantkit.verify(folder)["status"] == "verified"
    assert quantkit.verify(REPO)["status"] == "verified"


def test_the_published_card_is_valid_and_says_who_and_where(hub: Loopback, folder: Path) -> None:
    from huggingface_hub import ModelCard

    quantkit.publish(folder, REPO)
    card = ModelCard((there(hub)["README.md"] or b"").decode())
    assert card.data.to_dict()["quantized_by"] == "me"
    assert card.data.license == "apache-2.0"
    assert f'name = "{REPO}"' in card.text
    assert {each.source_url for each in card.data.eval_results} == {
        f"https://huggingface.co/{REPO}/blob/main/report/report.html"
    }


def test_large_files_take_the_tested_route(
    hub: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    before = constants.HF_HUB_DISABLE_XET
    quantkit.publish(folder, REPO)
    assert "HF_HUB_DISABLE_XET" not in os.environ
    large = [each for each in here(folder) if each.endswith((".safetensors", ".model", ".png"))]
    assert len(hub.lines("PUT /lfs/")) == len(large)
    assert hub.lines("POST /lfs-verify/")
    assert before == constants.HF_HUB_DISABLE_XET


def test_a_rerun_sends_nothing_and_commits_nothing(hub: Loopback, folder: Path) -> None:
    quantkit.publish(folder, REPO)
    head, before = hub.repositories[REPO].branches["main"], len(hub.seen)
    done = quantkit.publish(folder, REPO)
    assert (done["sent"], done["sent_bytes"], done["commit"]) == ([], 0, head)
    assert sum(each.received for each in hub.seen[before:]) == 0


def test_what_rots_on_the_hub_is_found_by_a_rerun(hub: Loopback, folder: Path) -> None:
    quantkit.publish(folder, REPO)
    objects = hub.repositories[REPO].objects
    oid = next(each for each, data in objects.items() if len(data) == 20_000)
    objects[oid] = b"\1" + objects[oid][1:]
    with pytest.raises(RemoteError, match="delete it there and run again"):
        quantkit.publish(folder, REPO)


def test_a_repository_that_somebody_just_made_public_is_left_alone(
    hub: Loopback, folder: Path
) -> None:
    made = Fault("POST /api/repos/create", before=lambda: hub.add(REPO, {"a.txt": b"theirs"}))
    hub.faults.append(made)
    with pytest.raises(HubError, match="somebody else just made it"):
        quantkit.publish(folder, REPO)
    assert there(hub) == {"a.txt": b"theirs"}


def test_a_changed_file_is_all_that_is_sent(hub: Loopback, folder: Path, tmp_path: Path) -> None:
    quantkit.publish(folder, REPO)
    edit(folder, lambda manifest: manifest.update(created="2026-01-01T00:00:00+00:00"))
    before = len(hub.seen)
    done = quantkit.publish(folder, REPO)
    assert sorted(done["sent"]) == ["README.md", "quantkit-manifest.json"]
    assert not [each for each in hub.seen[before:] if each.line.startswith("PUT")]
    assert there(hub) == here(folder)


def test_files_of_an_earlier_publication_go_and_others_files_stay_unless_overwritten(
    hub: Loopback, folder: Path
) -> None:
    quantkit.publish(folder, REPO)
    edit(folder, lambda m: m["output"]["files"].remove(
        next(each for each in m["output"]["files"] if each["name"] == "report/size.png")
    ))  # fmt: skip
    edit(folder, lambda m: m["report"].remove("report/size.png"))
    (folder / "report" / "size.png").unlink()
    assert quantkit.publish(folder, REPO)["removed"] == ["report/size.png"]
    hub.repositories[REPO].add({"mine.txt": b"keep me"})
    with pytest.raises(UsageError, match=r"mine\.txt.*--overwrite"):
        quantkit.publish(folder, REPO)
    quantkit.publish(folder, REPO, overwrite=True)
    assert there(hub) == here(folder)


@pytest.mark.parametrize("name", ["README.md", "generation_config.json"])
def test_what_was_edited_there_is_not_lost_without_a_word(
    hub: Loopback, folder: Path, name: str
) -> None:
    quantkit.publish(folder, REPO)
    written = there(hub)[name]
    assert written is not None
    hub.repositories[REPO].add({name: written + b"\n"})
    for asked in ({}, {"dry_run": True}, {"pr": True}):
        with pytest.raises(UsageError, match=rf"{name} changed there.*--overwrite"):
            quantkit.publish(folder, REPO, **asked)
    assert there(hub)[name] == written + b"\n"
    assert quantkit.publish(folder, REPO, overwrite=True)["sent"] == [name]
    assert there(hub) == here(folder)


def test_what_was_edited_there_and_here_alike_is_no_loss(hub: Loopback, folder: Path) -> None:
    quantkit.publish(folder, REPO)
    named = json.loads((folder / "generation_config.json").read_text()) | {"max_length": 7}
    (folder / "generation_config.json").write_text(json.dumps(named))
    hub.repositories[REPO].add({"generation_config.json": json.dumps(named).encode()})
    done = quantkit.publish(folder, REPO, allow_changed=True)
    assert "generation_config.json" not in done["sent"]
    assert there(hub) == here(folder)


def test_a_branch_a_pull_request_and_a_collection(hub: Loopback, folder: Path) -> None:
    quantkit.publish(folder, REPO, branch="v2")
    repository = hub.repositories[REPO]
    assert repository.log == ["initial commit"]
    assert set(repository.branches) == {"main", "v2"}
    hub.collections["me/mine-1"] = []
    done = quantkit.publish(folder, REPO, pr=True, collection="me/mine-1")
    assert repository.log == ["initial commit"]
    assert repository.requests == {1: "open"}
    assert done["url"] == f"{hub.url}/{REPO}/discussions/1"
    files = repository.commits[repository.branches["refs/pr/1"]].files
    assert files.keys() - {".gitattributes"} == here(folder).keys()
    assert hub.collections["me/mine-1"] == [REPO]
    with pytest.raises(HubError, match=r"me/none-1.*itself is published and verified"):
        quantkit.publish(folder, REPO, branch="v2", collection="me/none-1")


def test_large_files_go_in_parts(hub: Loopback, folder: Path) -> None:
    hub.part_bytes = 3_000
    quantkit.publish(folder, REPO)
    assert len(hub.lines("PUT /lfs/.*/part/")) > 4
    assert there(hub) == here(folder)


# asking first


def test_it_shows_what_it_will_push_and_asks(hub: Loopback, folder: Path, tmp_path: Path) -> None:
    before = here(folder)
    shown = json.loads(succeeded("publish", folder, REPO, "--dry-run", "--json"))
    assert shown["private"] is True
    assert {each["name"] for each in shown["files"]} == before.keys()
    assert "nobody is there to answer" in refused(2, "publish", folder, REPO)
    with pytest.raises(UsageError, match="nothing was pushed"):
        quantkit.publish(folder, REPO, confirm=lambda offer: False)
    assert hub.repositories == {}
    assert here(folder) == before, "looking changes nothing"
    said = json.loads(succeeded("publish", folder, REPO, "--yes", "--json"))
    assert said["commit"] == hub.repositories[REPO].branches["main"]


@pytest.mark.parametrize(("answer", "pushed"), [("n\n", False), ("y\n", True), ("", False)])
def test_a_person_is_asked_and_the_answer_counts(
    hub: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, pushed: bool
) -> None:
    monkeypatch.setattr("quantkit.cli.publication.someone_is_there", lambda: True)
    result = CliRunner().invoke(app, ["publish", str(folder), REPO], input=answer)
    assert "model.safetensors" in result.stderr, "it was shown"
    assert (result.exit_code == 0) is pushed
    assert bool(hub.repositories) is pushed


def test_digesting_the_files_is_told_of(hub: Loopback, folder: Path) -> None:
    heard: list[Event] = []
    quantkit.publish(folder, REPO, dry_run=True, listener=heard.append)
    told = [each for each in heard if each.stage == "verify"]
    assert told[-1].done == told[-1].total >= (folder / "model.safetensors").stat().st_size


def test_a_repository_that_is_private_stays_so_and_says_so(hub: Loopback, folder: Path) -> None:
    quantkit.publish(folder, REPO)
    heard: list[str] = []
    quantkit.publish(folder, REPO, public=True, listener=lambda event: heard.append(event.message))
    assert hub.repositories[REPO].private
    assert any("stays private" in each for each in heard)


def test_a_public_repository_is_not_published_to_by_accident(hub: Loopback, folder: Path) -> None:
    hub.add(REPO, {"README.md": b"mine"}, private=False)
    with pytest.raises(UsageError, match="say --public"):
        quantkit.publish(folder, REPO)
    quantkit.publish(folder, REPO, public=True)
    assert there(hub) == here(folder)


# what is refused, and said on the card where it is allowed


def test_a_folder_without_a_passed_gate(hub: Loopback, folder: Path) -> None:
    measured = ("perplexity", "kl_divergence", "noise_floor", "generation", "tokenizer", "reload")
    nothing = dict.fromkeys(measured) | {"by_text": [], "reasons": {"reload": "--no-gate"}}
    edit(folder, lambda m: m["gate"].update(nothing, status="not_run"))
    with pytest.raises(GateError, match=r"gate is not run.*--allow-unjudged"):
        quantkit.publish(folder, REPO)
    assert hub.repositories == {}
    quantkit.publish(folder, REPO, allow_unjudged=True)
    card = (there(hub)["README.md"] or b"").decode()
    first = card.partition("\n# ")[2][:700]
    assert "**Not judged.**" in first
    assert "its gate is not run (--allow-unjudged)" in first


def test_a_folder_that_changed_since_it_was_judged(hub: Loopback, folder: Path) -> None:
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(MismatchError, match=r"model\.safetensors has changed.*--allow-changed"):
        quantkit.publish(folder, REPO)
    quantkit.publish(folder, REPO, allow_changed=True)
    assert there(hub) == here(folder)
    assert b"model.safetensors has changed (--allow-changed)" in (there(hub)["README.md"] or b"")
    assert quantkit.verify(REPO)["status"] == "verified"


def test_what_was_changed_stays_said(hub: Loopback, folder: Path) -> None:
    """The manifest lists what was changed since; its figures are of what was judged still."""
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    quantkit.publish(folder, REPO, allow_changed=True)
    head = hub.repositories[REPO].branches["main"]
    with pytest.raises(MismatchError, match=r"config\.json has changed.*--allow-changed"):
        quantkit.publish(folder, REPO)
    assert quantkit.publish(folder, REPO, allow_changed=True)["commit"] == head
    (folder / "more.txt").write_text("x")
    said = quantkit.publish(folder, REPO, allow_changed=True)["overrides"]
    assert [each.count("--allow-changed") for each in said] == [1, 1]
    notes = quantkit.verify(folder)["notes"]
    assert notes[:-1] == [f"published although {each}" for each in said]
    assert "rests on its manifest" in notes[-1]
    for words in (b"config.json has changed (--allow", b"more.txt is not in the manifest (--allow"):
        assert words in (there(hub)["README.md"] or b"")


def test_another_model_is_not_put_under_a_models_name(hub: Loopback, folder: Path) -> None:
    quantkit.publish(folder, REPO)
    edit(folder, lambda manifest: manifest["recipe"]["method"].update(block_size=128))
    said = refused(2, "publish", folder, REPO, "--yes")
    assert "bnb-nf4 of demo-model is there" in said
    assert "by another method" in said
    quantkit.publish(folder, REPO, branch="blocks-128")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert 'from_pretrained(name, revision="blocks-128", device_map="auto")' in card
    assert "/blob/blocks-128/report/report.html" in card
    assert read_manifest(folder)["publication"]["branch"] == "blocks-128"
    quantkit.publish(folder, REPO, overwrite=True)
    assert "revision=" not in (folder / "README.md").read_text(encoding="utf-8")


def test_a_source_is_in_todays_standing_on_the_card(
    hub: Loopback, folder: Path, tmp_path: Path
) -> None:
    """What the manifest says that a registry said counts for nothing where none says so today."""

    def forge(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest["source"]["files"][0]["sha256"] = "0" * 64
        parts = manifest["source"]["fingerprint"]
        manifest["source"]["fingerprint"] = dict.fromkeys(parts, "0" * 64)
        manifest["source"]["verdict"]["repository"] = "famous/model"

    edit(folder, forge)
    quantkit.publish(folder, REPO)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "**verified**" in card
    assert "**unlisted** by the registry of whoever published it" in card
    assert "base_model" not in card


def test_a_source_that_a_registry_knows_since_has_its_name_on_the_card(
    hub: Loopback, folder: Path
) -> None:
    edit(folder, lambda manifest: manifest["source"].update(
        status="unlisted", verdict=asdict(Verdict("unlisted"))))  # fmt: skip
    quantkit.publish(folder, REPO)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "base_model: quantkit/demo\n" in card
    assert "Source: [quantkit/demo](https://huggingface.co/quantkit/demo)" in card
    assert "None" not in card


def claim_another(folder: Path, registry: Path, by: str = "source") -> None:
    """Have the source, or its recipe, say that it is a repository, of which a registry lists other
    weights."""
    if by == "source":
        edit(folder, lambda manifest: manifest["source"].update(repo_id="own/model"))
    else:
        edit(folder, lambda manifest: manifest["recipe"]["source"].update(repo="own/model"))
    registry.mkdir()
    (registry / "own.toml").write_text(
        'repository = "own/model"\n[[releases]]\nstatus = "current"\nstated_at = "nowhere"\n'
        f'[[releases.files]]\nname = "pytorch_model.bin"\nsha256 = "{"0" * 64}"\n'
    )


@pytest.mark.parametrize("by", ["source", "recipe"])
def test_a_source_that_is_not_what_it_says(
    hub: Loopback, folder: Path, tmp_path: Path, by: str
) -> None:
    claim_another(folder, tmp_path / "registry", by)
    for verb in (("verify", folder), ("publish", folder, REPO, "--yes", "--allow-withdrawn")):
        assert "not own/model" in refused(3, *verb, "--checksums", tmp_path / "registry")
    assert hub.repositories == {}


def test_a_source_that_was_withdrawn_then_says_why(
    hub: Loopback, folder: Path, tmp_path: Path
) -> None:
    """Not why today's registry has it for something else."""
    claim_another(folder, tmp_path / "registry")

    def withdrawn(manifest: dict) -> None:  # type: ignore[type-arg]
        source = manifest["source"]
        source["status"] = "withdrawn"
        source["verdict"] |= {"status": "withdrawn", "reason": "it was leaked"}
        digest = next(each["sha256"] for each in source["files"] if each["is_weight"])
        entry = (tmp_path / "registry" / "own.toml").read_text().replace("0" * 64, digest)
        entry = entry.replace('"current"', '"superseded"\nreason = "there is a better one"')
        (tmp_path / "registry" / "own.toml").write_text(entry)

    edit(folder, withdrawn)
    with pytest.raises(WithdrawnError, match="its source was withdrawn: it was leaked"):
        quantkit.publish(folder, REPO, checksums=[tmp_path / "registry"])


def test_a_source_that_was_withdrawn_since(hub: Loopback, folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    digest = next(each["sha256"] for each in manifest["source"]["files"] if each["is_weight"])
    registry = tmp_path / "registry"
    registry.mkdir()
    (registry / "withdrawn.toml").write_text(
        'repository = "quantkit/demo"\n[[releases]]\ndate = "2026-01-01"\nstatus = "withdrawn"\n'
        'reason = "a test says so"\nstated_at = "nowhere"\n[[releases.files]]\n'
        f'name = "pytorch_model.bin"\nsha256 = "{digest}"\n'
    )
    with pytest.raises(WithdrawnError, match=r"a test says so.*--allow-withdrawn"):
        quantkit.publish(folder, REPO, checksums=[registry])
    assert hub.repositories == {}
    quantkit.publish(folder, REPO, checksums=[registry], allow_withdrawn=True)
    assert b"a test says so (--allow-withdrawn)" in (there(hub)["README.md"] or b"")


def test_a_licence_that_forbids_it_or_none_at_all(hub: Loopback, folder: Path) -> None:
    def stated(licence: str) -> None:
        edit(folder, lambda m: m["source"]["licence"].update(id=licence))

    stated("cc-by-nc-nd-4.0")
    with pytest.raises(LicenceError, match=r"lets no derivative be shared.*--allow-licence"):
        quantkit.publish(folder, REPO)
    with pytest.raises(UsageError, match="states cc-by-nc-nd"):
        quantkit.publish(folder, REPO, licence="mit")
    stated("")
    with pytest.raises(LicenceError, match=r"states no licence.*--licence"):
        quantkit.publish(folder, REPO)
    for name in ("Foo Bar", "mit\n# anything", ""):
        with pytest.raises(UsageError, match=r"--licence .*expected the Hub's name"):
            quantkit.publish(folder, REPO, licence=name)
    quantkit.publish(folder, REPO, licence="MIT")
    card = (there(hub)["README.md"] or b"").decode()
    assert card.startswith("---\nlicense: mit\n")
    assert "as whoever published this states" in card


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    "branch",
    [
        "quantkit-upload",
        "",
        "a b",
        "a..b",
        "-x",
        "refs/heads/x",
        "x/",
        "x\ny",
        "x.lock",
        "x.lock/y",
        "HEAD",
    ],
)
def test_a_branch_that_cannot_be(
    hub: Loopback, folder: Path, branch: str, dry: tuple[str, ...]
) -> None:
    before = here(folder)
    said = refused(2, "publish", folder, REPO, f"--branch={branch}", "--yes", *dry)
    assert "--branch" in said
    assert (hub.seen, here(folder)) == ([], before)


@pytest.mark.parametrize("name", ["strange\nname", "esc\x1b[31m", "report/a\u202eb"])
def test_a_name_that_a_terminal_would_act_on_is_not_published(
    hub: Loopback, folder: Path, name: str
) -> None:
    (folder / name).write_text("x")
    said = refused(2, "publish", folder, REPO, "--allow-changed", "--yes")
    assert ascii(name)[1:-1] in said
    assert hub.seen == []


def test_what_a_link_leads_to_is_not_published(hub: Loopback, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    for name in ("notes.txt", "report/more", "README.md"):
        before = here(folder)
        kept = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        assert name in refused(2, "publish", folder, REPO, "--allow-changed", "--yes")
        (folder / name).unlink()
        if kept is not None:
            (folder / name).write_bytes(kept)
        assert here(folder) == before
    assert secret.read_text() == "mine"
    assert hub.seen == []


def test_a_changed_folder_is_signed_and_verifies_for_everyone(
    hub: Loopback, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("model_signing")
    private, public = make_key(tmp_path, "mine")
    quantkit.publish(folder, REPO, sign=private)
    (folder / "more.txt").write_text("added")
    (folder / ".DS_Store").write_text("not published")
    monkeypatch.chdir(folder.parent)
    done = quantkit.publish(folder.name, REPO, sign=private, allow_changed=True)
    names = [each["name"] for each in read_manifest(folder)["output"]["files"]]
    assert (SIGNATURE in names, "more.txt" in names, ".DS_Store" in names) == (False, True, False)
    assert done["sent"].count(SIGNATURE) == 1
    assert quantkit.verify(REPO, public_key=public)["signature"] == "valid"


def test_anothers_signature_is_not_replaced_without_a_word(
    hub: Loopback, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    mine, other = (make_key(tmp_path, name)[0] for name in ("mine", "other"))
    quantkit.publish(folder, REPO, sign=mine)
    before, seen = here(folder), len(hub.seen)
    assert "other.pem" in refused(3, "publish", folder, REPO, "--sign", other, "--yes")
    assert (here(folder), len(hub.seen)) == (before, seen)
    quantkit.publish(folder, REPO, sign=other, allow_changed=True)


def test_the_weights_are_read_once_for_a_signature(
    hub: Loopback, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("model_signing")
    from huggingface_hub import lfs
    from model_signing._hashing import io as hashing

    private, public = make_key(tmp_path, "mine")
    read: list[str] = []

    def noting(owner: object, name: str, who: str, path_of: Callable[..., object]) -> None:
        real = getattr(owner, name)

        def noted(*args: object, **more: object) -> object:
            if Path(str(path_of(*args))).name == "model.safetensors":
                read.append(who)
            return real(*args, **more)

        monkeypatch.setattr(owner, name, noted)

    monkeypatch.setattr(pushing, "_HELD", 1000)  # smaller files are sent from memory
    noting(lineage, "digest_file", "quantkit", lambda path, *_: path)
    noting(readiness, "digest_file", "quantkit again", lambda path, *_: path)
    noting(hashing.SimpleFileHasher, "compute", "model-signing", lambda self: self._file)
    noting(lfs, "sha_fileobj", "the Hub's client", lambda file, *_: file.name)
    quantkit.publish(folder, REPO, sign=private)
    assert read == ["quantkit", "the Hub's client"]
    read.clear()
    edit(folder, lambda manifest: manifest.update(created="2026-01-01T00:00:00+00:00"))
    (folder / SIGNATURE).unlink()
    quantkit.publish(folder, REPO, sign=private)
    quantkit.publish(folder, REPO, sign=private)
    assert read == ["quantkit", "quantkit"]
    assert quantkit.verify(REPO, public_key=public)["signature"] == "valid"


def test_weights_that_change_after_they_were_judged_are_neither_signed_nor_published(
    hub: Loopback, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    private, public = make_key(tmp_path, "mine")

    def agree(offer: object) -> bool:
        (folder / "model.safetensors").write_bytes(b"another")
        return True

    with pytest.raises(RemoteError, match=r"model\.safetensors is listed there with other bytes"):
        quantkit.publish(folder, REPO, sign=private, confirm=agree)
    nothing_but_the_start(hub)
    assert not open_signer(private).has_signed(folder)
    with pytest.raises(MismatchError, match=r"model\.safetensors"):
        quantkit.verify(folder, public_key=public)


def test_a_signature_that_does_not_verify_is_not_sent(
    hub: Loopback, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("model_signing")
    private, _ = make_key(tmp_path, "mine")
    monkeypatch.setattr(Signer, "sign", lambda self, at, known: (at / SIGNATURE).write_text("{}"))
    with pytest.raises(MismatchError, match="nothing was sent"):
        quantkit.publish(folder, REPO, sign=private)
    assert hub.repositories == {}


def test_a_signature_that_is_a_link_is_seen_first(
    hub: Loopback, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    private, _ = make_key(tmp_path, "mine")
    (folder / SIGNATURE).symlink_to(tmp_path / "nowhere")
    before = here(folder)
    assert SIGNATURE in refused(2, "publish", folder, REPO, "--sign", private, "--yes")
    assert (here(folder), hub.seen) == (before, [])


@pytest.mark.parametrize("missing", ["request", "source", "gate", "output"])
def test_a_manifest_that_is_not_whole(folder: Path, missing: str) -> None:
    edit(folder, lambda m: m.pop(missing))
    assert "not a whole manifest" in refused(1, "publish", folder, REPO, "--yes")


def test_a_size_that_no_card_can_show(folder: Path) -> None:
    edit(folder, lambda m: m["sizes"].update(source_bytes=10**400))
    assert "not a whole manifest" in refused(1, "publish", folder, REPO, "--yes", "--json")


def test_all_reasons_are_named_at_once(folder: Path) -> None:
    edit(folder, lambda m: m["source"]["licence"].update(id=""))
    edit(folder, lambda m: m["gate"].update(status="not_run"))
    said = refused(4, "publish", folder, REPO, "--yes")
    assert "--allow-unjudged" in said
    assert "--allow-licence" in said


@pytest.mark.parametrize(
    "name",
    ["nobody", "a/b/c", "../x", "me/a..b", "me/a--b", "", "me/日本", "me/x\n", "me/-x", "me/x.",
     "me/" + "x" * 100, "日本/x", ".me/x"],
)  # fmt: skip
def test_a_name_that_is_none(folder: Path, name: str) -> None:
    assert "OWNER/NAME" in refused(2, "publish", folder, name, "--yes")
    assert "OWNER/NAME" in refused(2, "publish", folder, name, "--dry-run")


def test_a_folder_that_quantkit_did_not_make(tmp_path: Path) -> None:
    assert "quantkit-manifest.json" in refused(2, "publish", tmp_path, REPO, "--yes")


# what can break: a clear message, and the branch has all of it or nothing

WEIGHTS = "PUT /lfs/"
FAULTS = {
    "401": (Fault("POST /api/repos", 9, 401, "Invalid credentials in Authorization header"),
            "does not accept the token"),
    "403": (Fault("POST /api/repos", 9, 403, "no rights here"), "no rights here"),
    "403 commit": (Fault("POST /api/models/.*/commit", 9, 403, "no rights here"), "no rights"),
    "409": (Fault("POST /api/models/.*/commit", 9, 409, "locked"), "busy with another"),
    "412": (Fault("POST /api/models/.*/commit/main", 9, 412, "has happened"), "somebody else"),
    "429": (Fault("POST /api/models/.*/preupload", 99, 429), "wait a few minutes"),
    "429 batch": (Fault(r"POST .*\.git/info/lfs", 99, 429), "wait a few minutes"),
    "500 batch": (Fault(r"POST .*\.git/info/lfs", 99, 500), "error of its own"),
    "500 put": (Fault(WEIGHTS, 99, 500), "error of its own"),
    "500 commit": (Fault("POST /api/models/.*/commit/main", 9, 500), "error of its own"),
    "507": (Fault(WEIGHTS, 99, 507), "no room left"),
    "dropped up": (Fault(WEIGHTS, 99, drop_after=1000), "connection broke"),
    "dropped commit": (Fault("POST /api/models/.*/commit/main", 9, drop_after=10), "broke"),
    "flipped up": (Fault(WEIGHTS, 1, flip=1000), "what the Hub gives is not what was sent"),
    "flipped small": (Fault("POST /api/models/.*/commit/quantkit", 1, flip=900),
                      "not what was sent|error of its own|connection broke"),
    "flipped down": (Fault("GET /cdn/", 99, flip=1000), "what the Hub gives is not what was sent"),
    "flipped small down": (Fault("GET /.*/config.json", 99, flip=10), "what the Hub gives is not"),
    "dropped down": (Fault("GET /cdn/", 99, drop_after=0), "connection broke"),
    "verify": (Fault("POST /lfs-verify", 9, 422, "the object is not there"), "not there"),
}  # fmt: skip


#: After these a rerun is seen to put it right.
RERUN = ("500 put", "dropped up", "dropped commit", "flipped up", "flipped small", "429 batch")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_is_said_and_leaves_the_branch_alone(
    hub: Loopback, folder: Path, fault: str
) -> None:
    broken, words = FAULTS[fault]
    hub.faults.append(Fault(**vars(broken)))
    with pytest.raises(HubError, match=words) as caught:
        quantkit.publish(folder, REPO)
    assert REPO in str(caught.value)
    assert "\n" not in str(caught.value)
    nothing_but_the_start(hub)
    if fault in RERUN:
        hub.faults.clear()
        quantkit.publish(folder, REPO)
        assert there(hub) == here(folder)
        assert list(hub.repositories[REPO].branches) == ["main"]


def nothing_but_the_start(hub: Loopback) -> None:
    if REPO in hub.repositories:
        assert hub.repositories[REPO].log == ["initial commit"]
        assert list(hub.repositories[REPO].branches) == ["main"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(WEIGHTS, 2, 500),
        Fault(WEIGHTS, 2, drop_after=5000),
        Fault("GET /cdn/", 1, flip=1000),
        Fault("GET /cdn/", 2, drop_after=1000),
        Fault(".*", 30, slow=0.05),
        Fault("POST /api/models/.*/commit/main", 1, deaf=True),
        Fault(r"POST .*\.git/info/lfs", 1, 429),
    ],
    ids=lambda each: f"{each.on} {each.status or each.drop_after or each.flip or each.slow}",
)
def test_what_mends_itself_is_got_over(hub: Loopback, folder: Path, fault: Fault) -> None:
    hub.faults.append(Fault(**vars(fault)))
    quantkit.publish(folder, REPO)
    assert there(hub) == here(folder)
    assert hub.repositories[REPO].log == [TITLE, "initial commit"]


def test_a_store_that_hashes_refuses_the_flipped_bit_itself(hub: Loopback, folder: Path) -> None:
    hub.hashing = True
    hub.faults.append(Fault(WEIGHTS, 1, flip=7))
    with pytest.raises(HubError, match="publish me/demo-nf4"):
        quantkit.publish(folder, REPO)
    nothing_but_the_start(hub)


def test_a_damaged_upload_is_removed_so_that_a_rerun_sends_it_anew(
    hub: Loopback, folder: Path
) -> None:
    hub.faults.append(Fault(WEIGHTS, 1, flip=1000))
    with pytest.raises(RemoteError, match="the damaged copy was removed there, run again"):
        quantkit.publish(folder, REPO)
    hub.seen.clear()
    quantkit.publish(folder, REPO)
    assert len(hub.lines("PUT /lfs/")) == 1, "one was damaged, the others are there"


def test_quota_is_named(hub: Loopback, folder: Path) -> None:
    hub.quota = 30_000
    with pytest.raises(HubError, match=r"no room left.*quota"):
        quantkit.publish(folder, REPO)
    nothing_but_the_start(hub)


def test_an_upload_that_broke_off_is_resumed(hub: Loopback, folder: Path) -> None:
    """What the first run got across is not sent again."""
    hub.faults.append(Fault(WEIGHTS, 99, drop_after=10, after=2))
    with pytest.raises(HubError, match="files that have arrived are not sent twice"):
        quantkit.publish(folder, REPO)
    arrived = dict(hub.repositories[REPO].objects)
    assert arrived
    hub.faults.clear()
    before = len(hub.seen)
    quantkit.publish(folder, REPO)
    put = [each for each in hub.seen[before:] if each.line.startswith("PUT")]
    assert not [each for each in put if each.line.rpartition("/")[2] in arrived]
    large = sum(map(len, hub.repositories[REPO].objects.values()))
    assert sum(each.received for each in put) == large - sum(map(len, arrived.values()))


def test_a_race_fails_and_the_other_commit_stays(hub: Loopback, folder: Path) -> None:
    quantkit.publish(folder, REPO)
    edit(folder, lambda manifest: manifest.update(created="2026-01-01T00:00:00+00:00"))
    repository = hub.repositories[REPO]
    race = Fault("GET /.*README.md", before=lambda: repository.add({"other.txt": b"x"}, "theirs"))
    hub.faults.append(race)
    with pytest.raises(HubError, match="somebody else committed"):
        quantkit.publish(folder, REPO)
    assert repository.log[0] == "theirs"


def test_what_is_committed_is_what_was_read_back(hub: Loopback, folder: Path) -> None:
    """Whatever becomes of the files here meanwhile."""
    before = here(folder)

    def change(event: Event) -> None:
        if event.stage == "read back" and event.done == event.total:
            for name in ("model.safetensors", "config.json"):
                (folder / name).write_bytes(b"another")

    with suppress(RemoteError):
        quantkit.publish(folder, REPO, listener=change)
    assert {name: there(hub)[name] for name in ("model.safetensors", "config.json")} == {
        name: before[name] for name in ("model.safetensors", "config.json")
    }


def test_an_interrupt_leaves_the_branch_alone_and_nothing_waiting(
    hub: Loopback, folder: Path
) -> None:
    def interrupt(event: Event) -> None:
        if event.stage == "read back":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantkit.publish(folder, REPO, listener=interrupt)
    nothing_but_the_start(hub)


def test_a_pull_request_that_does_not_hold_is_closed(hub: Loopback, folder: Path) -> None:
    hub.faults.append(Fault("GET /cdn/", 99, flip=1000))
    with pytest.raises(RemoteError):
        quantkit.publish(folder, REPO, pr=True)
    assert hub.repositories[REPO].requests == {1: "closed"}


def test_a_pull_request_that_nobody_verified_to_the_end_is_closed(
    hub: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **named: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing, "verify_remote", stop)
    with pytest.raises(KeyboardInterrupt):
        quantkit.publish(folder, REPO, pr=True)
    assert hub.repositories[REPO].requests == {1: "closed"}


def test_an_interrupt_leaves_the_folder_as_it_was(
    hub: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Card and manifest name the repository from then on: both, or none."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = here(folder)
    monkeypatch.setattr(amending, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        quantkit.publish(folder, REPO)
    assert here(folder) == before
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


def test_a_conversion_that_ends_meanwhile_is_not_taken_away(
    hub: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``convert --overwrite`` holds another folder beside OUT, so that both may run."""
    place, copied = staging_for(folder), amending._copy

    def beside(*given: object) -> None:
        copied(*given)  # type: ignore[arg-type]
        shutil.copytree(folder, place.partial)
        edit(place.partial, lambda manifest: manifest.update(created="just now"))
        commit(place, lambda: None)

    monkeypatch.setattr(amending, "_copy", beside)
    with pytest.raises(UsageError, match="changed while this ran"):
        quantkit.publish(folder, REPO)
    assert read_manifest(folder)["created"] == "just now"
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_this_shell_stands_in(
    hub: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match="run the command from outside"):
        quantkit.publish(".", REPO)
    assert quantkit.publish(".", REPO, dry_run=True)["status"] == "offered"


# the token


def test_no_token_and_a_token_that_may_only_read(
    hub: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with pytest.raises(HubError, match="write permission"):
        quantkit.publish(folder, REPO)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="hf auth login"):
        quantkit.publish(folder, REPO)
    assert hub.repositories == {}


@pytest.mark.parametrize("fault", ["500 put", "429 batch", "flipped up", "dropped up", "401", ""])
def test_no_token_and_no_signed_address_is_ever_seen(
    hub: Loopback, folder: Path, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    heard: list[str] = []
    log = logging.StreamHandler(stream := io.StringIO())
    root = logging.getLogger("huggingface_hub")
    root.addHandler(log)
    if fault:
        hub.faults.append(Fault(**vars(FAULTS[fault][0])))
    try:
        quantkit.publish(folder, REPO, listener=lambda event: heard.append(repr(event)))
    except QuantkitError as error:
        heard.append(str(error))
    finally:
        root.removeHandler(log)
    captured = capfd.readouterr()
    texts = [*heard, captured.out, captured.err, stream.getvalue()]
    texts += [each.decode("utf-8", "replace") for each in here(folder).values()]
    texts += [(each or b"").decode("utf-8", "replace") for r in hub.repositories.values()
              for each in r.files.values()]  # fmt: skip
    for text in texts:
        assert TOKEN not in text
        assert "SIGNEDsecret" not in text
    assert any(each.headers.get("authorization") == f"Bearer {TOKEN}" for each in hub.seen)
