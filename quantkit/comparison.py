"""``compare``: several quantizations of one source, in one table and one plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from quantkit.assessment import format_name, quantized_folder, weight_bytes
from quantkit.devices import Device, choose_device
from quantkit.errors import UsageError
from quantkit.evaluation import Texts, read_material
from quantkit.gate import measure_folders
from quantkit.given import expanded, paths_of
from quantkit.plots import import_matplotlib, trade_plot
from quantkit.recipe import load_recipe
from quantkit.records import finite
from quantkit.source import open_source
from quantkit.types import AnyPath, Listener, silent
from quantkit.verb import verb
from quantkit.verification import prove

#: The recipe whose windows are taken where none is given.
_RECIPE = "bnb-nf4"


@verb
def compare(
    folders: AnyPath | Iterable[AnyPath],
    against: AnyPath,
    *,
    recipe: AnyPath = _RECIPE,
    revision: str | None = None,
    device: Device = "auto",
    text: Texts = None,
    plot: AnyPath | None = None,
    set: str | Iterable[str] = (),
    listener: Listener = silent,
) -> dict[str, Any]:
    """Measure every folder against the checkpoint ``against``, which is read once for all.

    Nothing is judged; of the recipe only the windows count. ``plot`` is a PNG to write:
    size of the weights against mean KL divergence.

    Raises:
        UsageError: no such folder, or a plot that cannot be written.
        SourceError: the source or a folder cannot be read.
    """
    several = [folders] if isinstance(folders, str | PathLike) else folders  # a Hub id is no path
    paths = [quantized_folder(each, listener) for each in several]
    if not paths:
        raise UsageError("compare: no folders given; name at least one")
    if len({each.resolve() for each in paths}) < len(paths):
        raise UsageError("compare: a folder is given twice; name each once")
    source = prove(open_source(against, revision, listener), listener)
    if plot is not None:
        _check_plot(expanded(plot), [*paths, source.folder])
    chosen = load_recipe(recipe, set)
    material = read_material(source.folder, chosen, paths_of(text), source.config.get("vocab_size"))
    found = measure_folders(paths, source, chosen, material, choose_device(device), listener)
    rows = [
        {
            "path": str(path),
            "format": format_name(path),
            "bytes": weight_bytes(path),
            "protocol": protocol["protocol"],
            **measures,
        }
        for path, measures, protocol in zip(paths, found.folders, found.protocols, strict=True)
    ]
    floor = found.floor
    if plot is not None:
        _write_plot(expanded(plot), rows, floor["kl_divergence"]["mean"] if floor else None)
    return {
        "kind": "compare",
        "against": source.given,
        "source_bytes": source.weight_bytes,
        "folders": finite(rows),
        "noise_floor": finite(floor),
        "plot": str(plot) if plot is not None else None,
        "noise_floor_dtype": found.floor_dtype,
        "text": found.protocols[0]["text"],
        "text_sha256": found.protocols[0]["text_sha256"],
    }


def _check_plot(path: Path, folders: Sequence[Path]) -> None:
    """Before the measurement: a plot may replace a plot, and nothing else."""
    inside = any(path.resolve().is_relative_to(each.resolve()) for each in folders)
    if path.suffix.lower() != ".png" or inside or path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"plot {path}: expected a .png in a folder that is there, outside those compared; "
            "choose another"
        )
    if path.exists() and not path.read_bytes()[:8].startswith(b"\x89PNG"):
        raise UsageError(f"plot {path}: exists and is no PNG; choose another")


def _write_plot(path: Path, rows: Sequence[dict[str, Any]], floor: float | None) -> None:
    points = [
        (f"{Path(row['path']).name} ({row['format']})", row["bytes"], row["kl_divergence"]["mean"])
        for row in rows
    ]
    try:
        import_matplotlib(path.parent)
        path.write_bytes(trade_plot(points, floor))
    except OSError as error:
        raise UsageError(f"plot {path}: cannot be written: {error.strerror}") from error
