"""What people give in place of a checkpoint: adapters, GGUF files, a Hub cache's repository.

Told by names alone, where no ``config.json`` says anything; each with what to give instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from quantkit.errors import printable

#: A file by whose name a folder is known -> what that folder is, and what to do.
_TELLTALES = {
    "adapter_config.json": (
        "an adapter (PEFT), which holds changes to a model and not the model; merge it into its "
        "base model, unquantized (merge_and_unload), save that and give its folder"
    ),
    "model_index.json": (
        "a pipeline of diffusers, of several models; quantkit quantizes causal language models"
    ),
    "params.json": (
        "a checkpoint in its author's own form; give the one in transformers' form, with "
        "config.json, or convert it"
    ),
}

_GGUF = (
    "a GGUF file, the form of llama.cpp; give the checkpoint that it was made from, in "
    "transformers' form"
)

_MOST_SHOWN = 3


def in_place_of_folder(path: Path, *, or_hub: bool = True) -> str:
    """Why ``path`` is no folder with a checkpoint, and what to give instead."""
    if path.name.lower().endswith(".gguf"):
        return _GGUF
    if path.exists():
        return "a file; give the folder that holds it"
    instead = " or a Hub id (owner/name)" if or_hub else ""
    return f"no such folder; give a checkpoint's folder{instead}"


def in_place_of_checkpoint(names: Collection[str]) -> str:
    """Why a folder of these files, by path, holds no checkpoint, and what to give instead."""
    top = {name for name in names if "/" not in name}
    if "config.json" in top:
        return "its config.json is an empty object; fetch it again"
    for telltale, said in _TELLTALES.items():
        if telltale in top:
            return f"no config.json but {telltale}: {said}"
    if gguf := min((name for name in top if name.lower().endswith(".gguf")), default=None):
        return f"no config.json but {printable(gguf)}: {_GGUF}"
    inside = _shown({str(PurePosixPath(name).parent) for name in names if _is_config(name)})
    if inside:
        return f"no config.json; there is one in {inside}: give that folder"
    return "no config.json; a checkpoint's folder holds config.json and weights"


def names_in(folder: Path) -> list[str]:
    """The files of ``folder`` and of its folders, as a Hub lists them; of a Hub cache's
    repository, those of its snapshots too."""
    return [
        each.relative_to(folder).as_posix()
        for pattern in ("*", "*/config.json", "snapshots/*/config.json")
        for each in islice(_files(folder, pattern), 1000)
    ]


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    return (each for each in folder.glob(pattern) if each.is_file())


def _is_config(name: str) -> bool:
    return PurePosixPath(name).name == "config.json"


def _shown(folders: Collection[str]) -> str:
    shown = " or ".join(printable(each) for each in sorted(folders)[:_MOST_SHOWN])
    return f"{shown} (and others)" if len(folders) > _MOST_SHOWN else shown
