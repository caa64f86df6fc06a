"""The registry of releases: which digests are current, superseded or withdrawn.

One TOML file a repository lists its releases. The *content* decides: an entry is
found by digest, whatever the folder or the repository is called, and a ``withdrawn``
verdict wins over every other registry's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quantkit.errors import UsageError
from quantkit.resources import shipped_folder
from quantkit.types import FileDigest, Status, Verdict

Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListedFile(_Strict):
    """What is known of one file of a release; at least one digest."""

    name: str
    md5: Md5 | None = None
    sha256: Sha256 | None = None
    bytes: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _has_a_digest(self) -> ListedFile:
        if self.md5 is None and self.sha256 is None:
            raise ValueError(f"file {self.name!r} states neither md5 nor sha256")
        return self

    def matches(self, file: FileDigest) -> bool:
        """Whether every digest stated here is the file's. Names play no part."""
        if self.md5 is not None and self.md5 != file.md5:
            return False
        return self.sha256 is None or self.sha256 == file.sha256


class Release(_Strict):
    """One release of a repository."""

    date: str
    status: Literal["current", "superseded", "withdrawn"]
    stated_at: str
    reason: str = ""
    advice: str = ""
    revision: str | None = None
    files: tuple[ListedFile, ...] = Field(min_length=1)


class Entry(_Strict):
    """One repository and its releases."""

    repository: str
    aliases: tuple[str, ...] = ()
    licence: str | None = None
    releases: tuple[Release, ...] = Field(min_length=1)

    def named(self, repo: str) -> bool:
        wanted = repo.lower()
        return wanted in (name.lower() for name in (self.repository, *self.aliases))


@dataclass(frozen=True)
class Registry:
    """All entries of the built-in registry and of the user's own."""

    entries: tuple[Entry, ...]

    def needs_md5(self, name: str, size: int) -> bool:
        """Whether some entry states only an MD5 for a file that this one could be.

        A file of another stated size is out; another container (``.bin`` against
        ``.safetensors``) is too.
        """
        suffix = Path(name).suffix
        return any(
            listed.sha256 is None and listed.bytes in (None, size)
            for entry in self.entries
            for release in entry.releases
            for listed in release.files
            if Path(listed.name).suffix == suffix
        )

    def judge(self, files: Sequence[FileDigest], claims: Iterable[str]) -> Verdict:
        """The status of a source with these ``files`` that ``claims`` to be some repositories.

        ``files`` are the weight and tokenizer files; only a weight file's digest can
        prove a withdrawn release, since releases share tokenizers.
        """
        weights = [file for file in files if file.is_weight]
        for entry in self.entries:
            for release in entry.releases:
                if release.status == "withdrawn" and _proves(entry, release, weights):
                    return _verdict("withdrawn", entry, release)
        claimed = [entry for entry in self.entries if any(entry.named(each) for each in claims)]
        for entry in claimed or self.entries:
            for release in entry.releases:
                if release.status != "withdrawn" and _is_release(release, files):
                    good: Status = "verified" if release.status == "current" else "superseded"
                    return _verdict(good, entry, release)
        if claimed:
            return Verdict(
                "mismatch",
                repository=claimed[0].repository,
                reason="the source claims to be this repository, and no release's digests match "
                f"(known: {_known_files(claimed[0])})",
                stated_at=claimed[0].releases[-1].stated_at,
                advice="download it again, or name the model it really is "
                '(--set source.repo="" if it only uses that model\'s recipe)',
            )
        return Verdict("unlisted")


def _known_files(entry: Entry) -> str:
    return ", ".join(sorted({file.name for each in entry.releases for file in each.files}))


def _proves(entry: Entry, release: Release, weights: Sequence[FileDigest]) -> bool:
    """Whether a weight file is this withdrawn release's, and no good release's too.

    A shard that an entry lists under a release in good standing as well does not tell
    the two apart.
    """
    good = [
        listed for other in entry.releases if other.status != "withdrawn" for listed in other.files
    ]
    return any(
        listed.matches(file) and not any(each.matches(file) for each in good)
        for listed in release.files
        for file in weights
    )


def _is_release(release: Release, files: Sequence[FileDigest]) -> bool:
    """Whether every weight file is one of the release's, and no other file contradicts it."""
    weights = [file for file in files if file.is_weight]
    if not weights or not all(any(each.matches(f) for each in release.files) for f in weights):
        return False
    by_name = {file.name: file for file in files if not file.is_weight}
    return all(
        listed.matches(by_name[listed.name]) for listed in release.files if listed.name in by_name
    )


def _verdict(status: Status, entry: Entry, release: Release) -> Verdict:
    return Verdict(
        status,
        repository=entry.repository,
        release=release.date,
        reason=release.reason,
        stated_at=release.stated_at,
        advice=release.advice,
    )


def checksums(folders: Iterable[Path] = ()) -> Registry:
    """The built-in registry and every ``*.toml`` of ``folders``.

    Raises:
        UsageError: a folder is missing, or an entry does not hold to the schema.
    """
    entries: list[Entry] = []
    for folder in (shipped_folder("checksums"), *folders):
        if not folder.is_dir():
            raise UsageError(f"checksums {folder}: no such folder")
        entries.extend(_read_entry(path) for path in sorted(folder.glob("*.toml")))
    return Registry(tuple(entries))


def _read_entry(path: Path) -> Entry:
    try:
        return Entry.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"checksums {path}: cannot be read as TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"checksums {path}: {place}: {first['msg']}") from None
