"""One run of a verb: its display, and what becomes of its errors."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import typer

from quantkit.cli.display import Display
from quantkit.errors import INTERRUPTED, QuantkitError

_INTERRUPTED = "interrupted; nothing was saved: run the same command again"


@contextmanager
def session(*, as_json: bool, interrupted: str = _INTERRUPTED) -> Iterator[Display]:
    """The one place that turns errors into text and an exit code.

    ``interrupted`` is what to say after Ctrl-C, where a rerun does more than start over.
    """
    if not sys.stderr.isatty():  # the hub client's own bars are for people
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    display = Display(as_json=as_json)
    signal.signal(signal.SIGINT, display.interrupt)
    try:
        with closing(display):
            yield display
    except QuantkitError as error:
        display.error(str(error))
        raise typer.Exit(error.exit_code) from None
    except BrokenPipeError:  # whoever read us went away
        raise typer.Exit(QuantkitError.exit_code) from None
    except KeyboardInterrupt:
        display.error(interrupted)
        raise typer.Exit(INTERRUPTED) from None
    except MemoryError:
        display.error("out of memory; close other programs, or use a machine with more")
        raise typer.Exit(QuantkitError.exit_code) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        display.error(f"{where}{error.strerror or error}; check the disk, and run again")
        raise typer.Exit(QuantkitError.exit_code) from None
    except Exception:
        if not display.interrupted:
            raise
        # an import that was interrupted fails in its own ways
        display.error(interrupted)
        raise typer.Exit(INTERRUPTED) from None
