"""A folder that quantkit made: its own files, then where its weights came from.

The small files are read first and said at once; who waits for gigabytes of weights knows
by then that the config is another. The lineage is judged by *today's* registry: what was
in good standing when the folder was made may have been withdrawn since.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path, PurePosixPath
from typing import Any

from quantkit.checkpoint.fingerprint import FORM
from quantkit.digests import digest_file
from quantkit.errors import MismatchError, SourceError, printable
from quantkit.records import is_sealed, read_manifest, read_raw
from quantkit.registry import Registry
from quantkit.signing import SIGNATURE, check_signature, is_signed
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
    public_key: Path | None = None,
    listener: Listener = silent,
) -> dict[str, Any]:
    """Hold ``folder`` to its manifest, file by file, and its source to the ``registry``.

    Raises:
        MismatchError: files differ from the manifest, or the signature is of other bytes;
            all that differ are named.
        WithdrawnError, UnlistedError: what the source is by now.
        SourceError: the manifest cannot be read, or is none.
    """
    manifest = read_manifest(folder)
    try:
        return _hold_to(folder, manifest, registry, policy, public_key, listener)
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{folder / MANIFEST}: not a whole manifest ({type(error).__name__}: {error}); fetch "
            "it again"
        ) from error


def _hold_to(
    folder: Path,
    manifest: Mapping[str, Any],
    registry: Registry,
    policy: Policy,
    public_key: Path | None,
    listener: Listener,
) -> dict[str, Any]:
    source, gate = manifest["source"], manifest["gate"]["status"]
    is_signed(folder)  # what stands in a signature's place is named before gigabytes are read
    lineage = judge_source(source, registry)
    differences = differing(folder, manifest, listener)
    if differences:
        raise MismatchError(
            f"{folder}: not as its manifest says: {'; '.join(differences)}; fetch it again"
        )
    signature = check_signature(folder, public_key)
    enforce(f"{folder}: its source", lineage, policy)
    return {
        "kind": "output",
        "path": str(folder),
        "status": lineage.status,
        "verdict": asdict(lineage),
        "gate": gate,
        "signature": signature,
        "notes": notes(source),
        "files": manifest["output"]["files"],
    }


def judge_source(source: Mapping[str, Any], registry: Registry) -> Verdict:
    """What ``registry`` says of a manifest's ``source`` today."""
    return registry.judge(
        _source_files(source["files"]),
        [each for each in (source["repo_id"],) if each],
        _fingerprint(source),
        source["revision"],
    )


def notes(source: Mapping[str, Any]) -> list[str]:
    """What was not compared of a manifest's ``source``, for those who rely on it."""
    if "fingerprint" not in source:
        return ["its manifest has no fingerprint of the source: only digests of files compared"]
    if source.get("fingerprint_form") != FORM:
        return [
            "its manifest names no fingerprint of today's kind: one of an earlier kind matches "
            "nothing, only digests of files compared"
        ]
    return []


def _source_files(raw: Any) -> list[FileDigest]:
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
    listed = [
        _listed(each, f"output.files[{at}]") for at, each in enumerate(manifest["output"]["files"])
    ]
    found = [*_strays(folder, listed)]
    if not is_sealed(read_raw(folder)):
        found.append(f"{MANIFEST} has changed")
    there = [each for each in listed if (folder / each.name).is_file()]
    small = sorted((each for each in there if not each.is_weight), key=lambda each: each.bytes)
    found += [f"{each.name} has changed" for each in small if not _is_as_listed(folder, each)]
    listener(
        Event(
            "verify",
            message=f"{folder}: {len(small)} small files read: "
            + ("; ".join(found) or "all as the manifest says"),
        )
    )
    return found + list(_changed_weights(folder, [e for e in there if e.is_weight], listener))


def _listed(raw: Mapping[str, Any], where: str) -> FileDigest:
    """A file of the manifest, whose name may not lead out of the folder."""
    file = _digest(raw, where)
    path = PurePosixPath(file.name)
    if not file.name.isprintable() or path.is_absolute() or {".", ".."} & set(path.parts):
        raise SourceError(
            f"{MANIFEST}: lists a file by a name that leads elsewhere ({ascii(file.name)[:120]}); "
            "do not trust this folder"
        )
    return file


def _strays(folder: Path, listed: Sequence[FileDigest]) -> Iterator[str]:
    """What is missing, is no file, or is in no manifest; of all folders that it names."""
    names = {each.name for each in listed}
    folders = {name.rpartition("/")[0] for name in names} - {""}
    top = {path.name for path in folder.iterdir()} - {*_BESIDE, *_NOT_OURS} - folders
    inside = {
        f"{each}/{path.name}"
        for each in folders
        if (folder / each).is_dir()
        for path in (folder / each).iterdir()
    }
    there = top | inside
    present = {name for name in there if (folder / name).is_file()}
    odd, extra = (sorted(map(printable, each)) for each in (there - present, present - names))
    yield from (f"{name} is no file of the manifest" for name in odd)
    yield from (f"{name} is missing" for name in sorted(names - present))
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
