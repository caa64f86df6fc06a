"""A signature over a whole output, as it lies there: whose it is, and over what.

By OpenSSF model-signing, offline. The package is optional (the extra ``sign``);
without it a signature that is there is reported as not checked, never as valid.
"""

from __future__ import annotations

import ast
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from quantkit.errors import MismatchError, SourceError, UsageError, on_one_line, printable
from quantkit.given import kind_of, read_given

SIGNATURE = "model.sig"

INSTALL = "install quantkit with its extra: pip install '.[sign]' in a checkout"

#: No key in PEM, certificates before it included, comes near so many bytes.
LONGEST_KEY = 1 << 20

#: What git, the hub client and a run in progress keep in a folder.
_IGNORED = (SIGNATURE, ".cache", "quantkit-staging.json")

#: SHA-256 by name, of files that somebody else holds to them: they are not read here.
Known = Mapping[str, str]

NOTHING: Known = MappingProxyType({})


def visible(folder: Path) -> Iterator[tuple[str, Path]]:
    """All that is in ``folder`` and not hidden, by its name there."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), path


class Visible:
    """How the library is to hash a folder: all but hidden files, whose very names it would
    otherwise write into the signature as ignored. Files with ``known`` digests are not read."""

    def __init__(self, known: Known, *, links: bool) -> None:
        self._known = known
        self._links = links

    def add_ignored_paths(self, **named: Any) -> None:
        """Add none: whatever a signature says that it leaves out, it must name every file here."""

    def hash(self, folder: Path, *, files_to_hash: Any = None) -> Any:
        from model_signing import hashing, manifest

        config = hashing.Config().set_allow_symlinks(self._links).set_ignored_paths(paths=_IGNORED)
        read = config.hash(folder, files_to_hash=[*self._to_read(folder)])
        form = manifest.SerializationType.from_args(read.serialization_type)
        digests = {each.identifier: each.digest for each in read.resource_descriptors()}
        for name, digest in self._known.items():
            made = manifest.hashing.Digest("sha256", bytes.fromhex(digest))
            digests.setdefault(name, made)
        items = [form.new_item(name, digest) for name, digest in digests.items()]
        return manifest.Manifest(folder.name, items, form)

    def _to_read(self, folder: Path) -> Iterator[Path]:
        for name, path in visible(folder):
            if path.is_file() and name not in self._known:
                yield path


def refuse_unsignable(folder: Path) -> None:
    """See that ``folder`` can be signed, before the work that the signature is to end.

    Raises:
        UsageError: there is a link, a folder or a pipe in the signature's place, or another
            link in the folder.
    """
    path = folder / SIGNATURE
    if path.is_symlink():
        raise UsageError(f"{path}: a link, and signing would write to where it leads; remove it")
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"{path}: {kind_of(path.stat().st_mode)}, expected a file; remove it")
    if links := [name for name, each in visible(folder) if each.is_symlink()]:
        raise UsageError(
            f"{folder}: cannot be signed: links in it ({', '.join(map(printable, links[:5]))}); "
            "put the files there that they lead to (cp -rL)"
        )


def is_signed(folder: Path) -> bool:
    """Whether there is a ``model.sig``, which may be a link into a cache.

    Raises:
        MismatchError: what is there is no file.
    """
    path = folder / SIGNATURE
    if path.is_file():
        return True
    if os.path.lexists(path):
        kind = kind_of(path.stat().st_mode) if path.exists() else "a link to nothing"
        raise MismatchError(f"{path}: {kind}, expected a signature's file; fetch it again")
    return False


@dataclass(frozen=True)
class Expected:
    """A public key that has been read, whose signature is expected. ``key`` is its name."""

    config: Any
    key: Path

    def check(self, folder: Path, known: Known = NOTHING) -> None:
        """Hold ``folder`` to its signature: by this key, over every visible file.

        Raises:
            MismatchError: there is none, or it is not this key's, or not over these bytes.
        """
        if not is_signed(folder):
            raise MismatchError(
                f"{folder}: no {SIGNATURE}, and --public-key {self.key} expects one; ask the "
                "publisher, or drop the option"
            )
        try:
            hold_to_signature(folder, self.config, known)
        except MismatchError as error:
            raise MismatchError(f"{error}; do not use the folder") from error


def open_expected(key: Path) -> Expected:
    """Read a public key, once: it may come out of a pipe.

    Raises:
        SourceError: model-signing is not installed.
        UsageError: the key cannot be read.
    """
    what = f"--public-key {key}"
    public = read_given(key, what, pipe=True, most=LONGEST_KEY)
    try:
        return Expected(verifier_of(public, what), key)
    except ImportError as error:
        raise SourceError(
            f"{what}: no signature can be checked without model-signing ({error}); {INSTALL}"
        ) from error


def check_signature(folder: Path, expected: Expected | None, known: Known = NOTHING) -> str:
    """``absent``, ``not_checked`` (no key was given) or ``valid``.

    Raises:
        MismatchError: as :meth:`Expected.check`; or what is there is no file.
    """
    if expected is None:
        return "not_checked" if is_signed(folder) else "absent"
    expected.check(folder, known)
    return "valid"


def verifier_of(public: bytes, what: str) -> Any:
    """The library's verifier with a public key in PEM; ``what`` begins messages.

    Raises:
        UsageError: it is no such key.
    """
    from model_signing import verifying

    with TemporaryDirectory() as room:
        path = Path(room) / "key.pub"  # the library takes files only
        path.write_bytes(public)
        try:
            return verifying.Config().use_elliptic_key_verifier(public_key=path)
        except Exception as error:  # the cryptography library raises many kinds
            raise UsageError(
                f"{what}: not a readable elliptic-curve public key in PEM: {on_one_line(error)}"
            ) from error


def hold_to_signature(folder: Path, config: Any, known: Known) -> None:
    """Hold ``folder`` to its signature.

    A visible file that it does not name is wrong too: a key's signature over something smaller
    would otherwise pass for one over all of this.

    Raises:
        MismatchError: it is another key's, or over other files.
    """
    folder = folder.resolve()  # see Signer.sign
    config.set_hashing_config(Visible(known, links=True))
    try:
        with redirect_stdout(io.StringIO()):  # the library prints there what it thinks of a key
            config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # ValueError, or whatever a damaged bundle ends in
        raise MismatchError(
            f"{folder / SIGNATURE}: not this key's signature over these files: "
            f"{printable(on_one_line(_in_short(error)))}"
        ) from error


def _in_short(error: Exception) -> Exception:
    """The library's error without the digests' raw bytes, which push out the names of files."""
    said, raw = str(error).partition("Signature mismatch: ")[1:]
    try:
        differences = ast.literal_eval(raw) if said else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        differences = None
    if not isinstance(differences, list):
        return error
    return ValueError("; ".join(str(each).partition(": Expected ")[0] for each in differences))
