"""One run of a verb: its display, and what becomes of its errors."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import typer

from quantkit.cli.display import Display
from quantkit.errors import (
    INTERRUPTED,
    QuantkitError,
    StorageError,
    on_one_line,
    out_of_memory,
)
from quantkit.quiet import need_current_folder

#: The signals that ask a run to end: Ctrl-C's, and a scheduler's or a service manager's.
STOPS = (signal.SIGINT, signal.SIGTERM)

_INTERRUPTED = "interrupted; nothing was saved: run the same command again"


@contextmanager
def session(*, as_json: bool, interrupted: str = _INTERRUPTED) -> Iterator[Display]:
    """The one place that turns errors into text and an exit code.

    ``interrupted`` is what to say after Ctrl-C or SIGTERM, where a rerun does more than start over.
    """
    if not sys.stderr.isatty():  # the hub client's own bars are for people
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    display = Display(as_json=as_json)
    for each in STOPS:
        signal.signal(each, display.interrupt)
    sys.unraisablehook = _unraisable
    try:
        with closing(display):
            yield display
            sys.stdout.flush()  # a disk that is full tells of a short answer only now
    except typer.Exit:
        raise
    except BrokenPipeError:  # whoever read us went away
        raise typer.Exit(QuantkitError.exit_code) from None
    except (Exception, KeyboardInterrupt) as error:
        settled()  # a second Ctrl-C, while this is said
        message, code = _said(error, interrupted)
        if not message:  # a defect, but an import that was interrupted fails in its own ways
            if not display.interrupted:
                said = f"{on_one_line(error)}; a defect of quantkit: report it with its trace"
                display.error(said, type(error).__name__, QuantkitError.exit_code, {})
                raise
            message, code = interrupted, INTERRUPTED
        kind = type(error).__name__
        if code == INTERRUPTED:
            kind, code = "Interrupted", 128 + (display.interrupted or signal.SIGINT)
        display.error(message, kind, code, getattr(error, "found", {}))
        raise typer.Exit(code) from None


def settled() -> None:
    """From here on Ctrl-C changes nothing: something is saved, or the end is being told."""
    for each in STOPS:
        signal.signal(each, lambda number, frame: None)


def _unraisable(raised: sys.UnraisableHookArgs) -> None:
    """Where nothing can be raised (a destructor), a signal is remembered: nobody need see it."""
    if not issubclass(raised.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(raised)


def _said(error: BaseException, interrupted: str) -> tuple[str, int]:
    """An error in words, and the exit code; no words for a defect."""
    if isinstance(error, QuantkitError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return interrupted, INTERRUPTED
    if out_of_memory(error):
        said = "out of memory; close other programs, or use a machine (or --device) with more"
        return said, QuantkitError.exit_code
    if isinstance(error, FileNotFoundError) and not error.filename:
        try:
            need_current_folder()
        except StorageError as nowhere:
            return str(nowhere), nowhere.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        said = f"{where}{error.strerror or error}; check the disk, and run again"
        return said, QuantkitError.exit_code
    return "", QuantkitError.exit_code
