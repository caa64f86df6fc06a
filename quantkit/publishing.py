"""``publish``: a passed folder -> a repository on the Hub whose bytes have been read back.

Nothing is committed to the branch that people see before the Hub has shown that it holds
the very bytes: they are sent to a branch of their own (or to the pull request), downloaded
again and digested; only then one commit, bound to the parent that was looked at, puts them
in place. So a branch has all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from jinja2 import UndefinedError

from quantkit.amending import amend, staging_to_amend
from quantkit.card import NAME as CARD
from quantkit.carddata import identity
from quantkit.destination import Destination, Push, check_names, look, model_of
from quantkit.digests import digest_bytes, digest_file
from quantkit.errors import HubError, MismatchError, SourceError, UsageError, printable
from quantkit.given import expanded
from quantkit.hub import api, hub_error, large_file_route
from quantkit.licences import ID, Licence
from quantkit.lineage import judge_source
from quantkit.listed import weights_of
from quantkit.pushing import push
from quantkit.readiness import Kind, manifest_and_card, refusals, refuse, refuse_odd_files
from quantkit.records import manifest_text, read_manifest, read_raw
from quantkit.registry import Registry
from quantkit.registry import checksums as read_checksums
from quantkit.remote import LocalFile
from quantkit.signatures import SIGNATURE, is_signed, refuse_unsignable
from quantkit.signing import Signer, open_signer
from quantkit.staging import MANIFEST
from quantkit.types import AnyPath, Event, Listener, silent
from quantkit.verb import verb

_NO_BASE = (
    "the card will name no base model: its source is a folder that no registry here knows; convert "
    "from a Hub id, or add an entry ('quantkit checksums add') and publish with --checksums"
)
_STAYS_PRIVATE = "exists and is private; it stays private until you change that in its settings"


def agreed(offer: Mapping[str, Any]) -> bool:
    """The answer of those who call from Python: calling is agreeing."""
    return True


@verb
def publish(
    dir: AnyPath,
    repo_id: str,
    *,
    public: bool = False,
    branch: str = "main",
    pr: bool = False,
    collection: str | None = None,
    licence: str | None = None,
    allow_unjudged: bool = False,
    allow_changed: bool = False,
    allow_withdrawn: bool = False,
    allow_licence: bool = False,
    overwrite: bool = False,
    quick: bool = False,
    dry_run: bool = False,
    sign: AnyPath | None = None,
    checksums: AnyPath | Iterable[AnyPath] = (),
    confirm: Callable[[Mapping[str, Any]], bool] = agreed,
    listener: Listener = silent,
) -> dict[str, Any]:
    """Push the finished folder ``dir`` to ``repo_id`` and verify what lies there.

    The card and the manifest are written anew for that repository, in the folder too, so
    that both are the same bytes. The token is the client's own affair (``HF_TOKEN``,
    ``hf auth login``). ``confirm`` sees what will be pushed before anything is.

    ``licence`` states what the source's card does not. The ``allow_`` options override one
    refusal each, and the card says so. ``overwrite`` removes what others put there, and replaces
    what they changed, or another model. With ``quick`` weights are not read back, only compared
    with what the Hub lists. ``sign`` is the private key (PEM) to sign the published files with; a
    signature that is there is replaced where it is this key's, or with ``allow_changed``.

    Raises:
        UsageError: not a folder that quantkit made, or one with links; a bad name of a repository
            or of a branch.
        GateError, MismatchError, WithdrawnError, LicenceError: not to be published.
        HubError: the Hub says no, or breaks off; the branch is as it was.
        RemoteError: what the Hub holds is not what was sent; the branch is as it was.
    """
    check_names(repo_id, branch)
    folder, signer = _opened(dir, sign, written=not dry_run)
    allowed = _allowed(
        unjudged=allow_unjudged,
        changed=allow_changed,
        withdrawn=allow_withdrawn,
        licence=allow_licence,
    )
    registry = read_checksums(checksums)
    replacing = None if allow_changed else signer  # whose the signature there must be
    ready = _ready(folder, (repo_id, branch), registry, licence, allowed, replacing, listener)
    client = api()
    there = look(client, repo_id, branch, public=public, offline=listener if dry_run else None)
    for said in _to_know(ready, there, public=public):
        listener(Event("publish", message=f"{repo_id}: {said}"))
    files = _files(folder, ready.manifest, signed=signer is not None)
    asked = Push(repo_id, branch, pr, public, overwrite, quick, files, model_of(ready.manifest))
    offer = _offer(asked, there, ready.said)
    if dry_run:
        return offer
    if not confirm(offer):
        raise UsageError(f"publish {repo_id}: not confirmed; nothing was pushed")
    asked = replace(asked, files=_written(folder, ready, files, signer))
    with large_file_route():
        done = push(client, asked, there or Destination(), folder.resolve().parent, listener)
    if collection is not None:
        _collect(repo_id, collection, done["url"])
    listener(Event("publish", message=f"published and verified: {done['url']}"))
    return {**offer, **done, "status": "published", "collection": collection}


@dataclass(frozen=True)
class _Ready:
    """A folder that may be published: its new manifest and card, and what was overridden."""

    manifest: Mapping[str, Any]
    card: bytes
    said: tuple[str, ...]


def _allowed(**kinds: bool) -> list[Kind]:
    return [cast(Kind, kind) for kind, allowed in kinds.items() if allowed]


def _ready(
    folder: Path,
    where: tuple[str, str],
    registry: Registry,
    licence: str | None,
    allowed: Sequence[Kind],
    signer: Signer | None,
    listener: Listener,
) -> _Ready:
    """What is to be published of ``folder``, whose signature is ``signer``'s where one is given.

    The weights are read here, and nowhere else before they are sent: a signature is over
    digests, and these have just been found to be theirs. Whatever happens to them until they
    are sent does not go out, as the Hub is held to the same digests.
    """
    manifest = read_manifest(folder)
    try:
        if signer is not None:
            instead = f"remove {SIGNATURE}, or --allow-changed"
            signer.refuse_anothers(folder, weights_of(manifest), instead)
        stated = _licence(manifest, licence)
        verdict = judge_source(manifest, registry)
        against = refusals(folder, manifest, verdict, stated, listener)
        refuse(folder, against, allowed)
        made = manifest_and_card(folder, manifest, where, verdict, stated, against)
        return _Ready(*made, tuple(map(str, against)))
    except (KeyError, TypeError, AttributeError, OverflowError, UndefinedError) as error:
        raise SourceError(
            f"{folder / MANIFEST}: not a whole manifest of this quantkit ({error}); convert again"
        ) from error


def _written(
    folder: Path, ready: _Ready, files: Sequence[LocalFile], signer: Signer | None
) -> tuple[LocalFile, ...]:
    """``files``, once the new card, manifest and signature are in the folder, all at once."""
    known, before = weights_of(ready.manifest), read_raw(folder)
    new = (ready.card, manifest_text(ready.manifest).encode("utf-8"))
    signed = signer is None or signer.has_signed(folder, known)
    if not signed or ((folder / CARD).read_bytes(), before) != new:
        place = staging_to_amend(folder.resolve())
        amend(place, before, ready.manifest, {CARD: ready.card}, signer, known)
    if signer is None:
        return tuple(files)
    if not signer.has_signed(folder, known):  # said here, not by whoever downloads it
        raise MismatchError(
            f"{folder / SIGNATURE}: does not verify, though just made; nothing was sent: see that "
            "nothing else writes to the folder, and run again"
        )
    found = digest_file(folder / SIGNATURE)
    signature = LocalFile(SIGNATURE, folder / SIGNATURE, found.bytes, found.sha256)
    return tuple(signature if each.name == SIGNATURE else each for each in files)


def _opened(dir: AnyPath, sign: AnyPath | None, *, written: bool) -> tuple[Path, Signer | None]:
    """The folder, in which no link leads elsewhere, and who signs it.

    One that will be ``written`` must be replaceable, which is seen here, before the work.
    """
    folder = expanded(dir)
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            f"{folder}: no {MANIFEST} there; give a folder that 'quantkit convert' made"
        )
    refuse_odd_files(folder)
    refuse_unsignable(folder)
    if written:
        staging_to_amend(folder.resolve())
    if is_signed(folder) and sign is None:
        raise UsageError(
            f"{folder}: signed ({SIGNATURE}), and publishing changes the signed card, which must "
            "name the repository; give the key (--sign), or remove the signature"
        )
    return folder, open_signer(expanded(sign)) if sign is not None else None


def _licence(manifest: Mapping[str, Any], stated: str | None) -> Licence:
    known = Licence(**manifest["source"]["licence"])
    if stated is None:
        return known
    if not ID.fullmatch(stated.lower()):
        raise UsageError(
            f"--licence {printable(stated)!r}: expected the Hub's name of a licence, such as "
            "apache-2.0; write it so ('other' for one that has none)"
        )
    if not known.id:
        return Licence(stated.lower(), stated_by="whoever published this")
    if known.id != stated.lower():
        raise UsageError(
            f"--licence {stated}: {known.stated_by} states {known.id}; a licence is stated only "
            "where the source states none"
        )
    return known


def _files(folder: Path, manifest: Mapping[str, Any], *, signed: bool) -> tuple[LocalFile, ...]:
    """What the manifest lists, the manifest itself, and a signature that is yet to be made."""
    own = digest_bytes(MANIFEST, manifest_text(manifest).encode("utf-8"))
    listed = [
        LocalFile(
            each["name"], folder / each["name"], each["bytes"], each["sha256"], each["is_weight"]
        )
        for each in manifest["output"]["files"]
    ]
    signature = [LocalFile(SIGNATURE, folder / SIGNATURE, 0, "")] if signed else []
    return (*listed, LocalFile(MANIFEST, folder / MANIFEST, own.bytes, own.sha256), *signature)


def _to_know(ready: _Ready, there: Destination | None, *, public: bool) -> Iterator[str]:
    if public and there and there.exists and there.private:
        yield _STAYS_PRIVATE
    if identity(ready.manifest) is None:
        yield _NO_BASE


def _offer(asked: Push, there: Destination | None, said: Sequence[str]) -> dict[str, Any]:
    """What is about to happen, for whoever is asked."""
    return {
        "kind": "publish",
        "status": "offered",
        "repo_id": asked.repo_id,
        "branch": asked.branch,
        "private": there.private if there and there.exists else not asked.public,
        "exists": there.exists if there else None,
        "pull_request": asked.pr,
        "overrides": list(said),
        "removes": list(there.extra(asked)) if there else [],
        "signed": any(each.name == SIGNATURE for each in asked.files),
        "files": [
            {"name": each.name, "bytes": each.bytes, "sha256": each.sha256}
            for each in asked.files
            if each.name != SIGNATURE
        ],
    }


def _collect(repo_id: str, collection: str, url: str) -> None:
    try:
        api().add_collection_item(collection, repo_id, "model", exists_ok=True)
    except Exception as error:
        said = hub_error(f"collection {collection}", error)
        raise HubError(f"{said}; the repository itself is published and verified: {url}") from error
