"""``verify`` and ``check_tokenizer``: a folder held to the registry, its manifest, its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantkit.digests import digest_file
from quantkit.errors import MismatchError, SourceError, UsageError
from quantkit.gate.tokens import Ways, check_tokenizer_level
from quantkit.manifest import read_manifest
from quantkit.registry import Registry
from quantkit.registry import checksums as read_checksums
from quantkit.resources import evaluation_text
from quantkit.source import open_source, read_object
from quantkit.staging import MANIFEST
from quantkit.tokenization import read_model
from quantkit.tokenizer import SENTENCEPIECE_FILES, has_library_files, sentencepiece_file
from quantkit.types import Event, FileDigest, Listener, silent
from quantkit.verification import Policy, digest_source, enforce, settle

#: What version control and the hub client put into a folder.
_NOT_OURS = (".git", ".cache", ".gitattributes")

#: Where transformers finds which tokenizer a folder has.
_SAYS_HOW = ("tokenizer_config.json", "tokenizer.json", "config.json")


def verify(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    checksums: Sequence[str | Path] = (),
    require_verified: bool = False,
    allow_withdrawn: bool = False,
    listener: Listener = silent,
) -> dict[str, Any]:
    """Digest a checkpoint, or a folder that quantkit made, and say what it is.

    An output is held to its manifest file by file, and the source that its manifest
    names to today's registry: it may have been withdrawn since.

    Raises:
        VerificationError: a digest differs, or the release was withdrawn.
        SourceError: it cannot be read.
    """
    registry = read_checksums([Path(each) for each in checksums])
    policy = Policy(allow_withdrawn, require_verified)
    folder = Path(path_or_repo)
    if (folder / MANIFEST).is_file():
        return _verify_output(folder, registry, policy)
    source = open_source(path_or_repo, revision, listener)
    verified = settle(source, digest_source(source, registry, listener), None, registry, policy)
    return {
        "kind": "source",
        "path": source.given,
        "revision": source.revision,
        "status": verified.verdict.status,
        "verdict": asdict(verified.verdict),
        "files": [asdict(each) for each in verified.files],
    }


def check_tokenizer(
    path: str | Path, *, text: str | Path | None = None, listener: Listener = silent
) -> dict[str, Any]:
    """What transformers in this environment does to texts, against the folder's sentencepiece.

    The gate's tokenizer level alone, on any folder with a ``spiece.model`` or
    ``tokenizer.model``: the built-in corpus, every piece, and ``text`` (or the default text).

    Raises:
        SourceError: the folder has no sentencepiece model, or a file of its tokenizer is broken.
        UsageError: no such folder, or ``text`` cannot be read.
    """
    folder = Path(path)
    _with_model(folder)
    chosen = Path(text) if text is not None else evaluation_text()
    try:
        whole = chosen.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"text {chosen}: cannot be read as UTF-8: {error}") from error
    strings = [whole, *whole.splitlines()]
    level = check_tokenizer_level(
        folder,
        folder,
        strings,
        read_object(folder / "config.json"),
        Ways(allow_ties=True),
        progress=lambda done: listener(Event("tokenizer", done, len(strings), "texts")),
    )
    return {
        "path": str(folder),
        "status": level.outcome,
        "transformers": version("transformers"),
        "failures": [str(each) for each in level.failures],
        **level.measures,
    }


def _with_model(folder: Path) -> None:
    """There is a folder whose tokenizer can be read, and a model in it to hold that to."""
    if not folder.is_dir():
        hint = "a file; give the folder that holds it" if folder.exists() else "no such folder"
        raise UsageError(f"{folder}: {hint}")
    model, names = sentencepiece_file(folder), " or ".join(SENTENCEPIECE_FILES)
    if model is None and has_library_files(folder):
        raise SourceError(
            f"{folder}: no sentencepiece model ({names}), so its tokenizer (byte-level BPE or the "
            "like) has nothing to be held to but itself"
        )
    if model is None:
        raise SourceError(f"{folder}: no sentencepiece model ({names}) and no other tokenizer")
    read_model(model)
    said = [read_object(folder / name) for name in _SAYS_HOW]
    if not any(said):
        raise SourceError(
            f"{folder}: {model.name} alone: transformers looks in {', '.join(_SAYS_HOW)} for how "
            "to read it; give a checkpoint's folder"
        )


def _verify_output(folder: Path, registry: Registry, policy: Policy) -> dict[str, Any]:
    manifest = read_manifest(folder)
    try:
        return _hold_to(folder, manifest, registry, policy)
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{folder / MANIFEST}: not a whole manifest ({type(error).__name__}: {error}); fetch "
            "it again"
        ) from error


def _hold_to(
    folder: Path, manifest: Mapping[str, Any], registry: Registry, policy: Policy
) -> dict[str, Any]:
    differences = list(_differences(folder, manifest))
    if differences:
        raise MismatchError(
            f"{folder}: not as its manifest says: {'; '.join(differences)}; fetch it again"
        )
    lineage = registry.judge(
        [FileDigest(**each) for each in manifest["source"]["files"]],
        [each for each in (manifest["source"]["repo_id"],) if each],
    )
    enforce(f"{folder}: its source", lineage, policy)
    return {
        "kind": "output",
        "path": str(folder),
        "status": lineage.status,
        "verdict": asdict(lineage),
        "gate": manifest["gate"]["status"],
        "files": manifest["output"]["files"],
    }


def _differences(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Every file that is missing, changed or extra; all of them, not the first."""
    listed = {each["name"]: each["sha256"] for each in manifest["output"]["files"]}
    folders = {name.rpartition("/")[0] for name in listed} - {""}
    top = {path.name for path in folder.iterdir()} - {MANIFEST, *_NOT_OURS} - folders
    inside = {
        f"{each}/{path.name}"
        for each in folders
        if (folder / each).is_dir()
        for path in (folder / each).iterdir()
    }
    there = top | inside
    present = {name for name in there if (folder / name).is_file()}
    for name in sorted(there - present):
        yield f"{name} is no file of the manifest"
    for name in sorted(listed.keys() - present):
        yield f"{name} is missing"
    for name in sorted(present - listed.keys()):
        yield f"{name} is not in the manifest"
    for name in sorted(listed.keys() & present):
        if digest_file(folder / name).sha256 != listed[name]:
            yield f"{name} has changed"
