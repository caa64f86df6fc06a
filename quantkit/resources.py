"""Where the data that ships with quantkit lies, in a checkout and in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_DATA = _PACKAGE / "data"


def shipped_folder(name: str) -> Path:
    """The folder ``recipes`` or ``checksums``.

    In a wheel they lie inside the package's data; in a checkout beside the package,
    where people edit them.
    """
    inside = _DATA / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def evaluation_text() -> Path:
    """The default evaluation text: English, then Japanese; written for quantkit."""
    return _DATA / "evaluation.txt"


def calibration_text() -> Path:
    """The default calibration text: Japanese, English and code; written for quantkit."""
    return _DATA / "calibration.txt"


def prompts_file() -> Path:
    """The default prompts for the generation level: a JSON list of strings."""
    return _DATA / "prompts.json"


def demo_model() -> Path:
    """The small trained GPT-NeoX that ``quantkit demo`` converts."""
    return _DATA / "demo-model"


def tasks_folder() -> Path:
    """How the tasks that work from local files are put to a model, one YAML file each."""
    return _DATA / "tasks"
