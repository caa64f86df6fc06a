"""The registry of releases: which digests are current, superseded or withdrawn.

The *content* decides: an entry is found by a file's digest or by the tensors' fingerprint,
whatever the folder or the repository is called, and a ``withdrawn`` verdict wins over
every other registry's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.given import paths_of
from quantkit.releases import PARTS, Entry, ListedFile, Release, read_entries
from quantkit.resources import shipped_folder
from quantkit.types import AnyPath, FileDigest, Fingerprint, Status, Verdict
from quantkit.verb import verb

#: By what a release was recognized, in words.
_EVIDENCE = {
    "files": "the digest of a file",
    "tensors": "the tensors' fingerprint (the same weights in other files)",
    "values": "the values' fingerprint (the same weights, cast without loss)",
    "matrices": "the matrices' fingerprint (the same weights under other names)",
    "revision": "the revision it claims to be",
}


@dataclass(frozen=True)
class Registry:
    """All entries of the built-in registry and of the user's own."""

    entries: tuple[Entry, ...]

    def needs_md5(self, name: str, size: int) -> bool:
        """Whether some entry states only an MD5 for a file that this one could be.

        A file of another size or container (``.bin``, ``.safetensors``) could not. MD5 is taken no
        more often than that, as it runs on one thread and takes longer than all else.
        """
        suffix = Path(name).suffix.lower()
        return any(
            listed.sha256 is None and listed.may_have(size)
            for entry in self.entries
            for release in entry.releases
            for listed in release.files
            if Path(listed.name).suffix.lower() == suffix
        )

    def judge(
        self,
        files: Sequence[FileDigest],
        claims: Iterable[str],
        fingerprint: Fingerprint | None = None,
        revision: str | None = None,
    ) -> Verdict:
        """The status of a source with these ``files`` that ``claims`` to be some repositories.

        ``files`` are the weight and tokenizer files; only a weight file's digest, or the
        ``fingerprint``, can prove a withdrawn release, since releases share tokenizers.
        ``revision`` is the one that the source claims to be.
        """
        named = list(claims)
        claimed = [entry for entry in self.entries if any(entry.named(each) for each in named)]
        weights = [file for file in files if file.is_weight]
        for entry in self.entries:
            for release in entry.releases:
                if release.status != "withdrawn":
                    continue
                by = _proof(entry, release, weights, fingerprint)
                if by is None and entry in claimed and _is_revision(release, revision):
                    by = "revision"
                if by is not None:
                    return _verdict("withdrawn", entry, release, by)
        for entry, release in _standing(claimed or self.entries):
            by = _identity(release, files, fingerprint)
            if by is not None:
                good: Status = "verified" if release.status == "current" else "superseded"
                return _verdict(good, entry, release, by)
        if claimed:
            return _unproven(claimed, files)
        return _near(self.entries, files, fingerprint)


def _standing(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Release]]:
    """The releases in good standing."""
    for entry in entries:
        yield from ((entry, each) for each in entry.releases if each.status != "withdrawn")


def _proof(
    entry: Entry, release: Release, weights: Sequence[FileDigest], found: Fingerprint | None
) -> str | None:
    """What proves that the weights are this withdrawn release's and no good release's too.

    Nothing is proved by a shard that a good release lists as well; by a fingerprint that is a
    good release's just as closely; or by any fingerprint where all files are a good release's.
    """
    good = [other for other in entry.releases if other.status != "withdrawn"]
    spared = [listed for other in good for listed in other.files]
    if any(
        listed.matches(file) and not any(each.matches(file) for each in spared)
        for listed in release.files
        for file in weights
    ):
        return "files"
    part = _part(release, found)
    as_close = PARTS[: PARTS.index(part) + 1] if part else ()
    if any(_part(each, found) in as_close or _is_whole(each, weights) for each in good):
        return None
    return part


def _part(release: Release, found: Fingerprint | None) -> str | None:
    """The strongest part of the release's fingerprint that is ``found``'s too."""
    return release.fingerprint.match(found) if release.fingerprint else None


def _is_whole(release: Release, weights: Sequence[FileDigest]) -> bool:
    """Whether every weight file is one of the release's."""
    return bool(weights) and all(_listed(release.files, file) for file in weights)


def _is_revision(release: Release, claimed: str | None) -> bool:
    """Abbreviated commits are compared as far as both go; branches and tags are none."""
    if not release.revision or not claimed or len(claimed) < 7:
        return False
    return release.revision.startswith(claimed) or claimed.startswith(release.revision)


def _identity(
    release: Release, files: Sequence[FileDigest], found: Fingerprint | None
) -> str | None:
    """What proves that the weights are the whole release; no file may contradict it.

    The matrices alone do not: names and the other tensors count too. Nor do the same tensors in
    a file that the release lists with another digest: a flipped bit may lie outside all tensors.
    """
    weights = [file for file in files if file.is_weight]
    if not weights or _contradicting(release, files):
        return None
    if _is_whole(release, weights):
        return "files"
    part = _part(release, found)
    if part == "matrices" or any(_other_than_named(release, file) for file in weights):
        return None
    return part


def _contradicting(release: Release, files: Sequence[FileDigest]) -> list[str]:
    """Files beside the weights that are not as the release lists them by name."""
    return [f.name for f in files if not f.is_weight and _other_than_named(release, f)]


def _other_than_named(release: Release, file: FileDigest) -> bool:
    """Whether the release lists files of that name, and this is none of them."""
    named = [each for each in release.files if each.name == file.name]
    return bool(named) and not _listed(named, file)


def _unproven(claimed: Sequence[Entry], files: Sequence[FileDigest]) -> Verdict:
    """A claim that nothing proves: false, unless the files' digests were never published."""
    for entry, release in _standing(claimed):
        strange = [f for f in files if f.is_weight and not _listed(release.files, f)]
        if all(release.leaves_open(f.name) for f in strange) and not _contradicting(release, files):
            return Verdict(
                "unlisted",
                reason=f"it claims to be {entry.repository}, and nobody published a digest of "
                f"{', '.join(f.name for f in strange) or 'its weights'}",
                stated_at=release.stated_at,
            )
    entry = claimed[0]
    what = ""
    if differing := _differing(entry, files):
        what = f"{', '.join(differing)} {'differs' if len(differing) == 1 else 'differ'}; "
    return Verdict(
        "mismatch",
        repository=entry.repository,
        reason="the source claims to be this repository, and no release's digests match "
        f"({what}known: {_known_files(entry)})",
        stated_at=entry.releases[-1].stated_at,
        advice="download it again, or name the model it really is "
        '(--set source.repo="" if it only uses that model\'s recipe)',
    )


def _differing(entry: Entry, files: Sequence[FileDigest]) -> list[str]:
    """Which files are not the nearest release's, that is the one that most files belong to."""
    nearest = max(
        (release for _, release in _standing([entry])),
        key=lambda each: sum(_listed(each.files, file) for file in files),
        default=None,
    )
    if nearest is None:
        return []
    strange = [f.name for f in files if f.is_weight and not _listed(nearest.files, f)]
    return [*strange, *_contradicting(nearest, files)]


def _near(
    entries: Iterable[Entry], files: Sequence[FileDigest], found: Fingerprint | None
) -> Verdict:
    """Unlisted; where some of it is a listed release, the reason says which files are not."""
    weights = [file for file in files if file.is_weight]
    for entry, release in _standing(entries):
        strange = [file.name for file in weights if not _listed(release.files, file)]
        part = _part(release, found)
        if part or len(strange) < len(weights):
            others = ", ".join([*strange, *_contradicting(release, files)])
            by = f" by {_EVIDENCE[part]}" if part else ""
            return Verdict(
                "unlisted",
                reason=f"it is {entry.repository}, release of {release.label}{by}, but for "
                f"{others}: not that release's file",
                stated_at=release.stated_at,
            )
    return Verdict("unlisted")


def _listed(listed: Iterable[ListedFile], file: FileDigest) -> bool:
    return any(each.matches(file) for each in listed)


def _known_files(entry: Entry) -> str:
    return ", ".join(sorted({file.name for each in entry.releases for file in each.files}))


def _verdict(status: Status, entry: Entry, release: Release, by: str) -> Verdict:
    return Verdict(
        status,
        repository=entry.repository,
        release=release.label,
        reason=release.reason,
        stated_at=release.stated_at,
        advice=release.advice,
        kind=release.kind,
        evidence=_EVIDENCE[by],
    )


@verb
def checksums(folders: AnyPath | Iterable[AnyPath] = ()) -> Registry:
    """The built-in registry and every ``*.toml`` of ``folders``.

    Raises:
        UsageError: a folder is missing, or an entry does not hold to the schema.
    """
    return Registry(
        tuple(
            entry
            for folder in (shipped_folder("checksums"), *paths_of(folders))
            for entry in read_entries(folder)
        )
    )
