"""``OUT.partial``: an output exists under its final name whole, or not at all.

Everything is written into ``OUT.partial``; one rename makes it ``OUT``. A note inside
(``quantkit-staging.json``) says how far a run came, so that a rerun can judge again
without quantizing, or say why it starts over.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.shards import FULL, flush, put_whole
from quantkit.errors import (
    OutputExistsError,
    SourceError,
    StorageError,
    UsageError,
    VerificationError,
    printable,
)
from quantkit.given import expanded, refuse_name

NOTE = "quantkit-staging.json"
_NEW_NOTE = f".{NOTE}.new"
MANIFEST = "quantkit-manifest.json"

#: Layers that a calibration has finished; see :mod:`quantkit.finished`.
LAYERS = "quantkit-layers"

#: Room that is left for small files beside the weights, in bytes.
_HEADROOM = 32 << 20


@dataclass(frozen=True)
class Staging:
    """Where an output will be, where it is made, and where one that is ``replaced`` waits: under a
    hidden name, so that nobody else's folder is taken for it."""

    out: Path
    partial: Path
    replaced: Path


def staging_for(out: Path) -> Staging:
    """The places that belong to ``out``."""
    named, out = bool(out.name), Path(os.path.normpath(expanded(out).absolute()))
    if not (named and out.name):
        raise UsageError(f"output {out}: not a folder that can be made; choose another --out")
    replaced = out.with_name(f".{out.name}.quantkit-replaced")
    refuse_name(replaced, f"output {printable(str(out))}")  # the longest of the three
    return Staging(out, partial=out.with_name(f"{out.name}.partial"), replaced=replaced)


def amendment_of(usual: Staging) -> Staging:
    """The places of an amendment: not ``OUT.partial``, where a conversion may wait to be judged."""
    return Staging(usual.out, usual.out.with_name(f"{usual.out.name}.amended"), usual.replaced)


def check_free(staging: Staging, source: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, unless it may be replaced and quantkit made it.

    What a killed run left aside is put back first (:func:`recover`).

    Raises:
        OutputExistsError: it exists and may not be replaced, or the ``source`` lies in its way.
    """
    out = staging.out
    _refuse_source(staging, source)
    recover(staging)
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise OutputExistsError(f"output {out}: exists already; choose another or --overwrite it")
    if not _is_ours(out):
        raise OutputExistsError(
            f"output {out}: not made by quantkit (no {MANIFEST}), so --overwrite leaves it; "
            "remove it yourself or choose another"
        )


def recover(staging: Staging) -> None:
    """Put back what a run that was killed between the two renames of a replacement left aside.

    Raises:
        UsageError: the run is alive, and between them just now.
    """
    if not _is_ours(staging.replaced) or os.path.lexists(staging.out):
        return
    with ExitStack() as locks:
        for each in filter(Path.is_dir, (staging.partial, amendment_of(staging).partial)):
            locks.enter_context(_alone(each))
        if not os.path.lexists(staging.out):
            staging.replaced.rename(staging.out)


def _refuse_source(staging: Staging, source: Path) -> None:
    """Refuse to write, empty or replace what holds the source or something of it, or lies in it."""
    out, given = staging.out, _real(source)
    if _real(out) == given:
        raise OutputExistsError(f"output {out}: is the source; choose another --out")
    if _real(out).is_relative_to(given):
        raise OutputExistsError(f"output {out}: lies inside the source; choose another --out")
    for each in (out, staging.partial, staging.replaced):
        if given.is_relative_to(_real(each)):
            said = f"the source {source} lies in {each}, which is emptied or replaced"
            raise OutputExistsError(f"output {out}: {said}; choose another --out")


def _real(path: Path) -> Path:
    """Where links lead to. ``Path.resolve`` stops where they lead in a circle."""
    return Path(os.path.realpath(path))


def _is_ours(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and not folder.is_symlink()


def check_room(staging: Staging, needed: int) -> None:
    """Refuse when the disk will not hold ``needed`` bytes of weights.

    Raises:
        StorageError: too little room.
    """
    parent = staging.partial.parent
    free = shutil.disk_usage(parent).free
    if free < needed + _HEADROOM:
        raise StorageError(
            f"output {staging.out}: needs {needed + _HEADROOM:,} bytes, and the disk at {parent} "
            f"has {free:,} free; free some, or choose another --out"
        )


@contextmanager
def held(staging: Staging) -> Iterator[None]:
    """Make ``OUT.partial`` and hold it: a second run on the same output is refused.

    Raises:
        UsageError: another run holds it, or it cannot be made.
    """
    try:
        staging.partial.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(staging)
    except OSError as error:
        raise UsageError(f"output {staging.partial}: cannot be made: {error.strerror}") from error
    with _alone(staging.partial):
        if not read_note(staging):
            write_note(staging, {"state": "running"})
        yield


@contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Hold the lock on ``OUT.partial``, which must be there."""
    fd = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _locked(fd, partial):
            said = "another quantkit is writing it; wait, or choose another"
            raise UsageError(f"output {partial}: {said}")
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # a process forked meanwhile has it open too
        os.close(fd)


def _locked(fd: int, partial: Path) -> bool:
    """Lock ``fd``; false where another run holds it, or has renamed or removed the folder since."""
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), partial.stat())
    return False


def _refuse_foreign(staging: Staging) -> None:
    """``OUT.partial`` will be emptied, so what is in it must be an earlier run's."""
    if staging.partial.is_symlink():
        said = "a link, expected a folder; remove it, or choose another --out"
        raise OutputExistsError(f"output {staging.partial}: {said}")
    noted = (staging.partial / NOTE).is_file() or _was_to_be(staging)
    if not noted and {path.name for path in staging.partial.iterdir()} - {_NEW_NOTE}:
        raise OutputExistsError(
            f"output {staging.partial}: not left by quantkit (no {NOTE}); move it away, or choose "
            "another --out"
        )


def _was_to_be(staging: Staging) -> bool:
    """Whether a manifest says that it was on its way to ``OUT``.

    :func:`commit` takes the note away just before the rename. A whole output that somebody
    renamed to ``OUT.partial`` states another name.
    """
    try:
        manifest = json.loads((staging.partial / MANIFEST).read_text(encoding="utf-8"))
        return Path(manifest["request"]["out"]).name == staging.out.name
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_note(staging: Staging) -> dict[str, Any]:
    """What an earlier run noted; empty when there is none that can be read."""
    try:
        note = json.loads((staging.partial / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def write_note(staging: Staging, note: dict[str, Any]) -> None:
    """Put the note in place whole: a reader sees the old one or the new one."""
    put_whole(staging.partial / NOTE, json.dumps(note, indent=2, ensure_ascii=False))


def empty(staging: Staging, keep: Collection[str] = ()) -> None:
    """Remove all in ``OUT.partial`` but its note, the layers that are finished, and ``keep``."""
    for each in (p for p in staging.partial.iterdir() if p.name not in (NOTE, LAYERS, *keep)):
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


def discard(staging: Staging, note: dict[str, Any] | None = None) -> None:
    """Remove ``OUT.partial``, or all of it but a ``note`` of what happened."""
    with suppress(OSError):
        empty(staging)
        if note is None:
            drop_layers(staging)
            (staging.partial / NOTE).unlink(missing_ok=True)
            staging.partial.rmdir()
        else:
            write_note(staging, note)


def commit(staging: Staging, check: Callable[[], object]) -> None:
    """Give the staged output its final name: one rename, after all is on the disk. That takes
    minutes, so ``check`` sees again whether the name may be had."""
    for path in staging.partial.rglob("*"):
        flush(path)
    check()
    note = read_note(staging)
    try:
        (staging.partial / NOTE).unlink(missing_ok=True)
        flush(staging.partial)
        if staging.out.exists():
            _remove_replaced(staging)
            staging.out.rename(staging.replaced)
        staging.partial.rename(staging.out)
    except BaseException:  # also an interrupt: the old output is back, and the new one waits
        with suppress(OSError):
            if staging.replaced.exists() and not staging.out.exists():
                staging.replaced.rename(staging.out)
            write_note(staging, note)
        raise
    with suppress(KeyboardInterrupt):  # it is done, and must not be said to have failed
        flush(staging.out.parent)
        _remove_replaced(staging)


def _remove_replaced(staging: Staging) -> None:
    with suppress(OSError):
        (staging.replaced / MANIFEST).unlink()  # first: what is half gone must not be recovered
    shutil.rmtree(staging.replaced, ignore_errors=True)


@contextmanager
def cleaned(staging: Staging) -> Iterator[None]:
    """Whatever stops a run, leave only what a rerun can take up, and a note.

    That is the layers that a calibration has finished, and staged files that are whole, unless
    the source changed. Of a source that was refused nothing stays.
    """
    try:
        yield
    except VerificationError:
        discard(staging)
        raise
    except BaseException as error:  # an interrupt, the disk, a defect
        full = isinstance(error, OSError) and error.errno in FULL
        said = f"the disk at {staging.partial.parent} is full; free some room and run again"
        if isinstance(error, SourceError) or "outputs" not in read_note(staging):
            kept = {"state": "failed", "reason": said} if full else {"state": "interrupted"}
            layers = any((staging.partial / LAYERS).glob("*.safetensors"))
            discard(staging, kept if full or layers else None)
        if full:
            raise StorageError(f"output {staging.out}: {said}") from error
        raise


def drop_layers(staging: Staging) -> None:
    """Remove the finished layers: what they held is in the staged files."""
    shutil.rmtree(staging.partial / LAYERS, ignore_errors=True)
