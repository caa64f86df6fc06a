"""Signing a whole output, by OpenSSF model-signing, with a key of one's own.

Offline: no service is asked, no identity looked up. Keys are elliptic-curve keys in PEM:

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

from quantkit.errors import MismatchError, UsageError, on_one_line
from quantkit.given import read_given
from quantkit.signatures import (
    INSTALL,
    LONGEST_KEY,
    NOTHING,
    SIGNATURE,
    Known,
    Visible,
    hold_to_signature,
    is_signed,
    refuse_unsignable,
    verifier_of,
)

#: The password of an encrypted private key.
PASSWORD = "QUANTKIT_SIGN_PASSWORD"

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

    def sign(self, folder: Path, known: Known = NOTHING) -> None:
        """Sign every file of ``folder`` into ``model.sig``, unless it is so signed already.

        Hidden files are left out: nobody publishes them, and without them nothing could be
        verified.

        Raises:
            UsageError: what is there in place of ``model.sig`` is no file, or what is to be
                signed cannot be.
        """
        # the library takes what it is to ignore as relative to a folder given absolutely
        place = folder.resolve()
        refuse_unsignable(place)
        if self.has_signed(place, known):  # a new one would be other bytes that say the same
            return
        self.config.set_hashing_config(Visible(known, links=False))
        try:
            self.config.sign(place, place / SIGNATURE)
        except ValueError as error:  # a link, say
            raise UsageError(f"{folder}: cannot be signed: {on_one_line(error)}") from error

    def has_signed(self, folder: Path, known: Known = NOTHING) -> bool:
        """Whether ``model.sig`` is this key's, over the files as they are, every one."""
        with suppress(MismatchError):
            self._hold(folder, known)
            return is_signed(folder)
        return False

    def refuse_anothers(self, folder: Path, known: Known, instead: str) -> None:
        """See that the signature that would be replaced is this key's, over what is there.

        Raises:
            MismatchError: it is not; ``instead`` says what else to do about it.
        """
        try:
            self._hold(folder, known)
        except MismatchError as error:
            raise MismatchError(
                f"{error}; --sign {self.key} would replace it: see who signed what ('quantkit "
                f"verify --public-key'), then {instead}"
            ) from error

    def _hold(self, folder: Path, known: Known) -> None:
        if is_signed(folder):
            hold_to_signature(folder, verifier_of(self.public, f"{self.key}"), known)


def open_signer(key: Path) -> Signer:
    """Read a private key, once: it may come out of a pipe.

    Raises:
        UsageError: model-signing is not installed, or the key cannot be read.
    """
    what = f"--sign {key}"
    try:
        from model_signing import signing
    except ImportError as error:
        raise UsageError(f"{what}: needs model-signing ({error}); {INSTALL}") from error
    private = _private_key(read_given(key, what, pipe=True, most=LONGEST_KEY), what)
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
    """``config`` with the key that was read. model-signing takes a file only, and as password a
    text that its own library refuses: so it gets a temporary file, encrypted, and bytes."""
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
