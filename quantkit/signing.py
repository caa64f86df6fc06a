"""A signature over a whole output, by OpenSSF model-signing, with a key of one's own.

Offline: no service is asked, no identity looked up. The package is optional
(``pip install 'quantkit[sign]'``); without it a signature that is there is reported as not
checked, never as valid. Keys are elliptic-curve keys in PEM:

    openssl ecparam -name prime256v1 -genkey -noout -out key.pem
    openssl ec -in key.pem -pubout -out key.pub
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

from quantkit.errors import MismatchError, SourceError, UsageError, on_one_line
from quantkit.given import kind_of, read_given

SIGNATURE = "model.sig"

#: The password of an encrypted private key.
PASSWORD = "QUANTKIT_SIGN_PASSWORD"

_INSTALL = "install it with: pip install 'quantkit[sign]'"

#: What git, the hub client and a run in progress keep in a folder.
_IGNORED = (SIGNATURE, ".cache", "quantkit-staging.json")


#: What the bundles of model-signing know; other keys it refuses with a trace.
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


@dataclass(frozen=True)
class Signer:
    """A private key that has been read, before the work that it is to sign.

    ``key`` is the name it was given by, ``public`` its other half in PEM.
    """

    config: Any
    key: Path
    public: bytes

    def sign(self, folder: Path) -> None:
        """Sign every file of ``folder`` into ``model.sig``, unless it is so signed already.

        Hidden files are left out: nobody publishes them, and who has the rest could verify
        nothing.

        Raises:
            UsageError: what is there in place of ``model.sig`` is no file, or what is to be
                signed cannot be.
        """
        # the library takes what it is to ignore as relative to a folder given absolutely
        place = folder.resolve()
        refuse_odd_signature(place)
        if self.has_signed(place):  # a new one would be other bytes that say the same
            return
        self.config.set_hashing_config(_Visible())
        try:
            self.config.sign(place, place / SIGNATURE)
        except ValueError as error:  # a link, say
            raise UsageError(f"{folder}: cannot be signed: {on_one_line(error)}") from error

    def has_signed(self, folder: Path) -> bool:
        """Whether ``model.sig`` is this key's, over the files as they are, every one."""
        if not is_signed(folder):
            return False
        with suppress(MismatchError):
            _verify(folder, _verifier(self.public, f"{self.key}"), every_file=True)
            return True
        return False


class _Visible:
    """How the library is to hash a folder: without hidden files, whose very names it would
    otherwise write into the signature, as those that were ignored."""

    def hash(self, folder: Path) -> Any:
        from model_signing import hashing

        files = [
            each
            for each in folder.rglob("*")
            if not any(part.startswith(".") for part in each.relative_to(folder).parts)
        ]
        config = hashing.Config().set_ignored_paths(paths=_IGNORED)
        return config.hash(folder, files_to_hash=files)


def refuse_odd_signature(folder: Path) -> None:
    """See that a signature can be written into ``folder``, and would lie there alone.

    Raises:
        UsageError: there is a link, a folder or a pipe in its place.
    """
    path = folder / SIGNATURE
    if path.is_symlink():
        raise UsageError(f"{path}: a link, and signing would write to where it leads; remove it")
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"{path}: {kind_of(path.stat().st_mode)}, expected a file; remove it")


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


def open_signer(key: Path) -> Signer:
    """Read a private key, once: it may come out of a pipe.

    Raises:
        UsageError: model-signing is not installed, or the key cannot be read.
    """
    what = f"--sign {key}"
    try:
        from model_signing import signing
    except ImportError as error:
        raise UsageError(f"{what}: needs model-signing ({error}); {_INSTALL}") from error
    private = _private_key(read_given(key, what, pipe=True), what)
    return Signer(_signing_with(private, signing.Config()), key, _public_half(private))


def _private_key(raw: bytes, what: str) -> Any:
    from cryptography.hazmat.primitives import serialization

    password = os.environ.get(PASSWORD) or None
    try:
        private = serialization.load_pem_private_key(raw, _bytes_of(password, raw))
    except TypeError as error:  # encrypted, and there is no password
        raise UsageError(
            f"{what}: an encrypted key; set its password in {PASSWORD} ({on_one_line(error)})"
        ) from error
    except Exception as error:  # the cryptography library raises many kinds
        wrong = f", or {PASSWORD} is not its password" if password else ""
        raise UsageError(
            f"{what}: not a readable elliptic-curve private key in PEM{wrong}: {on_one_line(error)}"
        ) from error
    curve = getattr(getattr(private, "curve", None), "name", type(private).__name__)
    if curve not in _CURVES:
        raise UsageError(
            f"{what}: expected an elliptic-curve key ({', '.join(_CURVES.values())}), got "
            f"{curve.removeprefix('_').removesuffix('PrivateKey')}; make one: openssl ecparam "
            "-name prime256v1 -genkey -noout -out key.pem"
        )
    return private


def _bytes_of(password: str | None, raw: bytes) -> bytes | None:
    """The password, unless the key has none, which the library would complain of."""
    return password.encode() if password and b"ENCRYPTED" in raw else None


def _signing_with(private: Any, config: Any) -> Any:
    """``config`` with the key that was read. It takes files only, and the password as a text
    that its own library refuses: so it gets one file, encrypted for a moment, and bytes."""
    from cryptography.hazmat.primitives import serialization

    password = token_hex(32).encode()
    with TemporaryDirectory() as room:
        path = Path(room) / "key.pem"
        path.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password),
            )
        )
        return config.use_elliptic_key_signer(private_key=path, password=password)


def _public_half(private: Any) -> bytes:
    """The public key, in PEM."""
    from cryptography.hazmat.primitives import serialization

    found: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return found


def check_signature(folder: Path, public_key: Path | None) -> str:
    """``absent``, ``not_checked`` (no key was given) or ``valid``.

    Raises:
        MismatchError: the signature is not this key's, or not over these bytes; or a key was
            given and there is no signature.
        SourceError: model-signing is not installed, and a key was given.
        UsageError: the key cannot be read.
    """
    there = is_signed(folder)
    if public_key is None:
        return "not_checked" if there else "absent"
    if not there:
        raise MismatchError(
            f"{folder}: no {SIGNATURE}, and --public-key {public_key} expects one; ask the "
            "publisher, or drop the option"
        )
    what = f"--public-key {public_key}"
    try:
        config = _verifier(read_given(public_key, what, pipe=True), what)
    except ImportError as error:
        raise SourceError(
            f"{folder / SIGNATURE}: cannot be checked without model-signing ({error}); {_INSTALL}"
        ) from error
    # files that are in no manifest have been refused before; the hub client adds its own
    _verify(folder, config, every_file=False)
    return "valid"


def _verifier(public: bytes, what: str) -> Any:
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


def _verify(folder: Path, config: Any, *, every_file: bool) -> None:
    """Hold ``folder`` to its signature; with ``every_file``, one that it does not name is wrong,
    unless it is hidden."""
    from model_signing import hashing

    folder = folder.resolve()  # see Signer.sign
    hidden = [each.relative_to(folder) for each in folder.rglob(".*")] if every_file else []
    config.set_hashing_config(
        hashing.Config().set_allow_symlinks(True).set_ignored_paths(paths=hidden)
    )
    config.set_ignore_unsigned_files(not every_file)
    try:
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # ValueError, or whatever a damaged bundle ends in
        raise MismatchError(
            f"{folder / SIGNATURE}: not this key's signature over these files: "
            f"{on_one_line(error)}; do not use the folder"
        ) from error
