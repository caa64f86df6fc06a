"""The schema of the registry: one TOML file a repository, its releases and their digests.

Described for people in docs/checksums.md. Unknown keys are errors, and so is a digest of
the wrong length: an MD5 written where a SHA-256 belongs would never match anything.
"""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from quantkit.errors import UsageError
from quantkit.given import read_given_text
from quantkit.types import FileDigest
from quantkit.types import Fingerprint as Found

_DIGESTS = {32: "MD5", 40: "SHA-1", 64: "SHA-256", 128: "SHA-512"}


def _digest_of(length: int) -> BeforeValidator:
    """A check for lower-case hex of ``length`` digits that says which digest it got instead."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]*", value):
            raise ValueError(f"expected {length} lower-case hex digits")
        if len(value) != length:
            found = _DIGESTS.get(len(value))
            other = f", the length of {found}" if found else ""
            raise ValueError(
                f"expected {_DIGESTS[length]}, {length} hex digits, got {len(value)}{other}"
            )
        return value

    return BeforeValidator(check)


Md5 = Annotated[str, _digest_of(32)]
Sha256 = Annotated[str, _digest_of(64)]
#: Where a fact is stated: an address, or a file of this project.
Address = Annotated[str, Field(pattern=r"^(https?://[^\s<>\"]+|[A-Za-z0-9_][\w./-]*)$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")]
Bytes = Annotated[int, Field(gt=0, strict=True)]

#: Why a release was withdrawn or replaced. ``unstated``: nobody said, or only at second hand.
Kind = Literal[
    "licence", "corrupt-upload", "leak", "relicensed", "mistaken-upload", "replaced", "unstated"
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListedFile(_Strict):
    """What is known of one file of a release; at least one digest.

    ``bytes`` is its exact size; where that was never published, ``least_bytes`` is what its
    tensors alone take. ``revision`` and ``stated_at`` stand here where they are not the release's.
    """

    name: Annotated[str, Field(min_length=1)]
    md5: Md5 | None = None
    sha256: Sha256 | None = None
    bytes: Bytes | None = None
    least_bytes: Bytes | None = None
    revision: Commit | None = None
    stated_at: Address | None = None

    @model_validator(mode="after")
    def _has_a_digest(self) -> ListedFile:
        if self.md5 is None and self.sha256 is None:
            raise ValueError(f"file {self.name!r} states neither md5 nor sha256")
        return self

    @model_validator(mode="after")
    def _one_size(self) -> ListedFile:
        if self.bytes is not None and self.least_bytes is not None:
            raise ValueError(f"file {self.name!r} states both bytes and least_bytes; keep bytes")
        return self

    def may_have(self, size: int) -> bool:
        """Whether a file of ``size`` bytes could be this one."""
        if self.bytes is not None:
            return size == self.bytes
        return size >= (self.least_bytes or 0)

    def matches(self, file: FileDigest) -> bool:
        """Whether every digest stated here is the file's. Names play no part.

        A file has an MD5 only where nothing better is stated; beside a SHA-256 it may be absent.
        """
        if self.sha256 is None:
            return self.md5 == file.md5
        return self.sha256 == file.sha256 and (not self.md5 or file.md5 in (None, self.md5))


#: The parts of a fingerprint, the strongest first.
PARTS = ("tensors", "values", "matrices")


class ListedFingerprint(_Strict):
    """A release's fingerprint, or a part of it."""

    tensors: Sha256 | None = None
    values: Sha256 | None = None
    matrices: Sha256 | None = None

    def match(self, found: Found | None) -> str | None:
        """The name of the strongest part that is ``found``'s too."""
        for part in PARTS:
            stated = getattr(self, part)
            if found is not None and stated is not None and stated == getattr(found, part):
                return part
        return None


class Release(_Strict):
    """One release of a repository.

    ``unpublished`` are patterns of file names that belong to it and whose digests nobody
    published: such a file proves nothing, and speaks against nothing.
    """

    date: Annotated[str, Field(pattern=r"^(\d{4}(-\d{2}(-\d{2})?)?)?$")] = ""
    revision: Commit | None = None
    status: Literal["current", "superseded", "withdrawn"]
    kind: Kind | None = None
    stated_at: Address
    reason: str = ""
    advice: str = ""
    unpublished: tuple[str, ...] = ()
    fingerprint: ListedFingerprint | None = None
    files: tuple[ListedFile, ...] = ()

    @field_validator("reason", "advice")
    @classmethod
    def _one_line(cls, value: str, info: ValidationInfo) -> str:
        if not value.isprintable():
            raise ValueError(f"expected {info.field_name} on one printable line")
        return value

    @model_validator(mode="after")
    def _says_enough(self) -> Release:
        stated = self.fingerprint not in (None, ListedFingerprint())
        if not (self.files or stated or self.unpublished):
            raise ValueError("states no file, no fingerprint, and no unpublished files either")
        return self

    @property
    def label(self) -> str:
        """What to call it: its date, else its revision."""
        return self.date or (self.revision or "")[:7] or "unknown date"

    def leaves_open(self, name: str) -> bool:
        """Whether ``name`` belongs to the release, though nobody published its digest."""
        return any(fnmatchcase(name, each) for each in self.unpublished)


class Entry(_Strict):
    """One repository and its releases."""

    repository: Annotated[str, Field(min_length=1)]
    aliases: tuple[str, ...] = ()
    licence: str | None = None
    releases: tuple[Release, ...] = Field(min_length=1)

    def named(self, repo: str) -> bool:
        wanted = repo.lower()
        return wanted in (name.lower() for name in (self.repository, *self.aliases))


def read_entries(folder: Path) -> tuple[Entry, ...]:
    """Every ``*.toml`` of ``folder``.

    Raises:
        UsageError: no such folder, a file that does not hold to the schema, or two of them
            for one repository.
    """
    if not folder.is_dir():
        kind, what = ("a file", "it") if folder.exists() else ("no such folder", "the entries")
        raise UsageError(f"checksums {folder}: {kind}; give the folder that holds {what}")
    found: dict[str, Path] = {}
    entries = []
    for path in sorted(folder.glob("*.toml")):
        entry = read_entry(path)
        if (other := found.setdefault(entry.repository.lower(), path)) != path:
            raise UsageError(
                f"checksums {path}: {entry.repository} has an entry in {other.name} already; "
                "put all releases of a repository into one file"
            )
        entries.append(entry)
    return tuple(entries)


def read_entry(path: Path) -> Entry:
    """The entry in ``path``.

    Raises:
        UsageError: it cannot be read, or does not hold to the schema; file and key are named.
    """
    return parse_entry(read_given_text(path, f"checksums {path}"), str(path))


def parse_entry(text: str, where: str) -> Entry:
    """The entry that a TOML text describes; ``where`` begins messages."""
    try:
        return Entry.model_validate(tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error" and isinstance(first["input"], str | int | float):
            said += f", got {first['input']!r:.80}"
        raise UsageError(f"checksums {where}: {place}: {said}; see docs/checksums.md") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise UsageError(f"checksums {where}: cannot be read as TOML: {error}") from error
