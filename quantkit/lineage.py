"""A folder that quantkit made: its own files, and where its weights came from.

The small files are read first and said at once; who waits for gigabytes of weights knows
by then that the config is another, or the signature. The lineage is judged by *today's*
registry: what was in good standing when the folder was made may have been withdrawn since.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path, PurePosixPath
from typing import Any

from quantkit.checkpoint.fingerprint import FORM
from quantkit.digests import digest_file
from quantkit.errors import MismatchError, SourceError, printable
from quantkit.records import contradictions, is_sealed, read_manifest, read_raw
from quantkit.registry import Registry
from quantkit.signatures import SIGNATURE, Expected, check_signature
from quantkit.staging import MANIFEST
from quantkit.types import Event, FileDigest, Fingerprint, Listener, Verdict, silent
from quantkit.verification import Policy, enforce

#: What version control and the hub client put into a folder.
_NOT_OURS = (".git", ".cache", ".gitattributes")

#: Not listed in the manifest: itself, and what is made after it.
_BESIDE = (MANIFEST, SIGNATURE)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MD5 = re.compile(r"[0-9a-f]{32}")

#: Of a value that is shown to say that it cannot be one.
_LONGEST = 80


def verify_output(
    folder: Path,
    registry: Registry,
    policy: Policy,
    expected: Expected | None = None,
    listener: Listener = silent,
) -> dict[str, Any]:
    """Hold ``folder`` to its manifest, file by file, and its source to the ``registry``.

    What the small files alone tell, whose signature it has and what its source is by now,
    comes before the weights are read.

    Raises:
        MismatchError: files differ from the manifest, or the signature is of other bytes;
            all that differ are named.
        WithdrawnError, UnlistedError: what the source is by now.
        SourceError: the manifest cannot be read, or is none.
    """
    manifest = read_manifest(folder)
    with _whole(folder):
        source, gate = manifest["source"], manifest["gate"]["status"]
        lineage, signature = _small_say(folder, manifest, registry, policy, expected)
        said = contradictions(manifest)
        _refuse_differing(folder, said or differing(folder, manifest, listener))
        return {
            "kind": "output",
            "path": str(folder),
            "status": lineage.status,
            "verdict": asdict(lineage),
            "gate": gate,
            "signature": signature,
            "notes": [*notes(source, registry), *_overridden(manifest)],
            "files": manifest["output"]["files"],
        }


def verify_small(
    folder: Path, registry: Registry, policy: Policy, expected: Expected | None = None
) -> None:
    """All of :func:`verify_output` that needs no weights, which may not have been fetched yet.

    Raises:
        MismatchError, WithdrawnError, UnlistedError, SourceError: as there.
    """
    manifest = read_manifest(folder)
    with _whole(folder):
        listed = _files(manifest)
        awaited = [each.name for each in listed if each.is_weight]
        _refuse_differing(folder, _differing_small(folder, listed, awaited))
        _small_say(folder, manifest, registry, policy, expected)


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """A manifest that lacks something is named."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{folder / MANIFEST}: not a whole manifest ({type(error).__name__}: {error}); fetch "
            "it again"
        ) from error


def _small_say(
    folder: Path,
    manifest: Mapping[str, Any],
    registry: Registry,
    policy: Policy,
    expected: Expected | None,
) -> tuple[Verdict, str]:
    """What the source is by now, and the signature: over the weights that the manifest names.

    Whether those are the weights that are there, :func:`differing` says.
    """
    lineage = judge_source(manifest["source"], registry)
    signature = check_signature(folder, expected, weights_of(manifest))
    enforce(f"{folder}: its source", lineage, policy)
    return lineage, signature


def _refuse_differing(folder: Path, differences: Sequence[str]) -> None:
    if differences:
        raise MismatchError(
            f"{folder}: not as its manifest says: {'; '.join(differences)}; fetch it again"
        )


def judge_source(source: Mapping[str, Any], registry: Registry) -> Verdict:
    """What ``registry`` says of a manifest's ``source`` today."""
    return registry.judge(
        source_files(source["files"]),
        [each for each in (source["repo_id"],) if each],
        _fingerprint(source),
        source["revision"],
    )


def notes(source: Mapping[str, Any], registry: Registry) -> list[str]:
    """What was not compared of a manifest's ``source``, for those who rely on it."""
    found = []
    if "fingerprint" not in source:
        found += ["its manifest has no fingerprint of the source: only digests compared"]
    elif source.get("fingerprint_form") != FORM:
        found += ["its manifest's fingerprint is of an earlier kind: only digests compared"]
    files = source_files(source["files"])
    if any(each.md5 is None and registry.needs_md5(each.name, each.bytes) for each in files):
        found.append("its manifest has no MD5, by which alone a release that it could be is known")
    return found


def _overridden(manifest: Mapping[str, Any]) -> list[str]:
    """What it was published in spite of: a gate that passed may have judged other files."""
    said = (manifest.get("publication") or {}).get("overrides", [])
    return [f"published although {printable(str(each))}" for each in said]


def source_files(raw: Any) -> list[FileDigest]:
    """The files of a manifest's source.

    Raises:
        SourceError: there are none, or a field of one is none.
    """
    if not isinstance(raw, list) or not raw:
        raise _not_whole("source.files", "at least one file", raw)
    return [_digest(each, f"source.files[{at}]") for at, each in enumerate(raw)]


def _fingerprint(source: Mapping[str, Any]) -> Fingerprint | None:
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
    """A file as a manifest lists it, each field of which is one."""
    file = FileDigest(**raw)
    if not isinstance(file.name, str) or not file.name:
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


def _is_hex(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _not_whole(field: str, expected: str, got: object) -> SourceError:
    said = printable(repr(got))[:_LONGEST]
    return SourceError(
        f"{MANIFEST}: not a whole manifest: {field}: expected {expected}, got {said}; fetch it "
        "again"
    )


def differing(folder: Path, manifest: Mapping[str, Any], listener: Listener) -> list[str]:
    """Every file that is missing, changed or extra; the small ones are told of at once."""
    listed = _files(manifest)
    found = _differing_small(folder, listed)
    there = [each for each in listed if (folder / each.name).is_file()]
    weights = [each for each in there if each.is_weight]
    listener(
        Event(
            "verify",
            message=f"{folder}: {len(there) - len(weights)} small files read: "
            + ("; ".join(found) or "all as the manifest says"),
        )
    )
    return found + list(_changed_weights(folder, weights, listener))


def _differing_small(
    folder: Path, listed: Sequence[FileDigest], awaited: Collection[str] = ()
) -> list[str]:
    """The same without the weights; none is missing that is still ``awaited``."""
    found = [*_strays(folder, listed, awaited)]
    if not is_sealed(read_raw(folder)):
        found.append(f"{MANIFEST} has changed")
    small = [each for each in listed if not each.is_weight and (folder / each.name).is_file()]
    small.sort(key=lambda each: each.bytes)
    return found + [f"{each.name} has changed" for each in small if not _is_as_listed(folder, each)]


def weights_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the weights, as ``manifest`` has them."""
    return {each.name: each.sha256 for each in _files(manifest) if each.is_weight}


def _files(manifest: Mapping[str, Any]) -> list[FileDigest]:
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


def _strays(folder: Path, listed: Sequence[FileDigest], awaited: Collection[str]) -> Iterator[str]:
    """What is missing, is no file, or is in no manifest; of all folders that it names."""
    names = {each.name for each in listed}
    folders = {str(each) for name in names for each in PurePosixPath(name).parents} - {"."}
    top = {path.name for path in folder.iterdir()} - {*_BESIDE, *_NOT_OURS}
    inside = {
        f"{each}/{path.name}"
        for each in folders
        if (folder / each).is_dir()
        for path in (folder / each).iterdir()
    }
    there = (top | inside) - folders
    present = {name for name in there if (folder / name).is_file()}
    odd, extra = (sorted(map(printable, each)) for each in (there - present, present - names))
    yield from (f"{name} is no file of the manifest" for name in odd)
    yield from (f"{name} is missing" for name in sorted(names - present - {*awaited}))
    yield from (f"{name} is not in the manifest" for name in extra)


def _is_as_listed(folder: Path, file: FileDigest) -> bool:
    path = folder / file.name
    return path.stat().st_size == file.bytes and digest_file(path).sha256 == file.sha256


def _changed_weights(
    folder: Path, weights: Sequence[FileDigest], listener: Listener
) -> Iterator[str]:
    total, done = sum(each.bytes for each in weights), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        listener(Event("verify", done, total))

    for each in sorted(weights, key=lambda file: file.bytes):
        path = folder / each.name
        if path.stat().st_size != each.bytes:
            yield f"{each.name} has {path.stat().st_size} bytes in place of {each.bytes}"
        elif digest_file(path, progress=tell).sha256 != each.sha256:
            yield f"{each.name} has changed"
