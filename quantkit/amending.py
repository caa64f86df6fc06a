"""A finished folder with a few files changed: swapped in whole, or not at all.

The new folder is made beside the old one, of links to the files that stay, and takes its
place by rename, as a conversion's output does. A crash leaves the old one, or the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import StorageError, UsageError
from quantkit.quiet import need_current_folder
from quantkit.records import manifest_text, read_raw
from quantkit.signatures import NOTHING, SIGNATURE, Known
from quantkit.signing import Signer
from quantkit.staging import (
    MANIFEST,
    NOTE,
    Staging,
    amendment_of,
    commit,
    empty,
    held,
    recover,
    staging_for,
)


def staging_to_amend(folder: Path) -> Staging:
    """The places of an amendment of ``folder``, recovered from a run that was killed.

    Raises:
        UsageError: the folder cannot be renamed from where the command runs.
        StorageError: that is nowhere any more.
    """
    usual = staging_for(folder)
    place = amendment_of(usual)
    recover(usual)
    need_current_folder()
    if Path.cwd().resolve().is_relative_to(usual.out.resolve()):
        raise UsageError(
            f"{folder}: it is replaced whole, which would leave this shell in a folder that is "
            "gone; run the command from outside it"
        )
    if not os.access(place.out.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"{folder}: it is replaced whole, and {place.out.parent} may not be written to; see to "
            "that, or copy the folder elsewhere"
        )
    return place


def amend(
    place: Staging,
    before: bytes,
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],
    signer: Signer | None = None,
    known: Known = NOTHING,
) -> None:
    """Put ``files`` and ``manifest`` into the folder ``place.out``, in one swap.

    ``before`` is its manifest as it was read. ``signer`` signs the whole anew, without reading
    the files whose digests are ``known``.

    Raises:
        UsageError: somebody else changed the manifest meanwhile.
        StorageError: the folder beside it cannot be made.
    """
    with held(place):
        try:
            empty(place)
            _refuse_changed(place.out, before)
            _copy(place, files)
            (place.partial / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
            if signer is not None:
                signer.sign(place.partial, known)
            commit(place, lambda: _refuse_changed(place.out, before))
        except BaseException as error:
            shutil.rmtree(place.partial, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise StorageError(
                f"{place.out}: cannot be replaced: {error.strerror or error}; it is as it was; "
                f"see that {place.out.parent} may be written to, and run again"
            ) from error


def _refuse_changed(folder: Path, before: bytes) -> None:
    if read_raw(folder) != before:
        raise UsageError(
            f"{folder}: {MANIFEST} changed while this ran, by another command; run again"
        )


def _copy(place: Staging, files: Mapping[str, bytes]) -> None:
    """All that stays as links, all that is new as files of their own."""
    changed = {*files, MANIFEST, SIGNATURE, NOTE}

    def left_out(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(place.out)
        return {name for name in names if (inside / name).as_posix() in changed}

    shutil.copytree(
        place.out, place.partial, copy_function=_link, ignore=left_out, dirs_exist_ok=True
    )
    for name, data in files.items():
        path = place.partial / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk that knows no links
        shutil.copy2(source, target)
