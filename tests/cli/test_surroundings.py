"""What surrounds a command: a locale without Unicode, a folder that is gone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from commanding import command, refused, the_error
from conftest import Converted
from typer.testing import CliRunner

import quantkit
from quantkit.cli.app import app
from quantkit.cli.display import Display
from quantkit.cli.session import session
from quantkit.errors import out_of_memory

#: Its text holds Japanese.
RECIPE = "rinna-3.6b-ppo-nf4"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "euc_jp"])
def test_a_locale_without_the_letters_gets_escapes(encoding: str) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    words = command("recipes", RECIPE)
    done = subprocess.run(words, capture_output=True, env=env, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert RECIPE in done.stdout.decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "euc_jp"])
def test_json_is_utf8_in_every_locale(encoding: str) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    words = command("recipes", RECIPE, "--json")
    done = subprocess.run(words, capture_output=True, env=env, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    (recipe,) = json.loads(done.stdout.decode("utf-8"))["recipes"]
    assert not json.dumps(recipe, ensure_ascii=False).isascii()


def test_a_current_folder_that_is_gone_is_named(demo: Path, tmp_path: Path) -> None:
    words = command("convert", demo, "--recipe", "bnb-nf4", "--out", tmp_path / "out")
    gone = ["sh", "-c", 'mkdir gone; cd gone; rmdir ../gone; exec "$@"', "sh", *words]
    done = subprocess.run(
        gone, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr == ("quantkit: the current folder is gone; change to one that is there\n")


def test_want_of_memory_is_no_damage_of_the_disk() -> None:
    """Under ``ulimit -v`` llvmlite hides what the linker said behind words of its own."""
    said = OSError("the library literally cannot be found")
    assert not out_of_memory(said)
    said.__context__ = OSError("libllvmlite.so: failed to map segment from shared object")
    assert out_of_memory(said)
    assert out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not out_of_memory(OSError(errno.EIO, "Input/output error"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_before_anything_is_begun_is_one_object_too(name: str) -> None:
    code = (
        "import builtins, os, signal, sys; from quantkit.cli import main\n"
        "own = builtins.__import__\n"
        "def stopped(name, *rest, **more):\n"
        "    if name == 'quantkit.cli.app': os.kill(os.getpid(), signal." + name + ")\n"
        "    return own(name, *rest, **more)\n"
        "builtins.__import__ = stopped\n"
        "main()"
    )
    words = [sys.executable, "-c", code, "recipes", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 128 + signal.Signals[name]
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("Interrupted", done.returncode)
    assert done.stderr == f"quantkit: {error['message']}\n"


def test_a_second_interrupt_while_the_first_is_told_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Display.error

    def twice(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        own(*args)

    monkeypatch.setattr(Display, "error", twice)

    @app.command("idle")
    def idle() -> None:
        with session(as_json=True):
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    try:
        said = CliRunner().invoke(app, ["idle"])
    finally:
        app.registered_commands.pop()
        signal.signal(signal.SIGINT, before)
    assert said.exit_code == 130
    assert json.loads(said.stdout)["error"]["kind"] == "Interrupted"


def test_an_interrupt_where_nothing_can_be_raised_is_remembered() -> None:
    code = (
        "import os, signal, typer\n"
        "from quantkit.cli.session import session\n"
        "from quantkit.types import Event\n"
        "class Last:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        "    with session(as_json=False) as display:\n"
        "        Last()\n"
        "        display.listener(Event('convert', 1, 2))\n"
        "except typer.Exit as stop:\n"
        "    print(stop.exit_code)\n"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "130\n"
    assert done.stderr.startswith("quantkit: interrupted"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_scheduler_that_ends_a_run_gets_its_object(demo: Path, tmp_path: Path) -> None:
    words = ["convert", demo, "--recipe", "bnb-nf4", "--out", tmp_path / "out", "--json"]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"reopening"):
            break
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    error = json.loads(stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("Interrupted", 143)
    assert "it takes up what is done" in the_error(stderr.decode())
    assert not (tmp_path / "out").exists()


def test_what_nobody_foresaw_is_one_object_too() -> None:
    @app.command("idle")
    def idle() -> None:
        with session(as_json=True):
            raise RuntimeError("out of\ntune")

    try:
        said = CliRunner().invoke(app, ["idle"])
    finally:
        app.registered_commands.pop()
    assert isinstance(said.exception, RuntimeError)  # its trace is told by whoever runs it
    error = json.loads(said.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("RuntimeError", 1)
    assert "out of tune; a defect of quantkit" in error["message"]


@pytest.mark.parametrize("imported", ["", ", torch, transformers"])
def test_a_program_in_a_folder_that_is_gone_lives_on(
    demo: Path, demo_nf4: Converted, tmp_path: Path, imported: str
) -> None:
    """Importing torch there ends a process."""
    gone, made = tmp_path / "gone", str(demo_nf4.folder)
    gone.mkdir()
    quick = "text=text, set=['evaluation.max_windows=2', 'evaluation.new_tokens=2']"
    calls = (
        f"convert({str(demo)!r}, 'bnb-nf4', {str(tmp_path / 'out')!r}, no_gate=True)",
        f"check({made!r}, {str(demo)!r}, {quick})",
        f"compare({made!r}, {str(demo)!r}, {quick})",
    )
    tried = "".join(
        f"try: print('kind' in quantkit.{call})\n"
        "except quantkit.errors.StorageError as error: print(error)\n"
        for call in calls
    )
    start = f"import os, quantkit{imported}\ntext = {str(demo_nf4.text)!r}\n"
    code = f"{start}os.chdir({str(gone)!r})\nos.rmdir('../gone')\n{tried}"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = ["the current folder is gone; change to one that is there"] * len(calls)
    assert done.stdout.splitlines() == told


@pytest.mark.parametrize("cache", ["as it is", "off"])
def test_python_without_docstrings_is_no_verdict_on_the_model(
    demo: Path, tmp_path: Path, cache: str
) -> None:
    quantkit.plan(demo, "bnb-nf4")  # its architecture is remembered: the gate is next to ask
    env = {**os.environ, "PYTHONOPTIMIZE": "2"}
    if cache == "off":
        env["QUANTKIT_CACHE"] = "off"
    words = command("convert", demo, "--recipe", "bnb-nf4", "--out", tmp_path / "out")
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert the_error(done.stderr).startswith("quantkit: Python runs without docstrings (-OO")


@pytest.mark.parametrize("cache", ["as it is", "off"])
def test_no_place_for_temporary_files_is_no_verdict_on_the_model(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    if cache == "off":
        monkeypatch.setenv("QUANTKIT_CACHE", "off")
    else:
        quantkit.plan(demo, "bnb-nf4")  # its architecture is remembered: the gate is next to ask
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    out = tmp_path / "out"
    said = refused(1, "convert", demo, "--recipe", "bnb-nf4", "--out", out)
    assert "No usable temporary directory" in said
    assert "set TMPDIR to a folder that can be written" in said
    assert not out.exists()
