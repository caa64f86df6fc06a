"""Holding back the libraries' own progress bars and advice; their errors still come through."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from threading import Lock, RLock

from quantkit.errors import StorageError, UsageError

#: Output is held back in the whole process; and while transformers loads a model, the process has
#: another default data type. So one thread at a time, for as long as a whole gate.
_ALONE = RLock()

_IMPORTING = Lock()

#: No two threads may make a model's modules, empty or full: for empty ones accelerate swaps a
#: method of torch's in all threads. Who holds it never waits for the other lock.
BUILDING = RLock()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """transformers, bitsandbytes and accelerate say nothing below an error.

    Raises:
        StorageError, UsageError: they cannot be imported here.
    """
    need_surroundings()
    import_transformers()
    with _ALONE, _quiet():
        yield


def import_transformers() -> None:
    """Import it, one thread at a time: it puts another module in its own place, and a thread that
    waited for the first one is given that, with nothing in it.

    Raises:
        StorageError, UsageError: it cannot be imported here.
    """
    need_docstrings()
    need_current_folder()
    with _IMPORTING:
        import_module("transformers")


def need_surroundings() -> None:
    """See that libraries can be imported and run: torch makes temporary files as it is imported.
    An import that failed halfway fails in other words the second time, and the model would be
    blamed.

    Raises:
        StorageError, UsageError: something is missing that they need.
    """
    need_docstrings()
    need_current_folder()
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise StorageError(
            f"{error.strerror}; set TMPDIR to a folder that can be written, and run again"
        ) from error


def need_docstrings() -> None:
    """transformers reads the docstrings of its models as it is imported.

    Raises:
        UsageError: Python runs without any.
    """
    if sys.flags.optimize > 1:
        raise UsageError(
            "Python runs without docstrings (-OO, PYTHONOPTIMIZE=2), and transformers needs its "
            "own; use -O, or unset PYTHONOPTIMIZE"
        )


def need_current_folder() -> None:
    """In a folder that was removed, importing torch ends the process, as its library for matrices
    does not find itself, and what transformers imports here and there fails.

    Raises:
        StorageError: the process is in such a folder.
    """
    try:
        Path.cwd()
    except FileNotFoundError as error:
        said = "the current folder is gone; change to one that is there"
        raise StorageError(said) from error


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging as chatter

    loggers = [logging.getLogger(name) for name in ("transformers", "bitsandbytes", "accelerate")]
    levels = [each.level for each in loggers]
    had_bars = chatter.is_progress_bar_enabled()
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        chatter.disable_progress_bar()
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        if had_bars:
            chatter.enable_progress_bar()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """The same, and what others print at loading (GPTQModel its banner) goes to standard error.

    Standard output is for the answer. It is the whole process's, the caller's listener and
    threads included, so this stands around a library's call and nothing else.
    """
    with quiet_libraries(), BUILDING, redirect_stdout(sys.stderr):
        yield
