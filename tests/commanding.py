"""The command line, run in this process (fast) or in one of its own (real)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from typer.testing import CliRunner

from quantkit.cli.app import app

#: The console script's own entry, under the interpreter that runs the tests.
COMMAND = (sys.executable, "-c", "from quantkit.cli import main; main()")


def command(*args: str | Path) -> list[str]:
    """The words of a real ``quantkit`` process."""
    return [*COMMAND, *(str(each) for each in args)]


def refused(code: int, *args: str | Path) -> str:
    """Run a command that must fail with ``code``; its one line of error.

    Nothing may be on standard output but, with ``--json``, an object that says it too, and no
    traceback anywhere.
    """
    result = CliRunner().invoke(app, [str(each) for each in args])
    assert result.exception is not None, f"it succeeded: {result.stdout}"
    assert isinstance(result.exception, SystemExit), f"a traceback: {result.exception!r}"
    assert result.exit_code == code, result.stderr
    _says_no_more(code, result.stdout, result.stderr, args)
    return the_error(result.stderr)


def refused_for_real(code: int, *args: str | Path) -> str:
    """As :func:`refused`, in a process of its own."""
    done = subprocess.run(command(*args), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    _says_no_more(code, done.stdout, done.stderr, args)
    return the_error(done.stderr)


def _says_no_more(code: int, stdout: str, stderr: str, args: Sequence[str | Path]) -> None:
    if "--json" not in args:
        assert stdout == ""
        return
    error = json.loads(stdout)["error"]
    assert error["exit_code"] == code
    assert the_error(stderr) == f"quantkit: {error['message']}"


def the_error(stderr: str) -> str:
    """The last line, and the only one that starts with ``quantkit:``; progress may stand before."""
    assert "Traceback" not in stderr, stderr
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("quantkit: ")]
    assert len(errors) == 1, stderr
    assert lines[-1] == errors[0], stderr
    return errors[0]


def succeeded(*args: str | Path) -> str:
    """Run a command that must succeed; its standard output."""
    result = CliRunner().invoke(app, [str(each) for each in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout
