"""``quantkit checksums list|show|add``."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from commanding import refused, succeeded
from tiny import write_source

import quantkit

FACTS = ("--repository", "own/model", "--status", "current", "--stated-at", "https://example.org")
WITHDRAWN = ("--status", "withdrawn", "--kind", "licence", "--reason", "a test says so")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_source(tmp_path_factory.mktemp("verb") / "source", container="torch", shards=2)
    (folder / "LICENSE").write_text("Do what you like.")
    (folder / "NOTICE").write_text("")
    return folder


def test_list_and_show() -> None:
    listed = json.loads(succeeded("checksums", "list", "--json"))
    assert listed == json.loads(succeeded("checksums", "--json"))
    shown = json.loads(succeeded("checksums", "show", "quantkit/demo", "--json"))
    assert shown == json.loads(succeeded("checksums", "quantkit/demo"))
    assert shown["entries"] == [e for e in listed["entries"] if e["repository"] == "quantkit/demo"]
    assert "withdrawn (licence)" in " ".join(succeeded("checksums").split())


def test_an_unknown_one_is_named() -> None:
    assert "no/such" in refused(2, "checksums", "show", "no/such")
    assert "no/such" in refused(2, "checksums", "no/such", "--json")


def test_add_prints_an_entry_that_is_read_again(source: Path, tmp_path: Path) -> None:
    text = succeeded("checksums", "add", source, *FACTS, "--alias", "old/name", "--licence", "MIT")
    (release,) = tomllib.loads(text)["releases"]
    files = {each["name"]: each for each in release["files"]}
    assert set(files) == {path.name for path in source.iterdir()} - {"NOTICE"}
    for name, each in files.items():
        raw = (source / name).read_bytes()
        assert each["sha256"] == hashlib.sha256(raw).hexdigest()
        assert each["bytes"] == len(raw)
        assert each.get("md5") == (hashlib.md5(raw).hexdigest() if name.endswith(".bin") else None)
    assert release["fingerprint"] == quantkit.verify(source)["fingerprint"]

    (tmp_path / "entry.toml").write_text(text)
    found = quantkit.verify(source, repo="OLD/name", checksums=[tmp_path])
    assert (found["status"], found["verdict"]["repository"]) == ("verified", "own/model")


@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_every_file_that_is_read_is_digested(tmp_path: Path, container: str) -> None:
    folder = write_source(tmp_path / "source", container=container, shards=2)
    (folder / "LICENSE").write_text("Do what you like.")
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    found = {each["name"]: each["sha256"] for each in quantkit.verify(folder)["files"]}
    assert found == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
    }


def test_one_folder_alone_is_one_in_the_manifest_too(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    made = quantkit.convert(
        source, "fp16", tmp_path / "out", no_gate=True, checksums=str(tmp_path / "mine")
    )
    assert made["request"]["checksums"] == ["mine"]
    assert "--checksums mine" in (tmp_path / "out" / "README.md").read_text()


def test_a_name_that_no_entry_has_holds_nothing(source: Path) -> None:
    assert "no entry of the registry has that name" in refused(
        2, "verify", source, "--repo", "own/modle"
    )


def test_an_entry_that_cannot_be_written_is_as_it_was(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "entry.toml"
    succeeded("checksums", "add", source, *FACTS, "--date", "2026-01-01", "--into", path)
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = ("checksums", "add", source, *FACTS, "--date", "2026-02-02", "--into", path)
    assert "No space" in refused(1, *words)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["entry.toml"]


def test_a_licence_that_is_no_utf8(source: Path, tmp_path: Path) -> None:
    into = tmp_path / "entry.toml"
    odd = os.fsdecode(b"m\xfft")
    said = refused(2, "checksums", "add", source, *FACTS, "--licence", odd, "--into", into)
    assert "--licence" in said
    assert not into.exists()


def test_add_appends_a_release_and_keeps_what_was_written(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "entry.toml"
    succeeded("checksums", "add", source, *FACTS, "--date", "2026-01-01", "--into", path)
    path.write_text("# a remark\n" + path.read_text())
    before = path.read_text()
    made = json.loads(
        succeeded(
            "checksums", "add", source, *FACTS, "--date", "2026-02-02", "--into", path, "--json"
        )
    )
    assert path.read_text().startswith(before.rstrip())
    assert [each["date"] for each in made["entry"]["releases"]] == ["2026-01-01", "2026-02-02"]
    words = ("checksums", "add", source, "--status", "current", "--stated-at", "https://x.org")
    assert "is of own/model" in refused(2, *words, "--repository", "own/other", "--into", path)


def test_what_does_not_hold_to_the_schema_is_not_written(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "entry.toml"
    words = ("checksums", "add", source, *FACTS, "--into", path)
    assert "date" in refused(2, *words, "--date", "yesterday")
    assert "date" in refused(2, *words, "--date", "2026-02-31")
    assert "date" in refused(2, *words, "--date", "20260201")
    assert "printable line" in refused(2, *words, "--advice", "two\nlines")
    assert "stated_at" in refused(2, *words, "--stated-at", "not an address")
    assert not path.exists()


def test_quotes_and_backslashes_come_back(source: Path, tmp_path: Path) -> None:
    reason = 'it said "C:\\model" — 公開停止'
    text = succeeded("checksums", "add", source, *FACTS, *WITHDRAWN, "--reason", reason)
    assert tomllib.loads(text)["releases"][0]["reason"] == reason


def test_no_checkpoint_is_no_entry(tmp_path: Path) -> None:
    assert "config.json" in refused(1, "checksums", "add", tmp_path, *FACTS)
    assert "no such folder" in refused(2, "checksums", "add", tmp_path / "none", *FACTS)


def test_what_is_listed_as_good_is_not_withdrawn_beside_it(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    words = ("checksums", "add", source, *FACTS, "--into", path, "--date")
    succeeded(*words, "2026-01-01")
    before = path.read_text()
    said = refused(2, *words, "2026-02-02", *WITHDRAWN)
    assert "release of 2026-01-01" in said
    assert "change the status" in said
    assert "already" in refused(2, *words, "2026-01-01")
    assert path.read_text() == before


def test_what_is_listed_as_withdrawn_is_not_good_beside_it(source: Path, tmp_path: Path) -> None:
    """Else the registry would spare it: the withdrawal would be gone without a word."""
    path = tmp_path / "own.toml"
    words = ("checksums", "add", source, *FACTS, "--into", path, "--date")
    succeeded(*words, "2026-01-01", *WITHDRAWN)
    refused(3, "verify", source, "--checksums", tmp_path)
    for status in ("current", "superseded"):
        said = refused(2, *words, "2026-02-02", "--status", status)
        assert "as the withdrawn release of 2026-01-01" in said
    refused(3, "verify", source, "--checksums", tmp_path)


@pytest.mark.parametrize("known", ["md5", "fingerprint"])
def test_weights_are_the_same_by_whatever_an_entry_states(
    source: Path, tmp_path: Path, known: str
) -> None:
    path = tmp_path / "own.toml"
    words = ("checksums", "add", source, *FACTS, "--into", path, "--date")
    succeeded(*words, "2026-01-01")
    head, fingerprint, files = re.split(r"(?=\[releases.fingerprint\])|(?=\[\[releases.files)",
                                        path.read_text(), maxsplit=2)  # fmt: skip
    files = re.sub('sha256 = "[^"]*"\n(?=md5)', "", files)
    path.write_text(head + (files if known == "md5" else fingerprint))
    assert "change the status" in refused(2, *words, "2026-02-02", *WITHDRAWN)


def test_a_release_that_got_in_meanwhile_stays(source: Path, tmp_path: Path) -> None:
    from quantkit.registering import check_request, describe_release, entry_text

    path = tmp_path / "own.toml"
    facts = dict.fromkeys(("kind", "reason"), "") | {
        "date": "2026-02-02", "status": "current", "stated_at": "https://example.org",
    }  # fmt: skip
    asked = check_request("own/model", facts, into=path)
    succeeded("checksums", "add", source, *FACTS, "--into", path, "--date", "2026-01-01")
    text = entry_text(asked, describe_release(source, facts))
    dates = [each["date"] for each in tomllib.loads(text)["releases"]]
    assert dates == ["2026-01-01", "2026-02-02"]


def test_another_shard_may_be_withdrawn(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    words = ("--into", path, "--date")
    succeeded("checksums", "add", source, *FACTS, *words, "2026-01-01")
    other = write_source(tmp_path / "other", container="torch", shards=2, seed=5)
    succeeded("checksums", "add", other, *FACTS, *WITHDRAWN, *words, "2026-02-02")
    refused(3, "verify", other, "--checksums", tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--status", "withdrawn", "--kind", "leak"), "needs --reason"),
        (("--status", "withdrawn", "--reason", "x"), "needs --kind"),
        (("--kind", "leak"), "drop it"),
        (("--reason", "x"), "drop it"),
        (("--repository", "model"), "OWNER/NAME"),
        (("--repository", "a/b/c"), "OWNER/NAME"),
        (("--repository", "a/\x1bb"), "OWNER/NAME"),
        (("--alias", "a\nb/c"), "OWNER/NAME"),
        (("--into", "entry.txt"), ".toml"),
        (("--into", "no/such/entry.toml"), "no folder no/such"),
        (("--into", "/dev/zero"), ".toml"),
    ],
)
def test_what_is_no_entry_is_seen_before_the_work(words: tuple[str, ...], said: str) -> None:
    assert said in refused(2, "checksums", "add", "no-such-folder", *FACTS, *words)


def test_an_entry_that_is_there_keeps_its_head(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    add = ("checksums", "add", source, *FACTS, "--into", path, "--alias", "old/name", "--date")
    succeeded(*add, "2026-01-01", "--licence", "mit")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert "--licence" in refused(2, *add, "2026-02-02", "--licence", "apache-2.0")
    assert "--alias new/name" in refused(2, *add, "2026-02-02", "--alias", "new/name")
    succeeded(*add, "2026-02-02", "--licence", "mit")
    path.unlink()
    os.mkfifo(path)
    assert "named pipe" in refused(2, *add, "2026-03-03")
