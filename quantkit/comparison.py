"""``compare``: several quantizations of one source, in one table and one plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit.assessment import format_name, quantized_folder, weight_bytes
from quantkit.devices import Device, choose_device
from quantkit.errors import UsageError
from quantkit.evaluation import Texts, read_material, text_paths
from quantkit.gate import measure_folders
from quantkit.plots import trade_plot
from quantkit.recipe import load_recipe
from quantkit.source import open_source, read_object
from quantkit.types import Listener, silent
from quantkit.verification import prove

#: Whose windows are taken where no recipe is given.
_RECIPE = "bnb-nf4"


def compare(
    folders: Sequence[str | Path],
    against: str | Path,
    *,
    recipe: str | Path = _RECIPE,
    revision: str | None = None,
    device: Device = "auto",
    text: Texts = None,
    plot: str | Path | None = None,
    set: Sequence[str] = (),
    listener: Listener = silent,
) -> dict[str, Any]:
    """Measure every folder against the checkpoint ``against``, which is read once for all.

    Nothing is judged; of the recipe only the windows count. ``plot`` is a PNG to write:
    size of the weights against mean KL divergence.

    Raises:
        UsageError: no such folder, or a plot that cannot be written.
        SourceError: the source or a folder cannot be read.
    """
    paths = [quantized_folder(each, listener) for each in folders]
    if not paths:
        raise UsageError("compare: no folders given; name at least one")
    source = prove(open_source(against, revision, listener), listener)
    chosen = load_recipe(recipe, set)
    material = read_material(source.folder, chosen, text_paths(text))
    found = measure_folders(paths, source, chosen, material, choose_device(device), listener)
    rows = [
        {
            "path": str(path),
            "format": format_name(read_object(path / "config.json")),
            "bytes": weight_bytes(path),
            **measures,
        }
        for path, measures in zip(paths, found.folders, strict=True)
    ]
    floor = found.floor
    if plot is not None:
        _write_plot(Path(plot), rows, floor["kl_divergence"]["mean"] if floor else None)
    return {
        "kind": "compare",
        "against": source.given,
        "source_bytes": source.weight_bytes,
        "folders": rows,
        "noise_floor": floor,
        "plot": str(plot) if plot is not None else None,
        **found.protocol,
    }


def _write_plot(path: Path, rows: Sequence[dict[str, Any]], floor: float | None) -> None:
    points = [
        (f"{Path(row['path']).name} ({row['format']})", row["bytes"], row["kl_divergence"]["mean"])
        for row in rows
    ]
    try:
        path.write_bytes(trade_plot(points, floor))
    except OSError as error:
        raise UsageError(f"plot {path}: cannot be written: {error.strerror}") from error
