"""A finished folder and the source that it was made from, each held to the folder's manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from quantkit.amending import staging_to_amend
from quantkit.card import render_card
from quantkit.digests import digest_file
from quantkit.errors import GateError, MismatchError, SourceError, UsageError
from quantkit.given import expanded
from quantkit.lineage import differing
from quantkit.listed import source_files, weights_of
from quantkit.records import read_manifest, read_raw
from quantkit.signatures import SIGNATURE, refuse_unsignable
from quantkit.signing import Signer, open_signer
from quantkit.source import Source, is_hub_id, open_source
from quantkit.staging import MANIFEST, Staging
from quantkit.tokenization import compare
from quantkit.tokenizer import open_tokenizer, sentencepiece_file
from quantkit.types import AnyPath, Listener, counted

#: What is read of a manifest while its folder is evaluated.
_READ = (
    ("source", "repo_id"),
    ("source", "revision"),
    ("request", "source"),
    ("recipe", "source", "container"),
    ("recipe", "tokenizer", "split_special_tokens"),
    ("plan", "dtype"),
)


@dataclass(frozen=True)
class Subject:
    """A folder that is as its manifest says. ``before`` are the manifest's bytes, ``place``
    where its successor is made, ``signer`` who signs that one."""

    folder: Path
    place: Staging
    manifest: Mapping[str, Any]
    before: bytes
    signer: Signer | None


def read_subject(given: AnyPath, key: AnyPath | None, listener: Listener) -> Subject:
    """Read the finished folder ``given`` and hold it to its manifest.

    Raises:
        UsageError: quantkit did not make it, or it is signed and no ``key`` is given, or it
            cannot be signed.
        MismatchError: it has changed since, or its signature is another's.
        SourceError: its manifest cannot be read.
    """
    folder = expanded(given)
    place = staging_to_amend(folder.resolve())
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            f"{folder}: no {MANIFEST} there; give a folder that 'quantkit convert' made"
        )
    if (folder / SIGNATURE).exists() and key is None:
        raise UsageError(
            f"{folder}: signed ({SIGNATURE}), and new figures change the signed card; give the key "
            "(--sign KEY) to sign it anew"
        )
    signer = open_signer(expanded(key)) if key is not None else None
    before, manifest = read_raw(place.out), read_manifest(place.out)
    try:
        # what would fail in the end, in reading the manifest or on the card, fails before the work
        source_files(manifest["source"]["files"])
        _ = [reduce(getitem, keys, manifest) for keys in _READ]  # each is there
        render_card(manifest)
        if signer is not None:
            refuse_unsignable(place.out)
            signer.refuse_anothers(place.out, weights_of(manifest), f"remove {SIGNATURE}")
        changed = differing(place.out, manifest, listener)
    except (KeyError, TypeError, AttributeError, OverflowError, UndefinedError) as error:
        raise SourceError(
            f"{folder / MANIFEST}: not a whole manifest of this quantkit ({error}); convert again"
        ) from error
    if changed:
        raise MismatchError(
            f"{folder}: not as its manifest says: {'; '.join(changed)}; figures would be of "
            "another model: fetch it or convert it again"
        )
    return Subject(place.out, place, manifest, before, signer)


def source_of(subject: Subject, given: AnyPath | None, listener: Listener) -> Source:
    """The checkpoint that ``subject`` was made from: ``given``, its Hub id, or beside it.

    Raises:
        UsageError: it is nowhere to be found.
        MismatchError: what is there is another checkpoint.
        SourceError: it cannot be opened.
    """
    recorded = subject.manifest["source"]
    where = given if given is not None else _place_of(subject)
    revision = recorded["revision"] if is_hub_id(where) else None
    container = subject.manifest["recipe"]["source"]["container"]
    wanted = None if container == "auto" else container
    opened = open_source(where, revision, listener, wanted)
    if wrong := list(_unlike(opened, recorded, listener)):
        raise MismatchError(
            f"source {where}: not what {subject.folder.name} was made from: {'; '.join(wrong)}; "
            "give that checkpoint (--source)"
        )
    return opened


def _place_of(subject: Subject) -> AnyPath:
    recorded = subject.manifest["source"]
    name = recorded["repo_id"] or subject.manifest["request"]["source"]
    if is_hub_id(name):
        return str(name)
    places = (Path(name), subject.folder.parent / name)
    found = next((each for each in places if (each / "config.json").is_file()), None)
    if found is None:
        raise UsageError(
            f"{subject.folder}: its source {name!r} is not at hand (looked in "
            f"{' and '.join(str(each.absolute().parent) for each in places)}); say where it lies: "
            "--source FOLDER"
        )
    return found


def _unlike(opened: Source, recorded: Mapping[str, Any], listener: Listener) -> Iterator[str]:
    """Each file of the recorded source that is not there, or is another."""
    tell = counted(listener, "source", sum(each["bytes"] for each in recorded["files"]))
    for each in recorded["files"]:
        path = opened.folder / each["name"]
        if not path.is_file():
            yield f"no {each['name']} there"
        elif path.stat().st_size != each["bytes"]:
            yield f"{each['name']} has {path.stat().st_size} bytes, expected {each['bytes']}"
        elif (got := digest_file(path, progress=tell).sha256) != each["sha256"]:
            yield f"{each['name']} has SHA-256 {got}, expected {each['sha256']}"


def check_ids(
    subject: Subject, opened: Source, tokenizer: Any, texts: Sequence[str]
) -> dict[str, Any]:
    """Whose ids the texts got, and how many are ties between equal segmentations.

    Raises:
        GateError: the folder's tokenizer, read by the transformers that is here, gives a text
            other ids than the source's own model of it.
    """
    split = subject.manifest["recipe"]["tokenizer"]["split_special_tokens"]
    judge = open_tokenizer(opened.folder, split_special_tokens=split)
    if judge is None:
        raise UsageError(f"source {opened.given}: no tokenizer there; nothing can be asked")

    def encode(text: str) -> list[int]:
        return [int(each) for each in tokenizer.encode(text, add_special_tokens=False)]

    other = [text for text in texts if encode(text) != judge.encode(text)]
    model = sentencepiece_file(opened.folder)
    ties, shown = 0, other[:1]
    if other and judge.route == "sentencepiece" and model is not None:
        report = compare(encode, tokenizer.decode, model, other)
        ties, shown = report.ties, [each.text for each in report.first] or shown
    if len(other) > ties:
        raise GateError(
            f"{subject.folder}: its tokenizer gives {len(other) - ties} of {len(texts)} texts "
            f"other ids than {judge.route} does, e.g. {shown[0][:60]!r}; see 'quantkit "
            "check-tokenizer', and convert again"
        )
    return {"by": judge.route, "texts": len(texts), "ties": ties}
