"""``verify`` and ``check_tokenizer``: a folder held to the registry, its manifest, its model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantkit.errors import MismatchError, SourceError, UsageError, printable
from quantkit.fetching import fetch
from quantkit.gate.tokens import TokenizerSettings, check_tokenizer_level
from quantkit.given import expanded, read_given_text
from quantkit.lineage import verify_output, verify_small
from quantkit.lookalikes import in_place_of_folder
from quantkit.registry import Registry
from quantkit.registry import checksums as read_checksums
from quantkit.resources import evaluation_text
from quantkit.scrutiny import check_config
from quantkit.signatures import open_expected
from quantkit.source import is_hub_id, open_source, read_object, wanted_files
from quantkit.staging import MANIFEST
from quantkit.tokenization import read_model
from quantkit.tokenizer import SENTENCEPIECE_FILES, has_library_files, sentencepiece_file
from quantkit.types import AnyPath, Event, Listener, silent
from quantkit.verb import verb
from quantkit.verification import Policy, digest_source, settle

#: Where transformers finds which tokenizer a folder has.
_SAYS_HOW = ("tokenizer_config.json", "tokenizer.json", "config.json")


@verb
def verify(
    path_or_repo: AnyPath,
    *,
    revision: str | None = None,
    repo: str | None = None,
    public_key: AnyPath | None = None,
    checksums: AnyPath | Iterable[AnyPath] = (),
    require_verified: bool = False,
    allow_withdrawn: bool = False,
    listener: Listener = silent,
) -> dict[str, Any]:
    """Digest a checkpoint, or a folder that quantkit made, and say what it is.

    An output is held to its manifest file by file, and the source that its manifest
    names to today's registry: it may have been withdrawn since. ``repo`` is what a
    checkpoint is said to be (``owner/name``): it is then held to that entry. ``public_key``
    is whose signature is expected on an output; what has none is then refused.

    Raises:
        VerificationError: a digest differs, or the release was withdrawn.
        SourceError: it cannot be read.
    """
    registry = read_checksums(checksums)
    policy = Policy(allow_withdrawn, require_verified)
    key = open_expected(expanded(public_key)) if public_key is not None else None
    folder = expanded(path_or_repo)

    def look(at: Path) -> None:
        """Refuse, if need be, what was fetched so far, before the weights are."""
        _refuse_idle_options(path_or_repo, at, repo, public_key)
        if os.path.lexists(at / MANIFEST):
            verify_small(at, registry, policy, key)

    if is_hub_id(path_or_repo):
        # whole where quantkit made it; else what a conversion needs
        fetched = fetch(str(path_or_repo), revision, wanted_to_verify, listener, look)
        folder, revision = fetched.folder, fetched.commit
    elif revision is not None:
        raise UsageError(
            f"verify {path_or_repo}: --revision {revision} is of a Hub id, and this is a folder; "
            "drop it"
        )
    _refuse_idle_options(path_or_repo, folder, repo, public_key)
    if os.path.lexists(folder / MANIFEST):
        return verify_output(folder, registry, policy, key, listener)
    _refuse_unknown(path_or_repo, repo, registry)
    source = open_source(path_or_repo, revision, listener)
    digested = digest_source(source, registry, listener)
    verified = settle(source, digested, None, registry, policy, claimed=repo)
    return {
        "kind": "source",
        "path": source.given,
        "revision": source.revision,
        "status": verified.verdict.status,
        "verdict": asdict(verified.verdict),
        "files": [asdict(each) for each in verified.files],
        "fingerprint": asdict(verified.digested.fingerprint),
    }


def _refuse_idle_options(
    given: AnyPath, folder: Path, repo: str | None, key: AnyPath | None
) -> None:
    """Refuse options that mean nothing for what is in ``folder``.

    Only outputs are signed: one whose manifest was taken away counts as none.
    """
    if os.path.lexists(folder / MANIFEST):
        if repo is not None:
            raise UsageError(
                f"verify {given}: --repo {repo} is what a checkpoint is said to be, and this is an "
                "output, whose manifest says what it was made from; drop it"
            )
    elif key is not None and folder.is_dir():  # no folder at all is said in other words
        raise MismatchError(
            f"{given}: no {MANIFEST} there, so no output whose signature --public-key {key} could "
            "check; ask the publisher, or drop the option"
        )


def _refuse_unknown(given: AnyPath, repo: str | None, registry: Registry) -> None:
    """A name that no entry has holds a source to nothing: a slip, most likely."""
    if repo is not None and not any(each.named(repo) for each in registry.entries):
        raise UsageError(
            f"verify {given}: --repo {printable(repo)}: no entry of the registry has that name, so "
            "it holds nothing; see 'quantkit checksums list', or give its entry (--checksums)"
        )


def wanted_to_verify(names: list[str]) -> list[str]:
    """All files of a repository that quantkit made, else those that a conversion needs."""
    return names if MANIFEST in names else wanted_files(names)


@verb
def check_tokenizer(
    path: AnyPath, *, text: AnyPath | None = None, listener: Listener = silent
) -> dict[str, Any]:
    """What transformers in this environment does to texts, against the folder's sentencepiece.

    The gate's tokenizer level alone, on any folder with a ``spiece.model`` or
    ``tokenizer.model``: the built-in corpus, every piece, and ``text`` (or the default text).

    Raises:
        SourceError: the folder has no sentencepiece model, or a file of its tokenizer is broken.
        UsageError: no such folder, or ``text`` cannot be read.
    """
    folder = expanded(path)
    _check_has_model(folder)
    config = read_object(folder / "config.json")
    check_config(config, f"{folder}/config.json")
    chosen = expanded(text) if text is not None else evaluation_text()
    whole = read_given_text(chosen, f"text {chosen}")
    if not whole:
        raise UsageError(f"text {chosen}: empty; give some text, or leave it out")
    strings = [whole, *whole.splitlines()]
    level = check_tokenizer_level(
        folder,
        folder,
        strings,
        config,
        TokenizerSettings(allow_ties=True),
        progress=lambda done: listener(Event("tokenizer", done, len(strings), "texts")),
    )
    return {
        "path": str(folder),
        "status": level.outcome,
        "transformers": version("transformers"),
        "failures": [str(each) for each in level.failures],
        **level.measures,
    }


def _check_has_model(folder: Path) -> None:
    """See that the folder's tokenizer can be read, and that there is a model to hold it to."""
    if not folder.is_dir():
        raise UsageError(f"folder {folder}: {in_place_of_folder(folder, or_hub=False)}")
    model, names = sentencepiece_file(folder), " or ".join(SENTENCEPIECE_FILES)
    if model is None and has_library_files(folder):
        raise SourceError(
            f"{folder}: no sentencepiece model ({names}), so its tokenizer (byte-level BPE or the "
            "like) has nothing to be held to but itself"
        )
    if model is None:
        raise SourceError(
            f"{folder}: no sentencepiece model ({names}) and no other tokenizer; give a folder "
            "that has one"
        )
    read_model(model)
    said = [read_object(folder / name) for name in _SAYS_HOW]
    if not any(said):
        raise SourceError(
            f"{folder}: {model.name} alone: transformers looks in {', '.join(_SAYS_HOW)} for how "
            "to read it; give a checkpoint's folder"
        )
