"""The push itself: send, read back, and only then commit where people look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.destination import WAITING, Destination, Push
from quantkit.errors import HubError, RemoteError, printable
from quantkit.hub import hub_error, list_files
from quantkit.remote import (
    DamagedError,
    LocalFile,
    listing_differences,
    remove_objects,
    verify_remote,
)
from quantkit.types import Event, Listener

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

    Operations = list[CommitOperationAdd | CommitOperationDelete]

#: Holds a commit to the files; the bytes read back.
Verify = Callable[[str], int]

#: Larger files are sent from the disk, and not held in memory.
_HELD = 16 << 20

_AGAIN = "run again, files that have arrived are not sent twice; the branch is as it was"


def _title(asked: Push) -> str:
    return f"Publish with quantkit: {printable(asked.model.name)[:100]}"


def push(
    client: HfApi, asked: Push, there: Destination, room: Path, listener: Listener
) -> dict[str, Any]:
    """Send what is not there, verify it, and commit. ``room``: see :func:`verify_remote`.

    Raises:
        HubError: the Hub says no, or breaks off.
        RemoteError: what it holds is not what was sent.
    """
    removed = there.extra(asked)
    with _explaining(asked):
        there = _create_missing(client, asked, there)
    listed = {each.name: each for each in there.files}
    sent = [
        each for each in asked.files
        if each.name not in listed or not each.is_like(listed[each.name])
    ]  # fmt: skip
    size = sum(each.bytes for each in sent)
    listener(Event("push", message=f"sending {len(sent)} files, {size:,} bytes"))

    def verify(commit: str) -> int:
        return verify_remote(
            client, asked.repo_id, commit, asked.files,
            quick=asked.quick, room=room, listener=listener,
        )  # fmt: skip

    request = None
    if not sent and not removed:
        commit, read = there.head, _read_back(there.head, verify)
    elif asked.pr:
        commit, request, read = _propose(client, asked, sent, removed, verify)
    else:
        with _waiting_branch(client, asked, there.head):
            operations = _operations(sent, removed)
            read = _send_and_verify(client, asked, operations, verify)
            commit = _commit(client, asked, there, _as_sent(operations))
    return {
        "commit": commit,
        "url": request or f"{client.endpoint}/{asked.repo_id}",
        "pull_request": request,
        "private": there.private,
        "sent": [each.name for each in sent],
        "removed": list(removed),
        "sent_bytes": size,
        "read_back_bytes": read,
    }


def _read_back(head: str, verify: Verify) -> int:
    """Read back what an earlier run sent."""
    try:
        return verify(head)
    except DamagedError as error:
        raise RemoteError(f"{error}; delete it there and run again") from error


@contextmanager
def _explaining(asked: Push) -> Iterator[None]:
    """The client's errors in our words."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # the client passes on whatever its HTTP library raises
        raise hub_error(f"publish {asked.repo_id}", error, _AGAIN) from error


def _create_missing(client: HfApi, asked: Push, there: Destination) -> Destination:
    """Create the repository and the branch where they are missing."""
    if not there.exists:
        client.create_repo(asked.repo_id, private=not asked.public, exist_ok=True)
        info = client.model_info(asked.repo_id)
        head = str(info.sha)
        files = list_files(client, asked.repo_id, head)
        there = Destination(True, asked.branch == "main", bool(info.private), head, files)
        if not there.private and not asked.public:
            raise HubError(f"publish {asked.repo_id}: somebody else just made it, and it is public")
    if not there.has_branch:
        client.create_branch(asked.repo_id, branch=asked.branch, revision=there.head, exist_ok=True)
    return there


def _operations(sent: Sequence[LocalFile], removed: Sequence[str]) -> Operations:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def content(file: LocalFile) -> str | bytes:
        return file.path.read_bytes() if file.bytes <= _HELD else str(file.path)

    return [
        *(CommitOperationAdd(each.name, content(each)) for each in sent),
        *(CommitOperationDelete(name) for name in removed),
    ]


def _as_sent(operations: Operations) -> Operations:
    """Copies of them, as the client takes none twice. They are of the bytes that were sent and
    read back, whatever became of the files since; no large file is digested again."""
    from huggingface_hub import CommitOperationAdd

    made: Operations = []
    for each in operations:
        if isinstance(each, CommitOperationAdd):
            again = CommitOperationAdd(each.path_in_repo, each.path_or_fileobj)
            again.upload_info = each.upload_info
            made.append(again)
        else:
            made.append(each)
    return made


@contextmanager
def _waiting_branch(client: HfApi, asked: Push, head: str) -> Iterator[None]:
    """A branch of its own to send to; gone afterwards, whatever happens."""
    with suppress(Exception):  # one that an interrupted run left
        client.delete_branch(asked.repo_id, branch=WAITING)
    try:
        with _explaining(asked):
            client.create_branch(asked.repo_id, branch=WAITING, revision=head)
        yield
    finally:
        with suppress(Exception):
            client.delete_branch(asked.repo_id, branch=WAITING)


def _send_and_verify(client: HfApi, asked: Push, operations: Operations, verify: Verify) -> int:
    """Send to the waiting branch and read it back; the bytes read."""
    with _explaining(asked):
        made = client.create_commit(
            asked.repo_id,
            operations,
            commit_message=f"{_title(asked)} (being verified)",
            revision=WAITING,
        )
    try:
        return verify(str(made.oid))
    except DamagedError as error:
        raise _without_damage(client, asked, error) from error


def _without_damage(client: HfApi, asked: Push, error: DamagedError) -> RemoteError:
    """The same error, after the damaged objects were removed where the Hub lets us."""
    digests = [each.sha256 for each in asked.files if each.name in error.names]
    if remove_objects(client, asked.repo_id, digests):
        return RemoteError(f"{error}; the damaged copy was removed there, run again")
    return RemoteError(
        f"{error}; run again, and where it stays so, delete the file under the repository's "
        "Settings, Storage"
    )


def _propose(
    client: HfApi, asked: Push, sent: Sequence[LocalFile], removed: Sequence[str], verify: Verify
) -> tuple[str, str, int]:
    """A pull request, verified before anyone merges it; closed where it does not hold."""
    with _explaining(asked):
        made = client.create_commit(
            asked.repo_id,
            _operations(sent, removed),
            commit_message=_title(asked),
            revision=asked.branch,
            create_pr=True,
        )
    request = str(made.pr_url)
    try:
        return str(made.oid), request, verify(str(made.oid))
    except BaseException as error:  # also an interrupt: nobody is to merge what was not verified
        with suppress(Exception):
            number = int(request.rstrip("/").rpartition("/")[2])
            why = str(error) if isinstance(error, HubError) else "stopped before it was verified"
            client.change_discussion_status(asked.repo_id, number, "closed", comment=why)
        raise


def _commit(client: HfApi, asked: Push, there: Destination, operations: Operations) -> str:
    """Put what has been verified in place: no byte of a large file is sent for it."""
    try:
        made: CommitInfo = client.create_commit(
            asked.repo_id,
            operations,
            commit_message=_title(asked),
            revision=asked.branch,
            parent_commit=there.head,
        )
        commit = str(made.oid)
    except Exception as error:
        # the answer may be what got lost, not the commit
        commit = _landed(client, asked)
        if not commit:
            raise hub_error(f"publish {asked.repo_id}", error, _AGAIN) from error
    with _explaining(asked):
        wrong = listing_differences(asked.files, list_files(client, asked.repo_id, commit))
    if wrong:
        raise RemoteError(f"{asked.repo_id} at {commit[:12]}: {'; '.join(wrong)}; run again")
    return commit


def _landed(client: HfApi, asked: Push) -> str:
    """The branch's commit, if it holds exactly what was to be committed; else nothing."""
    with suppress(Exception):
        head = str(client.model_info(asked.repo_id, revision=asked.branch).sha)
        if not listing_differences(asked.files, list_files(client, asked.repo_id, head)):
            return head
    return ""
