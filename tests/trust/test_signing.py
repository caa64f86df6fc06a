"""Signatures by OpenSSF model-signing, with a key, offline."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commanding import refused, succeeded
from keys import make_key
from tiny import write_source

import quantkit
from quantkit.errors import MismatchError, UsageError
from quantkit.listed import weights_of
from quantkit.records import read_manifest, write_manifest
from quantkit.signatures import SIGNATURE, check_signature, open_expected
from quantkit.signing import PASSWORD, Signer, open_signer

pytest.importorskip("model_signing")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_key(folder, name) for name in ("mine", "other")}


@pytest.fixture(scope="module")
def signed(keys: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    source = write_source(folder / "source")
    succeeded(
        "convert", source, "--recipe", "bnb-nf4", "--out", folder / "out", "--no-gate",
        "--sign", keys["mine"][0],
    )  # fmt: skip
    return folder / "out"


def test_a_signature_is_checked_with_its_key(
    signed: Path, keys: dict[str, tuple[Path, Path]]
) -> None:
    assert quantkit.verify(signed)["signature"] == "not_checked"
    assert quantkit.verify(signed, public_key=keys["mine"][1])["signature"] == "valid"
    said = refused(3, "verify", signed, "--public-key", keys["other"][1])
    assert "not this key's signature" in said


def test_each_file_that_differs_is_named(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    for name in ("README.md", "config.json"):
        (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
    (copy / "added.txt").write_text("x")
    said = refused(3, "verify", copy, "--public-key", keys["mine"][1])
    assert "Extra files found in model 'copy': added.txt" in said
    assert "Hash mismatch for 'README.md'; Hash mismatch for 'config.json'; do not use" in said
    assert "Digest(" not in said


def test_a_link_into_a_cache_is_checked_too(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(signed, blobs)
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    (snapshot / ".gitattributes").write_text("added by the hub client")
    assert quantkit.verify(snapshot, public_key=keys["mine"][1])["signature"] == "valid"


def test_what_was_changed_and_sealed_again_is_found_by_the_signature(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    manifest = read_manifest(copy)
    manifest["gate"]["status"] = "passed"
    manifest["gate"]["levels"] = dict.fromkeys(manifest["gate"]["levels"], "passed")
    write_manifest(manifest, copy)
    assert quantkit.verify(copy)["gate"] == "passed", "the seal alone does not stand against this"
    said = refused(3, "verify", copy, "--public-key", keys["mine"][1])
    assert "model.sig" in said


def test_a_signature_that_should_be_there(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    (copy / "model.sig").unlink()
    assert quantkit.verify(copy)["signature"] == "absent"
    assert "expects one" in refused(3, "verify", copy, "--public-key", keys["mine"][1])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"dsseEnvelope": {}}'])
def test_a_damaged_signature(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path, content: bytes
) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    (copy / "model.sig").write_bytes(content)
    assert "model.sig" in refused(3, "verify", copy, "--public-key", keys["mine"][1])


def test_a_bad_key_is_seen_before_the_work(signed: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "key.pem"
    nothing.write_text("no key")
    out = tmp_path / "out"
    words = ("convert", signed.parent / "source", "--recipe", "bnb-nf4", "--out", out)
    assert "key.pem" in refused(2, *words, "--sign", nothing)
    assert "none.pem" in refused(2, *words, "--sign", tmp_path / "none.pem")
    assert "key.pem" in refused(2, "verify", signed, "--public-key", nothing)
    assert not out.exists()


def test_without_the_package_nothing_is_called_valid(
    signed: Path, keys: dict[str, tuple[Path, Path]]
) -> None:
    script = (
        "import sys; sys.modules['model_signing'] = None\n"
        "import quantkit\n"
        "from quantkit.errors import QuantkitError\n"
        f"assert quantkit.verify({str(signed)!r})['signature'] == 'not_checked'\n"
        "try:\n"
        f"    quantkit.verify({str(signed)!r}, public_key={str(keys['mine'][1])!r})\n"
        "except QuantkitError as error:\n"
        "    assert '[sign]' in str(error)\n"
        "else:\n"
        "    raise SystemExit('it passed')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_it_is_signed_again_only_where_the_signature_no_longer_covers_it(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = shutil.copytree(signed, tmp_path / "out")
    signature = folder / SIGNATURE
    mine, other = (open_signer(keys[name][0]) for name in ("mine", "other"))
    before = signature.read_bytes()
    mine.sign(folder)
    assert signature.read_bytes() == before
    (folder / "more.txt").write_text("a file that the signature does not name")
    mine.sign(folder)
    assert (after := signature.read_bytes()) != before
    other.sign(folder)
    assert signature.read_bytes() != after
    assert check_signature(folder, open_expected(keys["other"][1])) == "valid"


def test_a_relative_folder_is_signed_again_as_any(
    signed: Path,
    keys: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(signed, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    folder, signer = Path("out"), open_signer(keys["mine"][0])
    (folder / "README.md").write_text("changed")
    (folder / ".DS_Store").write_text("published by nobody")
    signer.sign(folder)
    assert signer.has_signed(folder)
    assert SIGNATURE not in signed_names(folder)
    assert ".DS_Store" not in bundled(folder), "nor named as ignored"
    assert check_signature(folder, open_expected(keys["mine"][1])) == "valid"


def bundled(folder: Path) -> str:
    """What a signature was made of."""
    bundle = json.loads((folder / SIGNATURE).read_text())
    return base64.b64decode(bundle["dsseEnvelope"]["payload"]).decode()


def signed_names(folder: Path) -> list[str]:
    return [each["name"] for each in json.loads(bundled(folder))["predicate"]["resources"]]


def encrypted(key: Path, path: Path, password: bytes) -> Path:
    from cryptography.hazmat.primitives import serialization as form

    private = form.load_pem_private_key(key.read_bytes(), None)
    shield = form.BestAvailableEncryption(password)
    path.write_bytes(private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, shield))
    return path


def test_an_encrypted_key_has_its_password_from_the_environment(
    signed: Path,
    keys: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(signed, tmp_path / "out")
    (folder / SIGNATURE).unlink()
    key = encrypted(keys["mine"][0], tmp_path / "key.pem", "geheim 鍵".encode())
    for absent in (None, ""):
        monkeypatch.setenv(PASSWORD, absent) if absent is not None else None
        with pytest.raises(UsageError, match=f"set its password in {PASSWORD}"):
            open_signer(key)
    monkeypatch.setenv(PASSWORD, "")
    open_signer(keys["mine"][0])
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(UsageError, match="is not its password"):
        open_signer(key)
    monkeypatch.setenv(PASSWORD, "geheim 鍵")
    open_signer(key).sign(folder)
    assert check_signature(folder, open_expected(keys["mine"][1])) == "valid"
    open_signer(keys["mine"][0])  # a key without a password needs none


def test_a_key_out_of_a_pipe_is_read_once(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = shutil.copytree(signed, tmp_path / "out")
    (folder / SIGNATURE).unlink()
    reading, writing = os.pipe()
    os.write(writing, keys["mine"][0].read_bytes())
    os.close(writing)
    try:
        open_signer(Path(f"/dev/fd/{reading}")).sign(folder)
    finally:
        os.close(reading)
    assert check_signature(folder, open_expected(keys["mine"][1])) == "valid"


def test_what_is_no_key_to_sign_with_is_named(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    for private in (rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()):
        path = tmp_path / "key.pem"
        path.write_bytes(
            private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        )
        with pytest.raises(UsageError, match="P-256, P-384, P-521"):
            open_signer(path)
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="--sign"):
            open_signer(odd)


def test_a_key_that_does_not_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    for number, opener in enumerate((open_signer, open_expected)):
        long = tmp_path / str(number)
        with long.open("wb") as file:
            file.truncate(1 << 40)  # a hole: memory would not hold it
        with pytest.raises(UsageError, match="at most 1,048,576 bytes"):
            opener(long)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_signature_is_named(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path, kind: str
) -> None:
    folder = shutil.copytree(signed, tmp_path / "out")
    path = folder / SIGNATURE
    path.unlink()
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}.get(
        kind, lambda: path.symlink_to("nowhere")
    )()
    assert SIGNATURE in refused(3, "verify", folder)
    assert SIGNATURE in refused(3, "verify", folder, "--public-key", keys["mine"][1])
    with pytest.raises(UsageError, match="remove it"):
        open_signer(keys["mine"][0]).sign(folder)


def test_what_has_no_signature_does_not_pass_with_a_key(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    (copy / "quantkit-manifest.json").unlink()
    public = keys["mine"][1]
    for folder in (copy, signed.parent / "source"):
        said = refused(3, "verify", folder, "--public-key", public)
        assert "no quantkit-manifest.json" in said
    assert "no such folder" in refused(2, "verify", tmp_path / "no", "--public-key", public)


# a signature is over all of it, and what it alone tells comes first


def sign_with_the_library(key: Path, folder: Path, signature: Path, **ignored: list[str]) -> None:
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=key)
    if ignored:
        config.set_hashing_config(hashing.Config().set_ignored_paths(**ignored))
    config.sign(folder, signature)


def test_a_signature_over_less_is_none_over_this(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Who once signed a config has not signed the weights that somebody puts beside it."""
    folder, less = shutil.copytree(signed, tmp_path / "out"), tmp_path / "less"
    less.mkdir()
    shutil.copy(folder / "config.json", less)
    key, public = keys["mine"]
    sign_with_the_library(key, less, folder / SIGNATURE)
    assert "Extra files" in refused(3, "verify", folder, "--public-key", public)
    left_out = ["model.safetensors", "quantkit-manifest.json", SIGNATURE]
    sign_with_the_library(key, folder, folder / SIGNATURE, paths=left_out)
    assert "Extra files" in refused(3, "verify", folder, "--public-key", public)
    sign_with_the_library(key, folder, folder / SIGNATURE, paths=[SIGNATURE])
    assert quantkit.verify(folder, public_key=public)["signature"] == "valid"


def test_what_the_library_says_of_a_key_is_not_on_standard_output(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = shutil.copytree(signed, tmp_path / "out")
    bundle = json.loads((folder / SIGNATURE).read_text())
    del bundle["verificationMaterial"]["publicKey"]["hint"]  # which nobody signed
    (folder / SIGNATURE).write_text(json.dumps(bundle))
    said = succeeded("verify", folder, "--public-key", keys["mine"][1], "--json")
    assert json.loads(said)["signature"] == "valid"


@pytest.mark.parametrize("wrong", ["other", "absent", "no key"])
def test_a_signature_is_judged_before_the_weights_are_read(
    signed: Path,
    keys: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    folder = shutil.copytree(signed, tmp_path / "out")
    monkeypatch.setattr("quantkit.lineage._changed_weights", None)
    public = keys["other" if wrong == "other" else "mine"][1]
    if wrong == "absent":
        (folder / SIGNATURE).unlink()
    if wrong == "no key":
        public = tmp_path / "key.pub"
        public.write_text("none")
    with pytest.raises(UsageError if wrong == "no key" else MismatchError):
        quantkit.verify(folder, public_key=public)


def test_weights_that_are_not_those_signed_are_found(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """They are read once, for the manifest, whose digests of them the signature is over."""
    folder = shutil.copytree(signed, tmp_path / "out")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    said = refused(3, "verify", folder, "--public-key", keys["mine"][1])
    assert "model.safetensors has changed" in said
    manifest = read_manifest(folder)
    for each in manifest["output"]["files"]:
        if each["is_weight"]:
            each["sha256"] = "0" * 64
    assert not open_signer(keys["mine"][0]).has_signed(folder, weights_of(manifest))


def test_digests_that_are_known_are_signed_unread(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    from model_signing import verifying

    folder = shutil.copytree(signed, tmp_path / "out")
    (folder / SIGNATURE).unlink()
    known = weights_of(read_manifest(folder))
    assert set(known) == {"model.safetensors"}
    (folder / "model.safetensors").rename(tmp_path / "away")
    key, public = keys["mine"]
    open_signer(key).sign(folder, known)
    assert open_signer(key).has_signed(folder, known)
    assert not open_signer(key).has_signed(folder)
    (tmp_path / "away").rename(folder / "model.safetensors")
    assert open_signer(key).has_signed(folder)
    plain = verifying.Config().use_elliptic_key_verifier(public_key=public)
    plain.verify(folder, folder / SIGNATURE)


def test_what_cannot_be_signed_is_named(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = shutil.copytree(signed, tmp_path / "out")
    signer: Signer = open_signer(keys["mine"][0])
    os.mkfifo(folder / "pipe")  # which nobody publishes
    (folder / "config.json").write_text("{}")
    signer.sign(folder)
    assert signer.has_signed(folder)
    (folder / "more").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=r"links in it \(more\)"):
        signer.sign(folder)
