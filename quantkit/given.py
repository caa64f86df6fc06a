"""Small files that a user names: read once, whole, and only where there is an end to them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from quantkit.errors import UsageError, printable
from quantkit.types import AnyPath

#: What is no regular file, in words.
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


#: Of a text that a model is judged, calibrated or questioned on, in bytes: it is held and encoded
#: whole, and each byte may take some forty in memory.
LONGEST_TEXT = 64 << 20

#: Bytes of a name, on every file system that is in use.
LONGEST_NAME = 255


def kind_of(mode: int) -> str:
    """What a file of this ``st_mode`` is, in words; empty for a regular one."""
    return next((said for is_kind, said in _KINDS if is_kind(mode)), "")


def paths_of(given: AnyPath | Iterable[AnyPath] | None) -> tuple[Path, ...]:
    """One path, several or none, as paths: a text alone is one path, not its letters."""
    if given is None:
        return ()
    several = [given] if isinstance(given, str | PathLike) else given
    return tuple(map(expanded, several))


def expanded(given: AnyPath) -> Path:
    """A path with ``~`` expanded; where there is no such user, ``~`` is part of a name.

    Raises:
        UsageError: it is an empty text, which Python takes for the current folder.
    """
    if given == "":
        raise UsageError("a path is empty; give one (a shell variable that is not set is empty)")
    path = Path(given)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def refuse_name(path: Path, what: str) -> None:
    """Refuse a path that is not UTF-8, or that no file can have; ``what`` begins messages.

    Manifests, cards and libraries take Unicode alone.

    Raises:
        UsageError: it is refused.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what}: its name is not UTF-8; rename it") from None
    if "\0" in str(path) or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise UsageError(f"{what[:200]}: no file can be called that; give another name")


def read_given(path: Path, what: str, *, pipe: bool = False, most: int | None = None) -> bytes:
    """The bytes of ``path``; ``what`` begins messages. With ``pipe``, ``<(command)`` is read too.

    Raises:
        UsageError: there is no such file, it has more than ``most`` bytes, or it is no regular
            file, and might never end.
    """
    refuse_name(path, printable(what))
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            kind = kind_of(mode)
            if kind and not (pipe and stat.S_ISFIFO(mode)):
                raise UsageError(f"{what}: {kind}; expected a regular file, give one")
            os.set_blocking(file.fileno(), True)
            found = file.read() if most is None else file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{what}: {_reason(path, error)}; give a readable file") from error
    if most is not None and len(found) > most:
        raise UsageError(f"{what}: expected at most {most:,} bytes, got more; give a smaller file")
    return found


def read_given_text(path: Path, what: str, *, most: int | None = None) -> str:
    """The same as text: UTF-8, with a byte order mark before it or without.

    Raises:
        UsageError: as :func:`read_given`, or it is no UTF-8.
    """
    return as_text(read_given(path, what, most=most), what)


def as_text(raw: bytes, what: str) -> str:
    """The text in ``raw``; ``what`` begins messages.

    Raises:
        UsageError: it is no UTF-8.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what}: cannot be read as UTF-8: {error}; convert it") from error


def _reason(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if path.is_dir():
        return "a folder, expected a file"
    return printable(error.strerror or str(error))


def _without_waiting(path: str, flags: int) -> int:
    """Open without waiting for a pipe's writer, who may never come."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
