"""The command line: argv -> one call of the API; errors -> text and an exit code.

    app.py        the verbs
    listing.py    checksums list|show|add
    publication.py  the verb publish
    benchmarks.py   the verb eval
    session.py    errors -> text and an exit code, in one place
    options.py    the options that several verbs share
    display.py    progress, tables and JSON; the only place that prints
    rows.py       what the tables and the JSON hold

Nothing heavy is imported before a verb needs it, so that ``--help`` is quick.
"""

import gc
import io
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from quantkit.errors import INTERRUPTED, UsageError

__all__ = ["main"]


def main() -> None:
    """The console script. The verbs are imported here, so that Ctrl-C never is a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Python has None for a stream that was closed, which libraries do not expect
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    _take_every_letter()
    # Imports make objects by the hundred thousand that all stay: looking for garbage among
    # them, again and again, is a tenth of the start-up.
    gc.set_threshold(100_000)
    # until a verb has a handler of its own: nothing is begun yet
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, frame: _stop(128 + number))
    try:
        from quantkit.cli.app import app

        app()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        if "--json" in sys.argv:
            _usage_as_json(stop)
    except OSError as error:  # of --help and --version: a verb's session says its own
        with suppress(OSError):
            print(f"quantkit: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        code = 1
    except KeyboardInterrupt:  # of a verb's handler, once its session has ended
        code = INTERRUPTED
    _leave(code)


def _stop(code: int) -> NoReturn:
    """End where nothing is begun, by the system's calls alone: an import is in progress."""
    said = "interrupted; nothing was begun"
    value = {"error": {"kind": "Interrupted", "message": said, "exit_code": code}}
    with suppress(OSError):
        if "--json" in sys.argv:
            os.write(1, f"{json.dumps(value)}\n".encode())
        os.write(2, f"quantkit: {said}\n".encode())
    os._exit(code)


def _take_every_letter() -> None:
    """A locale without Unicode gets escapes: a name or a recipe's text must not end a run whose
    work is done. JSON is UTF-8 in every locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = "utf-8" if "--json" in sys.argv else None
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def _usage_as_json(stop: SystemExit) -> None:
    """An error of usage as an object too: typer has said it in words, and no verb has begun."""
    said = getattr(stop.__context__, "format_message", None)
    if said is None:
        return
    from quantkit.cli.rows import error_json

    value = error_json(said(), UsageError.__name__, UsageError.exit_code)
    with suppress(OSError):  # the same as after any other error
        print(json.dumps(value, ensure_ascii=False))  # noqa: T201


def _leave(code: int) -> NoReturn:
    """End the process now: taking torch down object by object costs half a second.

    Everything is on the disk by here; only the standard streams are left to flush.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # a reader that went away, no stream
            stream.flush()
    os._exit(code)
