"""The one door to a model hub: huggingface_hub's client, and its errors in our words.

No token passes through here: the client finds it where it always does (``HF_TOKEN``, or
what ``hf auth login`` stored). What the client says goes through :func:`scrub` before
anyone reads it, as it quotes addresses that are signed.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.digests import digest_file
from quantkit.errors import HubError, on_one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: ``owner/name``.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z", re.ASCII)

#: What a rerun does after a break, in messages.
AGAIN = "run again, files that have arrived are kept"

_SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=\?)\S+|(?i:bearer )\S+")

#: The status codes that say something of their own; ``{said}`` is the server's message.
_STATUS = {
    401: "the Hub does not accept the token; log in anew ('hf auth login') or correct HF_TOKEN",
    402: "the Hub asks for payment ({said})",
    403: "the Hub forbids it ({said}); use a token that may write there, and see that the account "
    "has room",
    404: "the Hub does not have it ({said})",
    409: "the Hub is busy with another operation on it ({said}); wait a moment and run again",
    412: "somebody else committed to it meanwhile; look at what changed there and run again",
    413: "the Hub takes no file of this size ({said})",
    429: "the Hub asks for fewer requests; wait a few minutes and {again}",
    507: "the Hub has no room left for it ({said}); free some, or ask for more",
}


#: The client's own kinds of error, the more particular first.
_KINDS = {
    "LocalTokenNotFoundError": "no token; log in with 'hf auth login' or set HF_TOKEN",
    "OfflineModeIsEnabled": "offline mode is on; unset HF_HUB_OFFLINE",
    "GatedRepoError": "gated; ask for access on its page, with the account of your token, and run "
    "again",
    "RepositoryNotFoundError": "no such repository, or a private one that the token (HF_TOKEN, "
    "'hf auth login') does not open; check the name",
    "RevisionNotFoundError": "no such branch, tag or commit there; check the revision",
    "DisabledRepoError": "the Hub has disabled it",
}


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it. ``sha256`` is of large files, ``blob_id`` git's SHA-1."""

    name: str
    bytes: int
    blob_id: str
    sha256: str | None


def api() -> HfApi:
    """The client, for the endpoint and with the token that the environment names."""
    from huggingface_hub import HfApi

    for handler in logging.getLogger("huggingface_hub").handlers:
        if not any(isinstance(each, _Scrubbing) for each in handler.filters):
            handler.addFilter(_Scrubbing())
    return HfApi(library_name="quantkit")


class _Scrubbing(logging.Filter):
    """What the client logs, without the addresses that are signed."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = scrub(record.getMessage()), ()
        return True


def list_files(client: HfApi, repo_id: str, revision: str) -> tuple[RemoteFile, ...]:
    """All files of one revision."""
    from huggingface_hub.hf_api import RepoFile

    return tuple(
        RemoteFile(each.path, each.size, each.blob_id, each.lfs.sha256 if each.lfs else None)
        for each in client.list_repo_tree(repo_id, recursive=True, revision=revision)
        if isinstance(each, RepoFile)
    )


def blob_id(data: bytes) -> str:
    """git's SHA-1 of a file, which is what the Hub lists for small ones."""
    head = b"blob %d\0" % len(data)
    return hashlib.sha1(head + data, usedforsecurity=False).hexdigest()


def differs(path: Path, listed: str) -> str:
    """What ``path`` digests to where that is not ``listed``, else nothing.

    64 hex digits are a SHA-256, 40 git's SHA-1.
    """
    found = digest_file(path).sha256 if len(listed) == 64 else blob_id(path.read_bytes())
    return "" if found == listed else found


@contextmanager
def large_file_route() -> Iterator[None]:
    """Uploads inside take the LFS route, the one that is tested.

    The client asks its constant at every upload; the environment stays as the caller has it.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def hub_error(what: str, error: Exception, again: str = AGAIN) -> HubError:
    """``error`` of the client as one of ours; ``what`` begins the message."""
    return HubError(f"{what}: {reason(error, again)}")


def is_unreachable(error: Exception) -> bool:
    """Whether the Hub was not reached or had an error of its own, so that a cache may serve."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status(error)
    if status is not None:
        return status >= 500
    return isinstance(error, OfflineModeIsEnabled) or _broke(error)


def reason(error: Exception, again: str = AGAIN) -> str:
    """Why the Hub did not do it, and what to do next."""
    for kind, said in _KINDS.items():
        if kind in (each.__name__ for each in type(error).__mro__):
            return said
    status, said = _status(error), scrub(_server_said(error))
    if status is None and "quota" in said.lower():
        status = 507
    if status is None:
        return f"the connection broke; {again}" if _broke(error) else said
    fallback = "the Hub has an error of its own ({status}); wait a while and {again}"
    if status < 500:
        fallback = "the Hub answers {status} ({said}); {again}"
    return _STATUS.get(status, fallback).format(status=status, said=said, again=again)


def scrub(text: str) -> str:
    """``text`` without tokens and without the signed part of addresses, on one line."""
    return " ".join(_SECRET.sub("…", text).split())


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it: the client wraps what its threads raise."""
    at: BaseException | None = error
    seen: set[int] = set()  # ``raise error from error`` makes a circle
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _status(error: Exception) -> int | None:
    for each in _chain(error):
        response = getattr(each, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def _server_said(error: Exception) -> str:
    for each in _chain(error):
        response = getattr(each, "response", None)
        if response is not None:
            said = response.headers.get("X-Error-Message")
            return str(said or getattr(each, "server_message", None) or f"{response.status_code}")
    text = str(error)
    # the batch answer names each object; what it says of the first is enough
    found = re.search(r"OID \w+: `([^`\n]+)", text)
    return found[1] if found else on_one_line(error)


def _broke(error: Exception) -> bool:
    """Whether the network did it: the HTTP library's own errors, whichever it is called."""
    return any(
        isinstance(each, ConnectionError | TimeoutError)
        or type(each).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")
        or "Consistency check failed" in str(each)
        for each in _chain(error)
    )
