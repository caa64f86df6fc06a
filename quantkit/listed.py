"""The files and digests that a manifest lists: it may be anybody's, so each field is looked at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import PurePosixPath
from typing import Any

from quantkit.errors import SourceError, printable
from quantkit.given import LONGEST_NAME
from quantkit.staging import MANIFEST
from quantkit.types import FileDigest, Fingerprint

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MD5 = re.compile(r"[0-9a-f]{32}")

#: How many characters of a refused value are shown.
_LONGEST = 80


def weights_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the weights, as ``manifest`` has them."""
    return {each.name: each.sha256 for each in output_files(manifest) if each.is_weight}


def output_files(manifest: Mapping[str, Any]) -> list[FileDigest]:
    """The files of the folder, whose names may not lead out of it.

    Raises:
        SourceError: one does, or a field is not what it should be.
    """
    return [
        _listed(each, f"output.files[{at}]") for at, each in enumerate(manifest["output"]["files"])
    ]


def _listed(raw: Mapping[str, Any], where: str) -> FileDigest:
    """A file of the manifest, whose name may not lead out of the folder."""
    file = _digest(raw, where)
    path = PurePosixPath(file.name)
    plain = str(path) == file.name and not path.is_absolute() and ".." not in path.parts
    if not (plain and file.name.isprintable()):
        raise SourceError(
            f"{MANIFEST}: lists a file by a name that leads elsewhere ({ascii(file.name)[:120]}); "
            "do not trust this folder"
        )
    return file


def source_files(raw: Any) -> list[FileDigest]:
    """The files of a manifest's source.

    Raises:
        SourceError: there are none, or a field is not what it should be.
    """
    if not isinstance(raw, list) or not raw:
        raise _not_whole("source.files", "at least one file", raw)
    return [_digest(each, f"source.files[{at}]") for at, each in enumerate(raw)]


def source_fingerprint(source: Mapping[str, Any]) -> Fingerprint | None:
    """The source's fingerprint, where the manifest has one.

    Raises:
        SourceError: a field is not what it should be.
    """
    if "fingerprint" not in source:
        return None
    known, parts = source["fingerprint"], [each.name for each in fields(Fingerprint)]
    if not isinstance(known, dict) or sorted(known) != sorted(parts):
        raise _not_whole("source.fingerprint", f"an object of {', '.join(parts)}", known)
    for name, value in known.items():
        if not _is_hex(_SHA256, value):
            raise _not_whole(f"source.fingerprint.{name}", "64 lower-case hex digits", value)
    return Fingerprint(**known)


def _digest(raw: Mapping[str, Any], where: str) -> FileDigest:
    """A file as a manifest lists it, with every field checked."""
    file = FileDigest(**raw)
    if not isinstance(file.name, str) or not _may_be_a_name(file.name):
        raise _not_whole(f"{where}.name", "a name", file.name)
    if type(file.bytes) is not int or file.bytes < 0:
        raise _not_whole(f"{where}.bytes", "a size", file.bytes)
    if not _is_hex(_SHA256, file.sha256):
        raise _not_whole(f"{where}.sha256", "64 lower-case hex digits", file.sha256)
    if file.md5 is not None and not _is_hex(_MD5, file.md5):
        raise _not_whole(f"{where}.md5", "32 lower-case hex digits, or null", file.md5)
    if not isinstance(file.is_weight, bool):
        raise _not_whole(f"{where}.is_weight", "true or false", file.is_weight)
    return file


def _may_be_a_name(name: str) -> bool:
    """Whether some file system could hold it; asking for any other fails."""
    raw = name.encode("utf-8", "replace")
    return 0 < len(raw) <= 2000 and max(map(len, raw.split(b"/"))) <= LONGEST_NAME


def _is_hex(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _not_whole(field: str, expected: str, got: object) -> SourceError:
    said = printable(repr(got))[:_LONGEST]
    return SourceError(
        f"{MANIFEST}: not a whole manifest: {field}: expected {expected}, got {said}; fetch it "
        "again"
    )
