"""A small cache of pure results on disk: files named by the digest of all they depend on.

It holds nothing that cannot be made again, so a file that cannot be read, is damaged, or is
another user's, is a miss, and a folder that cannot be written costs only time. A file that
nothing has asked for in 90 days is removed when another is written.
``QUANTKIT_CACHE=off`` turns it off.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")

_DIGEST = hashlib.sha256().digest_size

_DAY = 24 * 60 * 60.0  # seconds
_KEPT_FOR = 90 * _DAY

#: What this module writes, in a folder where others may write too: a value, under the ending of
#: any version; the file that a process which was killed had begun.
_OURS = re.compile(r"[a-z]+-[0-9a-f]{64}\.(bin|json)|quantkit-\w+\.part")


def cache_folder() -> Path | None:
    """``$QUANTKIT_CACHE``, else ``quantkit`` in the user's cache folder.

    ``None`` when off, or where the user has no home.
    """
    chosen = os.environ.get("QUANTKIT_CACHE", "")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base) / "quantkit"


def remembered(kind: str, depends_on: object, make: Callable[[], T], adapter: TypeAdapter[T]) -> T:
    """``make()``'s value, which is not ``None``, from disk if it was made before from the same
    things.

    ``adapter`` turns it into JSON and back; what it refuses is made again.
    """
    value = recall(kind, depends_on, adapter)
    if value is None:
        value = make()
        keep(kind, depends_on, value, adapter)
    return value


def recall(kind: str, depends_on: object, adapter: TypeAdapter[T]) -> T | None:
    """What was kept, if anything was."""
    folder = cache_folder()
    if folder is None or (kept := _read(_path(folder, kind, depends_on))) is None:
        return None
    try:
        return adapter.validate_json(kept)
    except ValueError:  # pydantic's refusal is one
        return None


def keep(kind: str, depends_on: object, value: T, adapter: TypeAdapter[T]) -> None:
    """Keep ``value`` for later runs, where there is a folder for it."""
    if (folder := cache_folder()) is not None:
        _write(_path(folder, kind, depends_on), adapter.dump_json(value))


def remembered_bytes(kind: str, depends_on: object, make: Callable[[], bytes]) -> bytes:
    """The same for bytes, which may be code."""
    folder = cache_folder()
    if folder is None:
        return make()
    path = _path(folder, kind, depends_on)
    value = _read(path)
    if value is None:
        value = make()
        _write(path, value)
    return value


def _read(path: Path) -> bytes | None:
    """What :func:`_write` wrote there, whole; else nothing.

    The digest in front reveals damage: with a bit flipped, a kept digest or code would still look
    like a digest or code.
    """
    try:
        kept = _own(path)
    except OSError:
        return None
    digest, value = kept[:_DIGEST], kept[_DIGEST:]
    return value if _seal(path, value) == digest else None


def _seal(path: Path, value: bytes) -> bytes:
    """The digest in front. It covers the name too: a whole file in another's place is damage."""
    return hashlib.sha256(path.name.encode() + value).digest()


def _own(path: Path) -> bytes:
    """What this user has written there, in whatever folder it lies; nothing of anybody else's.

    Nothing is read from a pipe, which might never end, or through a link: it may lead to a file
    of this user's that others wrote, such as a download."""
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    fd = os.open(path, os.O_RDONLY | flags)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(file.fileno())
        others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ours = not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not others)
        if not (ours and stat.S_ISREG(found.st_mode)):
            return b""
        if found.st_mtime < time.time() - _DAY:
            with suppress(OSError):
                os.utime(path)  # it is in use
        return file.read()


def _path(folder: Path, kind: str, depends_on: object) -> Path:
    text = json.dumps([kind, depends_on], sort_keys=True)
    return folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()}.bin"


def _write(path: Path, value: bytes) -> None:
    """Its digest and ``value``, where there is a place for them: whole or not at all, as several
    processes may write it at once."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_unused(path.parent)
        with NamedTemporaryFile(
            dir=path.parent, prefix="quantkit-", suffix=".part", delete=False
        ) as file:
            try:
                file.write(_seal(path, value) + value)
                file.close()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)  # it may be renamed by now
                raise


def _remove_unused(folder: Path) -> None:
    """What has not been read or written for long."""
    for entry in os.scandir(folder):
        if _OURS.fullmatch(entry.name):
            with suppress(OSError):  # another process may do the same
                if entry.stat(follow_symlinks=False).st_mtime < time.time() - _KEPT_FOR:
                    Path(entry).unlink()
