"""A Hub id -> a folder of proven small files and of weights whose digests are known.

The revision is resolved to a commit first, so that every file is of one tree. The client
compares sizes only; here every small file is held to the digest that the Hub lists for it,
and a damaged one is fetched once more. Weights are held to theirs by whoever reads them.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import SourceError
from quantkit.hub import api, differs, is_unreachable, list_files, reason
from quantkit.types import Event, Listener

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: Weights are proven by whoever reads them whole: gigabytes must not be read twice.
_WEIGHTS = (".safetensors", ".bin")

_ETAG = re.compile(r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")


@dataclass(frozen=True)
class Fetched:
    """``digests``: what the Hub lists for each file, SHA-256 or git's SHA-1."""

    folder: Path
    commit: str
    digests: Mapping[str, str]

    @property
    def sha256(self) -> dict[str, str]:
        return sha256_only(self.digests)


def sha256_only(digests: Mapping[str, str]) -> dict[str, str]:
    """Those digests that are no git SHA-1."""
    return {name: each for name, each in digests.items() if len(each) == 64}


def fetch(
    repo_id: str,
    revision: str | None,
    wanted: Callable[[list[str]], Sequence[str]],
    listener: Listener,
    look: Callable[[Path], object] | None = None,
) -> Fetched:
    """Download the ``wanted`` of a repository's files, or find them in the local Hub cache.

    ``wanted`` may refuse a repository by its names. The cache serves where the Hub cannot be
    reached, never where it says no. ``look`` is given
    the folder when its small files are there and proven, and may refuse it before the weights
    are fetched.

    Raises:
        SourceError: the Hub says no, or cannot be reached and the cache does not have it.
    """
    listener(Event("fetch", message=f"asking the Hub for {repo_id}"))
    client = api()
    try:
        info = client.model_info(repo_id, revision=revision)
        commit = str(info.sha)
        listed = {
            each.name: each.sha256 or each.blob_id for each in list_files(client, repo_id, commit)
        }
        names = list(wanted(list(listed)))
        small = [each for each in names if not each.endswith(_WEIGHTS)]
        folder = _download(client, repo_id, commit, names if look is None else small)
    except SourceError:  # of ``wanted``: nothing here is worth a download
        raise
    except Exception as error:  # the client passes on whatever its HTTP library raises
        found = _cached(repo_id, revision, error, listener)
        if look is not None:
            look(found.folder)
        return found
    _remember(folder, revision, commit)
    found = Fetched(folder, commit, {name: listed[name] for name in names})
    _mend(client, repo_id, found, listener)
    if look is not None:
        look(folder)
        try:
            _download(client, repo_id, commit, names)
        except Exception as error:
            raise SourceError(f"source {repo_id}: {reason(error)}") from error
    return found


def _download(client: HfApi, repo_id: str, commit: str, names: Sequence[str]) -> Path:
    patterns = [glob.escape(each) for each in names]
    return Path(client.snapshot_download(repo_id, revision=commit, allow_patterns=patterns))


def _mend(client: HfApi, repo_id: str, found: Fetched, listener: Listener) -> None:
    """See that the small files are what the Hub lists; what is not is fetched once more."""
    for name in damaged(found):
        listener(Event("fetch", message=f"{name}: damaged on the way; fetching it again"))
        discard(found.folder / name)
        try:
            client.hf_hub_download(repo_id, name, revision=found.commit)
        except Exception as error:
            raise SourceError(f"source {repo_id}: {name}: {reason(error)}") from error
    refuse_damaged(found, repo_id)


def _remember(folder: Path, revision: str | None, commit: str) -> None:
    """Note in the Hub cache, in its own layout, where a branch stood, for offline runs."""
    if revision == commit:
        return
    ref = folder.parent.parent / "refs" / (revision or "main")
    with suppress(OSError):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def fetch_folder(repo_id: str, revision: str | None, listener: Listener) -> Fetched:
    """All of a repository, weights proven too.

    Raises:
        SourceError: as :func:`fetch`, or a weight file is damaged.
    """
    found = fetch(repo_id, revision, lambda names: names, listener)
    refuse_damaged(found, repo_id, found.digests)
    return found


def _cached(repo_id: str, revision: str | None, why: Exception, listener: Listener) -> Fetched:
    """What the cache has, where ``why`` is that the Hub could not be reached."""
    from huggingface_hub import snapshot_download

    if not is_unreachable(why):
        raise SourceError(f"source {repo_id}: {reason(why)}") from why
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        # files that nobody wants may be missing; where one is wanted, its reader says so
        partial = getattr(error, "snapshot_path", None)
        if partial is None:
            raise SourceError(
                f"source {repo_id}: no such folder here, not in the local Hub cache, and the Hub "
                f"did not give it ({reason(why)}); check the name, the network and the token"
            ) from why
        folder = Path(partial)
    said = f"the Hub did not give it ({reason(why)}); using the cached {folder.name}"
    listener(Event("fetch", message=said))
    found = Fetched(folder, folder.name, cached_digests(folder))
    if not found.digests:  # a cache that was copied, or of a system without links
        listener(Event("fetch", message="the cache has no links to digests: nothing is compared"))
    refuse_damaged(found, repo_id)
    return found


def cached_digests(folder: Path) -> dict[str, str]:
    """What the Hub listed for the files of a snapshot: a Hub cache names its blobs by it.

    A link to a blob that is gone is left out; where the file is wanted, its reader says so.
    """
    links = (path for path in folder.rglob("*") if path.is_symlink() and path.is_file())
    blobs = {path.relative_to(folder).as_posix(): path.resolve() for path in links}
    return {
        name: blob.name
        for name, blob in blobs.items()
        if blob.parent.name == "blobs" and _ETAG.match(blob.name)
    }


def damaged(found: Fetched, names: Iterable[str] = ()) -> list[str]:
    """Which of ``names`` (default: all but the weights) are not what the Hub lists."""
    chosen = list(names) or [each for each in found.digests if not each.endswith(_WEIGHTS)]
    return [each for each in chosen if differs(found.folder / each, found.digests[each])]


def refuse_damaged(found: Fetched, repo_id: str, names: Iterable[str] = ()) -> None:
    """Stop where a file is not what the Hub lists; its copy in the cache is thrown away.

    Raises:
        SourceError: names every damaged file.
    """
    if wrong := damaged(found, names):
        for name in wrong:
            discard(found.folder / name)
        raise SourceError(
            f"source {repo_id} at {found.commit}: {', '.join(wrong)}: not the bytes that the Hub "
            "lists; the damaged copy was removed, run again to fetch it anew"
        )


def discard(path: Path) -> None:
    """Remove a file of a Hub cache: the link, and the blob that it points to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
