"""What lies on the Hub against what lies here: names, sizes, digests, and the bytes themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.digests import digest_file
from quantkit.errors import RemoteError
from quantkit.hub import RemoteFile, blob_id, hub_error, list_files
from quantkit.types import Listener, counted

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: What the Hub itself puts into a repository.
HUBS_OWN = (".gitattributes",)


@dataclass(frozen=True)
class LocalFile:
    """A file to be published, as the manifest has it."""

    name: str
    path: Path
    bytes: int
    sha256: str
    is_weight: bool = False

    def is_like(self, remote: RemoteFile) -> bool:
        """Whether the Hub's listing describes these bytes."""
        if remote.bytes != self.bytes:
            return False
        if remote.sha256 is not None:
            return remote.sha256 == self.sha256
        return remote.blob_id == blob_id(self.path.read_bytes())


def listing_differences(files: Sequence[LocalFile], listed: Sequence[RemoteFile]) -> list[str]:
    """Every file that is missing there, differs, or should not be there."""
    remote = {each.name: each for each in listed if each.name not in HUBS_OWN}
    found = [f"{each.name} is missing there" for each in files if each.name not in remote]
    found += [
        f"{each.name} is listed there with other bytes"
        for each in files
        if each.name in remote and not each.is_like(remote[each.name])
    ]
    ours = {each.name for each in files}
    return found + [f"{name} is there too" for name in remote if name not in ours]


def verify_remote(
    client: HfApi,
    repo_id: str,
    commit: str,
    files: Sequence[LocalFile],
    *,
    quick: bool,
    room: Path,
    listener: Listener,
) -> int:
    """Hold a commit to ``files``; the bytes read back.

    The Hub lists the digest that it was told, which says nothing of what it stored; so each
    file is downloaded the way users do it and digested. ``quick`` leaves out the weights.
    ``room`` is a folder on whose disk the largest file fits.

    Raises:
        RemoteError: a file is not what was sent; the message lists all.
        HubError: the Hub did not answer.
    """
    what = f"{repo_id} at {commit[:12]}"
    try:
        wrong = listing_differences(files, list_files(client, repo_id, commit))
    except Exception as error:
        raise hub_error(f"checking {what}", error) from error
    if wrong:
        raise RemoteError(f"{what}: not what was sent: {'; '.join(wrong)}")
    chosen = [each for each in files if not (quick and each.is_weight)]
    total = sum(each.bytes for each in chosen)
    tell = counted(listener, "read back", total)
    for each in chosen:
        if not _comes_back(client, repo_id, commit, each, room):
            wrong.append(each.name)
        tell(each.bytes)
    if wrong:
        raise DamagedError(
            f"{what}: {', '.join(wrong)}: what the Hub gives is not what was sent", wrong
        )
    return total


class DamagedError(RemoteError):
    """Bytes came back that were not sent; ``names`` are of their files."""

    # not needed, so that it can be pickled, and come out of another process
    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


def _comes_back(client: HfApi, repo_id: str, commit: str, file: LocalFile, room: Path) -> bool:
    """Whether a download gives the file's bytes. Tried twice: the way back may be at fault."""
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix=".quantkit-", dir=room) as folder:
            try:
                got = client.hf_hub_download(repo_id, file.name, revision=commit, local_dir=folder)
            except Exception as error:
                raise hub_error(f"reading {file.name} back from {repo_id}", error) from error
            if digest_file(Path(got)).sha256 == file.sha256:
                return True
    return False


def remove_objects(client: HfApi, repo_id: str, digests: Sequence[str]) -> bool:
    """Have the Hub forget damaged large objects, so that a rerun sends them anew."""
    with suppress(Exception):
        held = [each for each in client.list_lfs_files(repo_id) if each.file_oid in digests]
        client.permanently_delete_lfs_files(repo_id, held, rewrite_history=False)
        return bool(held)
    return False
