"""A folder that quantkit made: its own files, and where its weights came from.

The small files are read first and said at once: nobody has to wait for gigabytes of weights to
learn that the config or the signature is another. The lineage is judged by *today's* registry:
what was in good standing when the folder was made may have been withdrawn since.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from quantkit.checkpoint.fingerprint import FORM
from quantkit.digests import digest_file
from quantkit.errors import MismatchError, SourceError, printable
from quantkit.listed import output_files, source_files, source_fingerprint, weights_of
from quantkit.records import contradictions, is_sealed, read_manifest, read_raw, summary_of
from quantkit.registry import Registry
from quantkit.signatures import SIGNATURE, Expected, check_signature
from quantkit.staging import MANIFEST
from quantkit.types import Event, FileDigest, Listener, Verdict, counted, silent
from quantkit.verification import Policy, enforce

#: What version control and the hub client put into a folder.
_NOT_OURS = (".git", ".cache", ".gitattributes")

#: Not listed in the manifest: itself, and what is made after it.
_BESIDE = (MANIFEST, SIGNATURE)


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
        lineage, signature = _source_and_signature(folder, manifest, registry, policy, expected)
        said = contradictions(manifest)
        _refuse_differing(folder, said or differing(folder, manifest, listener))
        return {
            "kind": "output",
            "path": str(folder),
            **summary_of(manifest),
            "status": lineage.status,
            "verdict": asdict(lineage),
            "gate": gate,
            "signature": signature,
            "notes": [*notes(source, registry), *_overridden(manifest), *_unsigned(signature)],
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
        listed = output_files(manifest)
        awaited = [each.name for each in listed if each.is_weight]
        _refuse_differing(folder, _differing_small(folder, listed, awaited))
        _source_and_signature(folder, manifest, registry, policy, expected)


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with a manifest that lacks something into an error that names it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{folder / MANIFEST}: not a whole manifest ({type(error).__name__}: {error}); fetch "
            "it again"
        ) from error


def _source_and_signature(
    folder: Path,
    manifest: Mapping[str, Any],
    registry: Registry,
    policy: Policy,
    expected: Expected | None,
) -> tuple[Verdict, str]:
    """What the source is by now, and what the signature is worth, over the weights as the manifest
    has them: :func:`differing` says whether they are those that are there.
    """
    lineage = judge_source(manifest, registry)
    signature = check_signature(folder, expected, weights_of(manifest))
    enforce(f"{folder}: its source", lineage, policy)
    return lineage, signature


def _refuse_differing(folder: Path, differences: Sequence[str]) -> None:
    if differences:
        raise MismatchError(
            f"{folder}: not as its manifest says: {'; '.join(differences)}; fetch it again"
        )


def judge_source(manifest: Mapping[str, Any], registry: Registry) -> Verdict:
    """What ``registry`` says of a manifest's source today. It claims what it did when it was
    converted: to be its own ``repo_id``, and the recipe's."""
    source = manifest["source"]
    return registry.judge(
        source_files(source["files"]),
        [each for each in (source["repo_id"], manifest["recipe"]["source"]["repo"]) if each],
        source_fingerprint(source),
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
        found.append(
            "the registry knows one release by its MD5 alone, and the manifest states none: it "
            "may be that release"
        )
    return found


def _unsigned(signature: str) -> list[str]:
    """What digests cannot show."""
    if signature == "valid":
        return []
    return [
        "all this rests on its manifest, written by whoever made the folder: 'quantkit check' "
        "compares the weights themselves"
    ]


def _overridden(manifest: Mapping[str, Any]) -> list[str]:
    """What it was published in spite of: a gate that passed may have judged other files."""
    said = (manifest.get("publication") or {}).get("overrides", [])
    return [f"published although {printable(str(each))}" for each in said]


def differing(folder: Path, manifest: Mapping[str, Any], listener: Listener) -> list[str]:
    """Every file that is missing, changed or extra; the small ones are told of at once."""
    listed = output_files(manifest)
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
    """The same without the weights; what is still ``awaited`` does not count as missing."""
    found = [*_strays(folder, listed, awaited)]
    if not is_sealed(read_raw(folder)):
        found.append(f"{MANIFEST} has changed")
    small = [each for each in listed if not each.is_weight and (folder / each.name).is_file()]
    small.sort(key=lambda each: each.bytes)
    return found + [f"{each.name} has changed" for each in small if not _is_as_listed(folder, each)]


def _strays(folder: Path, listed: Sequence[FileDigest], awaited: Collection[str]) -> Iterator[str]:
    """What is missing, is no file, or is not listed, in all folders that the manifest names."""
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
    tell = counted(listener, "verify", sum(each.bytes for each in weights))
    for each in sorted(weights, key=lambda file: file.bytes):
        path = folder / each.name
        if path.stat().st_size != each.bytes:
            yield f"{each.name} has {path.stat().st_size} bytes in place of {each.bytes}"
        elif digest_file(path, progress=tell).sha256 != each.sha256:
            yield f"{each.name} has changed"
