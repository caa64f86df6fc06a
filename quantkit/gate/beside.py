"""Files beside the weights that were judged: other weights, adapters, code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from quantkit.checkpoint.folder import CANDIDATES
from quantkit.errors import printable
from quantkit.gate.opened import Opened
from quantkit.gate.report import Failure

_ADAPTER = "adapter_config.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_SHOWN = 5


def adapters(saved: Opened) -> Iterator[Failure]:
    """With an adapter's config, and peft installed, transformers would change the model."""
    if (saved.folder / _ADAPTER).exists():
        yield Failure("structure", _ADAPTER, "there", "no adapter")


def other_weights(saved: Opened) -> Iterator[str]:
    """Weight files that nothing here has read; another loader may prefer them."""
    known = {*saved.index.files}
    found = sorted(
        each.name
        for each in saved.folder.iterdir()
        if each.suffix in _WEIGHTS and each.name not in known
    )
    _, *passed_over = (name for name, _ in CANDIDATES if (saved.folder / name).exists())
    indices = [name for name in passed_over if name.endswith(".json")]
    if others := [*found, *indices]:
        yield f"not judged, as nothing here reads it: {_listed(others)}"


def code(folder: Path, source: Path) -> Iterator[str]:
    """Python files that the source does not have, wherever they lie (``custom_generate/``)."""
    found = [each for each in _python(folder) if not _same(folder / each, source / each)]
    if found:
        yield (
            f"code: {_listed(sorted(found))}, not the source's (transformers runs it only with "
            "trust_remote_code)"
        )


def _python(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(".py"):
                yield str((Path(place) / name).relative_to(folder))


def _same(one: Path, other: Path) -> bool:
    try:
        alike = one.stat().st_size == other.stat().st_size
        return alike and one.is_file() and one.read_bytes() == other.read_bytes()
    except OSError:
        return False


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more
