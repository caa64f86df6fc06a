"""Plots on machines of other people's: their settings, their names, folders nobody can write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from quantkit.plots import depth_plot, ratio_plot, size_plot, trade_plot

PNG = b"\x89PNG"

#: As quantkit does: a plot, and an end without ``atexit``.
DRAW = """
import os, sys
from pathlib import Path
from quantkit.plots import import_matplotlib, size_plot
import_matplotlib(Path(sys.argv[1]))
made = size_plot([("source", 10), ("quantized", 5)])
sys.stdout.buffer.write(made)
sys.stdout.flush()
os._exit(0)
"""


def test_a_users_settings_count_for_nothing() -> None:
    rows = [("source", 10), ("quantized", 5)]
    usual = size_plot(rows)
    with matplotlib.rc_context({"text.usetex": True, "font.size": 20, "axes.facecolor": "red"}):
        assert size_plot(rows) == usual
        assert matplotlib.rcParams["text.usetex"], "and they are as they were"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["a$^$b", "$\\frac$", "モデル", "😀", "a\nb", "\udce5", "_x"])
def test_a_name_is_no_formula_and_needs_no_font(name: str) -> None:
    assert ratio_plot([("all", 1.0, None), (name, 1.1, (1.0, 1.2))], 1.15).startswith(PNG)
    assert trade_plot([(name, 100, 0.1), ("b", 200, 0.2)], 0.01).startswith(PNG)
    assert depth_plot([(f"h.{at}.{name}.weight", 0.1) for at in (0, 1)], "error").startswith(PNG)


def test_a_name_that_begins_with_a_line_is_in_the_legend() -> None:
    other = [("b", 200, 0.2)]
    with_it = trade_plot([("_x", 100, 0.1), *other], None)
    assert with_it != trade_plot([("_y", 100, 0.1), *other], None)


@pytest.mark.parametrize("settings", [None, "font.size: 20"])
def test_without_a_folder_of_matplotlibs_nothing_is_said_or_left(
    tmp_path: Path, settings: str | None
) -> None:
    """Also where the settings are in the current folder, so that matplotlib looks no further."""
    room, temporary = tmp_path / "room", tmp_path / "temporary"
    room.mkdir()
    temporary.mkdir()
    if settings is not None:
        (tmp_path / "matplotlibrc").write_text(settings)
    nowhere = {"HOME": "/proc/nobody", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
    env = {**os.environ, **nowhere, "MPLCONFIGDIR": "", "TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, "-c", DRAW, room],
        capture_output=True,
        env=env,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith(PNG), done.stderr
    assert done.stderr == b""
    assert [*room.iterdir(), *temporary.iterdir()] == []


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "not-here"])
def test_a_notebooks_backend_that_is_not_here_is_not_asked_for(
    tmp_path: Path, backend: str
) -> None:
    env = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", DRAW, tmp_path],
        capture_output=True,
        env=env,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith(PNG), done.stderr
