"""What is asked for, and what is there already where it is to be published."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.card import NAME as CARD
from quantkit.digests import digest_file
from quantkit.errors import HubError, UsageError, on_one_line, printable
from quantkit.hub import HUB_ID, RemoteFile, hub_error, list_files, reason
from quantkit.remote import HUBS_OWN, LocalFile
from quantkit.signatures import SIGNATURE
from quantkit.staging import MANIFEST
from quantkit.types import Event, Listener

if TYPE_CHECKING:
    from huggingface_hub import HfApi


#: Where files wait until they have been read back.
WAITING = "quantkit-upload"

#: Names that git and the Hub take for a branch, and no more than those.
_BRANCH = re.compile(r"[A-Za-z0-9_][\w.+@=/-]*", re.ASCII)


def check_names(repo_id: str, branch: str) -> None:
    """See that a repository and a branch can be called that, before anything is done.

    Raises:
        UsageError: they cannot, or the branch is the one that files wait on.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    shown = f"publish {printable(repo_id)}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        said = printable(on_one_line(error))
        raise UsageError(f"{shown}: not a repository's name ({said}); give OWNER/NAME") from error
    if not HUB_ID.fullmatch(repo_id):
        raise UsageError(f"{shown}: not a repository's name; give OWNER/NAME")
    if branch == WAITING:
        raise UsageError(
            f"--branch {branch}: files wait there until they have been read back, and it is "
            "removed; choose another"
        )
    refused = not _BRANCH.fullmatch(branch) or branch.startswith("refs/") or branch == "HEAD"
    never = ("..", "//", "@{", "/.", ".lock/")
    if refused or any(each in f"{branch}/" for each in never) or branch.endswith("."):
        raise UsageError(
            f"--branch {printable(branch)!r}: not a branch's name; expected letters, digits and "
            "._-/, no '..', no '.lock' at an end, and nothing below refs/"
        )


@dataclass(frozen=True)
class Model:
    """What a manifest is of: the source's weights, and what was done to them."""

    name: str
    fingerprint: str
    method: Mapping[str, Any]

    def replaces(self, other: Model) -> bool:
        """Whether those who load ``other`` would get something else from then on."""
        return (self.fingerprint, self.method) != (other.fingerprint, other.method)


def model_of(manifest: Mapping[str, Any]) -> Model:
    source, recipe = manifest["source"], manifest["recipe"]
    name = f"{recipe['name']} of {source['repo_id'] or source['name']}"
    known = source.get("fingerprint") or {}  # an earlier quantkit took none
    return Model(name, str(known.get("values")), recipe["method"])


@dataclass(frozen=True)
class Push:
    """What is asked for."""

    repo_id: str
    branch: str
    pr: bool
    public: bool
    overwrite: bool
    quick: bool
    files: tuple[LocalFile, ...]
    model: Model


@dataclass(frozen=True)
class Destination:
    """``head`` is the commit that was looked at, ``published`` what an earlier quantkit put.

    ``edited`` are those of its files that somebody changed since, such as the card on its page.
    """

    exists: bool = False
    has_branch: bool = False
    private: bool = True
    head: str = ""
    files: Sequence[RemoteFile] = ()
    published: Mapping[str, Any] = field(default_factory=dict)
    edited: Sequence[str] = ()
    model: Model | None = None

    def extra(self, asked: Push) -> tuple[str, ...]:
        """Files there that will go.

        Raises:
            UsageError: others put some of them there, or changed some that will be replaced, and
                they may not be removed.
        """
        self._refuse_another(asked)
        listed = {each.name: each for each in self.files}
        lost = [
            each.name for each in asked.files
            if each.name in self.edited and not each.is_like(listed[each.name])
        ]  # fmt: skip
        if lost and not asked.overwrite:
            raise UsageError(
                f"publish {asked.repo_id}: {', '.join(lost)} changed there since quantkit put it; "
                "save what is to be kept, then --overwrite to replace it, or --branch for another "
                "place"
            )
        ours = {each.name for each in asked.files}
        there = [each.name for each in self.files if each.name not in HUBS_OWN]
        names = [each for each in there if each not in ours]
        if self.published:
            foreign = [each for each in names if each not in (*self.published, SIGNATURE)]
        else:  # a repository that was made on the Hub's page has a card that says nothing yet
            foreign = [each for each in there if each != CARD]
        if foreign and not asked.overwrite:
            raise UsageError(
                f"publish {asked.repo_id}: holds files that quantkit did not put there "
                f"({', '.join(sorted(foreign)[:5])}); choose another repository, or --overwrite "
                "to remove them"
            )
        return tuple(names)

    def _refuse_another(self, asked: Push) -> None:
        """Those who know a model by its name, or by its key, must not find another there."""
        if asked.overwrite or asked.pr or not self.has_branch:
            return
        shown = f"publish {asked.repo_id}"
        if self.model is not None and asked.model.replaces(self.model):
            raise UsageError(
                f"{shown}: {printable(self.model.name)} is there, and this is "
                f"{printable(asked.model.name)}, of other weights or by another method; choose "
                "another repository or --branch, or --overwrite to replace it"
            )
        ours = {each.name for each in asked.files}
        if SIGNATURE not in ours and any(each.name == SIGNATURE for each in self.files):
            raise UsageError(
                f"{shown}: what is there is signed, and this is not; --sign it, or --overwrite to "
                "let the signature go"
            )


def look(
    client: HfApi, repo_id: str, branch: str, *, public: bool, offline: Listener | None = None
) -> Destination | None:
    """See that somebody is logged in, and what is there. ``None`` where the Hub does not answer
    and need not; ``offline`` is then told why.

    Raises:
        HubError: no token, or the Hub does not answer.
        UsageError: it is public, and ``public`` was not asked for.
    """
    from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError

    try:
        client.whoami()
        try:
            info = client.model_info(repo_id)
        except RepositoryNotFoundError:
            return Destination(private=not public)
        found = _found(client, repo_id, branch, str(info.sha), bool(info.private))
    except LocalTokenNotFoundError as error:
        _unasked(HubError(f"publish {repo_id}: {reason(error)}"), error, offline)
        return None
    except Exception as error:
        _unasked(hub_error(f"publish {repo_id}", error), error, offline)
        return None
    if not found.private and not public:
        raise UsageError(
            f"publish {repo_id}: exists and is public; say --public to publish there, or choose "
            "another repository"
        )
    return found


def _unasked(said: HubError, cause: Exception, offline: Listener | None) -> None:
    if offline is None:
        raise said from cause
    offline(Event("publish", message=f"the Hub was not asked: {said}"))


def _found(client: HfApi, repo_id: str, branch: str, main: str, private: bool) -> Destination:
    branches = {each.name: each.target_commit for each in client.list_repo_refs(repo_id).branches}
    head = branches.get(branch, main)
    files = list_files(client, repo_id, head)
    published: dict[str, Any] = {}
    model = None
    if any(each.name == MANIFEST for each in files):
        path = Path(client.hf_hub_download(repo_id, MANIFEST, revision=head))
        published, model = _listed(path)
    edited = [each.name for each in files if _is_edited(client, repo_id, head, each, published)]
    return Destination(True, branch in branches, private, head, files, published, edited, model)


def _is_edited(
    client: HfApi, repo_id: str, head: str, file: RemoteFile, published: Mapping[str, Any]
) -> bool:
    """Whether a file is not what the manifest beside it says; small ones are fetched for it."""
    stated = published.get(file.name)
    if stated is None:
        return False
    if file.sha256 is not None:
        return bool(file.sha256 != stated)
    got = client.hf_hub_download(repo_id, file.name, revision=head)
    return bool(digest_file(Path(got)).sha256 != stated)


def _listed(path: Path) -> tuple[dict[str, Any], Model | None]:
    """The names in a manifest that may be anybody's, and what it is of."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {str(each["name"]): each["sha256"] for each in manifest["output"]["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}, None
    try:
        return {MANIFEST: None, **files}, model_of(manifest)
    except (KeyError, TypeError):  # an earlier quantkit's
        return {MANIFEST: None, **files}, None
