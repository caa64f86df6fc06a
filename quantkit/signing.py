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
from tempfile import TemporaryDirectory
from typing import Any

from quantkit.errors import MismatchError, SourceError, UsageError, on_one_line

SIGNATURE = "model.sig"

#: The password of an encrypted private key.
PASSWORD = "QUANTKIT_SIGN_PASSWORD"

_INSTALL = "install it with: pip install 'quantkit[sign]'"

#: What git, the hub client and a run in progress keep in a folder.
_IGNORED = (SIGNATURE, ".cache", "quantkit-staging.json")


@dataclass(frozen=True)
class Signer:
    """A private key that has been read, before the work that it is to sign."""

    config: Any
    key: Path

    def sign(self, folder: Path) -> None:
        """Sign every file of ``folder`` into ``model.sig``, unless it is so signed already."""
        from model_signing import hashing

        if self._has_signed(folder):  # a new one would be other bytes that say the same
            return

        ignored = hashing.Config().set_ignored_paths(paths=[folder / each for each in _IGNORED])
        self.config.set_hashing_config(ignored)
        self.config.sign(folder, folder / SIGNATURE)

    def _has_signed(self, folder: Path) -> bool:
        if not (folder / SIGNATURE).is_file():
            return False
        with TemporaryDirectory() as room, suppress(MismatchError):
            public = Path(room) / "key.pub"
            public.write_bytes(_public_half(self.key))
            _verify(folder, _verifier(public), every_file=True)
            return True
        return False


def _public_half(key: Path) -> bytes:
    """The public key, in PEM, of a private one that :func:`open_signer` has read."""
    from cryptography.hazmat.primitives import serialization

    password = os.environ.get(PASSWORD)
    private = serialization.load_pem_private_key(
        key.read_bytes(), password.encode() if password else None
    )
    return private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def open_signer(key: Path) -> Signer:
    """Read a private key.

    Raises:
        UsageError: model-signing is not installed, or the key cannot be read.
    """
    try:
        from model_signing import signing
    except ImportError as error:
        raise UsageError(f"--sign {key}: needs model-signing ({error}); {_INSTALL}") from error
    try:
        config = signing.Config().use_elliptic_key_signer(
            private_key=key, password=os.environ.get(PASSWORD)
        )
    except Exception as error:  # the cryptography library raises many kinds
        raise UsageError(
            f"--sign {key}: not a readable elliptic-curve private key in PEM: {on_one_line(error)}"
        ) from error
    return Signer(config, key)


def check_signature(folder: Path, public_key: Path | None) -> str:
    """``absent``, ``not_checked`` (no key was given) or ``valid``.

    Raises:
        MismatchError: the signature is not this key's, or not over these bytes; or a key was
            given and there is no signature.
        SourceError: model-signing is not installed, and a key was given.
        UsageError: the key cannot be read.
    """
    there = (folder / SIGNATURE).is_file()
    if public_key is None:
        return "not_checked" if there else "absent"
    if not there:
        raise MismatchError(
            f"{folder}: no {SIGNATURE}, and --public-key {public_key} expects one; ask the "
            "publisher, or drop the option"
        )
    try:
        config = _verifier(public_key)
    except ImportError as error:
        raise SourceError(
            f"{folder / SIGNATURE}: cannot be checked without model-signing ({error}); {_INSTALL}"
        ) from error
    # files that are in no manifest have been refused before; the hub client adds its own
    _verify(folder, config, every_file=False)
    return "valid"


def _verifier(public_key: Path) -> Any:
    from model_signing import verifying

    try:
        return verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:  # the cryptography library raises many kinds
        raise UsageError(
            f"--public-key {public_key}: not a readable elliptic-curve public key in PEM: "
            f"{on_one_line(error)}"
        ) from error


def _verify(folder: Path, config: Any, *, every_file: bool) -> None:
    """Hold ``folder`` to its signature; with ``every_file``, one that it does not name is wrong."""
    from model_signing import hashing

    config.set_hashing_config(hashing.Config().set_allow_symlinks(True))
    config.set_ignore_unsigned_files(not every_file)
    try:
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # ValueError, or whatever a damaged bundle ends in
        raise MismatchError(
            f"{folder / SIGNATURE}: not this key's signature over these files: "
            f"{on_one_line(error)}; do not use the folder"
        ) from error
