"""``verify`` on an output: its own files, the small ones first, then where it came from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from commanding import command, refused, succeeded
from tiny import write_source
from typer.testing import CliRunner

import quantkit
from quantkit.cli.app import app
from quantkit.digests import digest_file
from quantkit.errors import MismatchError, SourceError, WithdrawnError
from quantkit.records import is_sealed, read_manifest, write_manifest
from quantkit.types import Event


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("lineage") / "source")


@pytest.fixture(scope="module")
def saved(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lineage") / "out"
    quantkit.convert(source, "bnb-nf4", out, no_gate=True)
    return out


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def withdraw(source: Path, folder: Path, *, by: str) -> Path:
    """A registry of today, that knows the source by its files or by its tensors alone."""
    folder.mkdir()
    text = succeeded(
        "checksums", "add", source, "--repository", "own/model", "--status", "withdrawn",
        "--date", "2026-01-02", "--kind", "licence", "--reason", "its data was not free",
        "--stated-at", "https://example.org/withdrawn",
    )  # fmt: skip
    head, print_, files = text.partition("[releases.fingerprint]")
    fingerprint, first, files = files.partition("[[releases.files]]")
    kept = head + print_ + fingerprint if by == "fingerprint" else head + first + files
    (folder / "own.toml").write_text(kept)
    return folder


@pytest.mark.parametrize("by", ["files", "fingerprint"])
def test_a_source_withdrawn_since_is_reported(
    source: Path, saved: Path, tmp_path: Path, by: str
) -> None:
    assert quantkit.verify(saved)["status"] == "unlisted"
    registry = withdraw(source, tmp_path / "registry", by=by)
    said = refused(3, "verify", saved, "--checksums", registry)
    assert "its source" in said
    assert "its data was not free" in said
    with pytest.raises(WithdrawnError):
        quantkit.verify(saved, checksums=[registry])
    found = quantkit.verify(saved, checksums=[registry], allow_withdrawn=True)
    assert found["status"] == "withdrawn"


def test_the_manifest_names_the_sources_tensors(source: Path, saved: Path) -> None:
    assert read_manifest(saved)["source"]["fingerprint"] == quantkit.verify(source)["fingerprint"]


# which files differ, and when it is said


def test_small_files_are_told_of_before_the_large_are_read(copy: Path) -> None:
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    heard: list[Event] = []
    with pytest.raises(MismatchError) as caught:
        quantkit.verify(copy, listener=heard.append)
    assert "config.json has changed" in str(caught.value)
    assert "model.safetensors has changed" in str(caught.value)
    first = next(at for at, each in enumerate(heard) if each.message)
    assert "config.json has changed" in heard[first].message
    assert "model.safetensors" not in heard[first].message
    size = (copy / "model.safetensors").stat().st_size
    assert (heard[-1].done, heard[-1].total) == (size, size)
    assert first < len(heard) - 1


def test_small_files_are_told_of_while_the_large_are_read(copy: Path, tmp_path: Path) -> None:
    """A whole process, beside weights that take it longer: 6 GB of holes."""
    if os.getloadavg()[0] > 2 * (os.cpu_count() or 1):
        pytest.skip("the machine is too busy to time anything")
    (copy / "tokenizer.json").write_text("{}")
    large = copy / "model.safetensors"
    manifest = read_manifest(copy)
    for each in manifest["output"]["files"]:
        if each["name"] == large.name:
            each["bytes"] = 6 << 30
    write_manifest(manifest, copy)
    with large.open("r+b") as file:
        file.truncate(6 << 30)
    process = subprocess.Popen(command("verify", copy), stderr=subprocess.PIPE)
    assert process.stderr is not None
    line = process.stderr.readline()
    ended = process.poll()
    process.kill()
    process.wait()
    assert b"tokenizer.json is not in the manifest" in line
    assert ended is None, "it had read the weights before"


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/../../b", "a\nb", "./a", "a//b"]
)
def test_names_that_lead_out_of_the_folder_are_refused(copy: Path, name: str) -> None:
    manifest = read_manifest(copy)
    manifest["output"]["files"][0]["name"] = name
    write_manifest(manifest, copy)
    with pytest.raises(SourceError, match="leads elsewhere"):
        quantkit.verify(copy)


@pytest.mark.parametrize("where", ["output", "source"])
@pytest.mark.parametrize("name", ["", 5, "名" * 100, "x" * 300, "x/" * 3000 + "x"], ids=range(5))
def test_names_that_no_file_has_are_refused(copy: Path, name: object, where: str) -> None:
    manifest = read_manifest(copy)
    manifest[where]["files"][0]["name"] = name
    write_manifest(manifest, copy)
    with pytest.raises(SourceError, match=rf"{where}\.files\[0\]\.name: expected a name"):
        quantkit.verify(copy)


def about_the_source(note: str) -> bool:
    """Not that nobody has signed, which stands with every folder that nobody has."""
    return "rests on its manifest" not in note


def test_a_changed_manifest_says_so_itself(copy: Path) -> None:
    path = copy / "quantkit-manifest.json"
    path.write_text(path.read_text().replace('"not_run"', '"passed"'))
    with pytest.raises(MismatchError, match=r"quantkit-manifest\.json has changed"):
        quantkit.verify(copy)


def test_options_that_say_nothing_here_are_refused(copy: Path, source: Path) -> None:
    assert "--repo" in refused(2, "verify", copy, "--repo", "own/model")
    assert "--revision" in refused(2, "verify", copy, "--revision", "main")
    assert "--revision" in refused(2, "verify", source, "--revision", "main")


def test_a_release_that_only_an_md5_tells_is_told_of(copy: Path, tmp_path: Path) -> None:
    (each,) = [f for f in read_manifest(copy)["source"]["files"] if f["is_weight"]]
    (tmp_path / "later.toml").write_text(
        'repository = "own/model"\n[[releases]]\nstatus = "withdrawn"\nkind = "licence"\n'
        'reason = "its licence"\nstated_at = "https://example.org"\n[[releases.files]]\n'
        f'name = "{each["name"]}"\nmd5 = "{"0" * 32}"\n'
    )
    assert each["md5"] is None
    (said,) = filter(about_the_source, quantkit.verify(copy, checksums=[tmp_path])["notes"])
    assert "by its MD5 alone" in said
    manifest = read_manifest(copy)
    for file in manifest["source"]["files"]:
        file["md5"] = "1" * 32
    write_manifest(manifest, copy)
    said = "; ".join(quantkit.verify(copy, checksums=[tmp_path])["notes"])
    assert "by its MD5 alone" not in said, "it states one: the registry was asked"


def test_what_git_and_the_hub_client_leave_behind_is_no_stray(copy: Path) -> None:
    for name in (".git", ".cache"):
        (copy / name / "huggingface").mkdir(parents=True)
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert quantkit.verify(copy)["kind"] == "output"
    (copy / ".hidden").write_text("x")
    with pytest.raises(MismatchError, match=r"says: \.hidden is not in the manifest"):
        quantkit.verify(copy)


def test_a_manifest_that_contradicts_itself_proves_nothing(copy: Path) -> None:
    manifest = read_manifest(copy)
    hollow = {**manifest["output"], "files": []}
    write_manifest({**manifest, "output": hollow}, copy)
    with pytest.raises(MismatchError, match="lists no weights"):
        quantkit.verify(copy)
    levels = dict.fromkeys(manifest["gate"]["levels"], "passed") | {"perplexity": "failed"}
    write_manifest({**manifest, "gate": {"status": "passed", "levels": levels}}, copy)
    with pytest.raises(MismatchError, match="its gate passed, and the perplexity level failed"):
        quantkit.verify(copy)
    levels |= {"perplexity": "passed", "reload": "not_run"}
    write_manifest({**manifest, "gate": {"status": "passed", "levels": levels}}, copy)
    with pytest.raises(MismatchError, match="its gate passed, and the reload level did not run"):
        quantkit.verify(copy)


def test_a_fingerprint_that_is_not_compared_is_told_of(copy: Path) -> None:
    assert [*map(about_the_source, quantkit.verify(copy)["notes"])] == [False]
    manifest = read_manifest(copy)
    del manifest["source"]["fingerprint_form"]
    write_manifest(manifest, copy)
    assert "an earlier kind" in " ".join(succeeded("verify", copy).split())
    del manifest["source"]["fingerprint"]
    write_manifest(manifest, copy)
    assert "no fingerprint" in quantkit.verify(copy)["notes"][0]


@pytest.mark.parametrize("value", ["zz", 3, None, {}, {"tensors": 3, "values": 3, "matrices": 3}])
def test_a_fingerprint_that_is_none_is_named(copy: Path, value: object) -> None:
    manifest = read_manifest(copy)
    manifest["source"]["fingerprint"] = value
    write_manifest(manifest, copy)
    assert "source.fingerprint" in refused(1, "verify", copy)


@pytest.mark.parametrize("value", [5, None, "zz", "A" * 64])
@pytest.mark.parametrize("place", ["source", "output"])
def test_a_digest_that_is_none_is_named(copy: Path, place: str, value: object) -> None:
    manifest = read_manifest(copy)
    manifest[place]["files"][0]["sha256"] = value
    write_manifest(manifest, copy)
    assert f"{place}.files[0].sha256" in refused(1, "verify", copy)
    manifest["source"]["files"] = []
    write_manifest(manifest, copy)
    assert "source.files" in refused(1, "verify", copy)


@pytest.mark.parametrize("value", ['{"name": NaN, "version": "1"}', r'{"name": "\ud800"}', "3"])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_manifest_that_cannot_be_shown_is_refused(
    copy: Path, value: str, as_json: list[str]
) -> None:
    place = copy / "quantkit-manifest.json"
    text = json.dumps({**json.loads(place.read_text()), "tool": "HERE"}, indent=2)
    open_seal = re.sub(r'"seal": "\w+"', f'"seal": "{"0" * 64}"', text.replace('"HERE"', value))
    seal = hashlib.sha256(f"{open_seal}\n".encode()).hexdigest()
    place.write_text(open_seal.replace("0" * 64, seal) + "\n")
    assert is_sealed(place.read_bytes())
    assert "manifest" in refused(1, "verify", copy, *as_json)


def test_names_do_not_reach_the_terminal_as_they_are(copy: Path) -> None:
    (copy / "a\x1b[31m\nb").write_text("x")
    result = CliRunner().invoke(app, ["verify", str(copy)])
    assert result.exit_code == 3
    assert "\x1b" not in result.output
    assert result.stderr.count(r"a\x1b[31m\nb is not in the manifest") == 2


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing"])
def test_a_manifest_that_is_no_file_is_named(copy: Path, kind: str) -> None:
    path = copy / "quantkit-manifest.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    assert path.name in refused(1, "verify", copy)


def test_folders_in_folders_of_the_manifest_are_its_own(copy: Path) -> None:
    (copy / "a" / "b").mkdir(parents=True)
    (copy / "a" / "b" / "c.txt").write_text("x")
    manifest = read_manifest(copy)
    manifest["output"]["files"].append(asdict(digest_file(copy / "a/b/c.txt", "a/b/c.txt")))
    write_manifest(manifest, copy)
    assert quantkit.verify(copy)["kind"] == "output"
    (copy / "a" / "more.txt").write_text("x")
    (copy / "a" / "more").mkdir()
    said = refused(3, "verify", copy)
    assert "a/more is no file of the manifest; a/more.txt is not in the manifest" in said


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(MismatchError, match=f"says: {name} is missing; fetch it again"):
        quantkit.verify(copy)


def test_a_withdrawn_source_is_told_of_before_the_weights_are_read(
    source: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = withdraw(source, tmp_path / "registry", by="files")
    monkeypatch.setattr("quantkit.lineage._changed_weights", None)
    with pytest.raises(WithdrawnError):
        quantkit.verify(saved, checksums=[registry])
