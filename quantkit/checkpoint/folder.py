"""Which weight files a folder holds, and every tensor in them.

Names and order of preference are transformers': one safetensors file, safetensors
shards, one torch file, torch shards. An index (``*.index.json``) is a promise in
both directions: each tensor it names is in the shard it says, and no shard holds
a tensor it does not name.

A file may be a symbolic link within the folder, or into ``../../blobs`` as the Hugging
Face cache links every file. Neither another link nor a shard's *name* may lead out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from quantkit.checkpoint.names import check_tensor_name, quoted
from quantkit.checkpoint.reading import Stamp, open_weights, stamp_of
from quantkit.checkpoint.safetensors_header import read_safetensors_header
from quantkit.checkpoint.strict_json import parse_object
from quantkit.checkpoint.torch_pickle import read_torch_index
from quantkit.errors import CheckpointError
from quantkit.types import TensorRecord

Container = Literal["safetensors", "torch"]

#: What is looked for, in this order.
CANDIDATES: tuple[tuple[str, Container], ...] = (
    ("model.safetensors", "safetensors"),
    ("model.safetensors.index.json", "safetensors"),
    ("pytorch_model.bin", "torch"),
    ("pytorch_model.bin.index.json", "torch"),
)

#: An index takes some 100 bytes a tensor; in bytes.
MAX_INDEX_BYTES = 16 * 2**20

#: A shard's name as anybody writes one: nothing that a shell, a page or a card would act on.
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,200}")

_SUFFIXES: dict[Container, str] = {"safetensors": ".safetensors", "torch": ".bin"}

_READERS: dict[Container, Callable[[Path], list[TensorRecord]]] = {
    "safetensors": read_safetensors_header,
    "torch": read_torch_index,
}

#: How many times a file's size all its tensors together may claim.
_MOST_SHARED = 4

_NAMES_SHOWN = 10


@dataclass(frozen=True)
class CheckpointIndex:
    """All tensors of a checkpoint folder.

    ``files`` are the weight files by name, ``file_bytes`` their sizes, ``stamps`` what they
    were when their headers were read. ``tensors`` have unique names and are ordered by file,
    then as in the file.
    """

    files: tuple[str, ...]
    container: Container
    tensors: tuple[TensorRecord, ...]
    file_bytes: Mapping[str, int]
    stamps: Mapping[str, Stamp]


def open_checkpoint(folder: Path, wanted: Container | None = None) -> CheckpointIndex:
    """Read the headers of the checkpoint in ``folder``; no tensor bytes are read.

    Where it holds both containers, safetensors are taken unless the other is ``wanted``.
    """
    name, container = _choose(folder, wanted)
    if not name.endswith(".index.json"):
        return _collect(folder, {name: None}, container)
    weight_map = _read_weight_map(folder / name, container)
    by_shard: dict[str, set[str]] = {shard: set() for shard in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        by_shard[shard].add(tensor)
    for shard in by_shard:
        if not os.path.lexists(folder / shard):
            raise CheckpointError(
                f"{folder / name}: expected the shards that it names beside it, there is no "
                f"{quoted(shard)}; fetch shards and index again, from one revision"
            )
    return _collect(folder, by_shard, container, name)


def _choose(folder: Path, wanted: Container | None) -> tuple[str, Container]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder with a checkpoint, got none")
    candidates = [each for each in CANDIDATES if wanted in (None, each[1])]
    for name, container in candidates:
        # lexists: a dangling link is a broken download, not an absent file.
        if os.path.lexists(folder / name):
            return name, container
    shown = _listed(entry.name for entry in folder.iterdir()) or "nothing"
    names = ", ".join(name for name, _ in candidates)
    only = f" (source.container is {wanted!r})" if wanted else ""
    raise CheckpointError(
        f"{folder}: expected one of {names}{only}, found {shown}; point to the folder that holds "
        "the weights"
    )


def _read_weight_map(path: Path, container: Container) -> dict[str, str]:
    """Tensor name -> shard name, checked for form alone."""
    weight_map = parse_object(_read_index(path), str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path}: expected weight_map to be an object of tensor to shard, "
            f"got {quoted(weight_map)}; fetch the index again"
        )
    for tensor, shard in weight_map.items():
        check_tensor_name(tensor, str(path))
        _check_shard_name(shard, container, path)
    return weight_map


def _read_index(path: Path) -> bytes:
    with open_weights(path) as stream:
        raw = stream.read(MAX_INDEX_BYTES + 1)
    if len(raw) > MAX_INDEX_BYTES:
        raise CheckpointError(
            f"{path}: expected an index of at most {MAX_INDEX_BYTES} bytes, got more; "
            "fetch the index again"
        )
    return raw


def _check_shard_name(shard: object, container: Container, path: Path) -> None:
    suffix = _SUFFIXES[container]
    if not (isinstance(shard, str) and _SHARD_NAME.fullmatch(shard) and shard.endswith(suffix)):
        raise CheckpointError(
            f"{path}: expected shards to be plain file names ending in {suffix}, "
            f"got {quoted(shard)}; fetch the index again from its author"
        )


def _collect(
    folder: Path,
    expected: Mapping[str, set[str] | None],
    container: Container,
    index: str = "",
) -> CheckpointIndex:
    """Read each file and hold it to the names expected in it (``None``: any)."""
    tensors: list[TensorRecord] = []
    stamps: dict[str, Stamp] = {}
    read = _READERS[container]
    for name, promised in expected.items():
        if (folder / name).is_file():  # taken first, so that a change meanwhile is seen later
            stamps[name] = stamp_of(folder / name)
        records = read(folder / name)
        if promised is not None:
            _check_promise({record.name for record in records}, promised, folder / name, index)
        _refuse_aliases(records, stamps[name].nbytes, folder / name)
        tensors += records
    if not tensors:
        raise CheckpointError(
            f"{folder}: expected tensors in {', '.join(expected)}, got none; "
            "fetch the checkpoint again"
        )
    return CheckpointIndex(
        files=tuple(expected),
        container=container,
        tensors=tuple(tensors),
        file_bytes={name: stamps[name].nbytes for name in expected},
        stamps=stamps,
    )


def _refuse_aliases(records: Sequence[TensorRecord], size: int, path: Path) -> None:
    """Two names may share a tied weight's bytes; a thousand names would be a thousand reads."""
    stated = sum(each.nbytes for each in records)
    if stated > _MOST_SHARED * size:
        raise CheckpointError(
            f"{path}: its {len(records)} tensors share their bytes so often that they are "
            f"{stated:,} bytes in a file of {size:,}; expected at most {_MOST_SHARED} times its "
            "size: do not trust this file"
        )


def _check_promise(found: set[str], promised: set[str], path: Path, index: str) -> None:
    if missing := promised - found:
        raise CheckpointError(
            f"{path}: expected the tensors that {index} places here, missing "
            f"{_listed(missing)}; fetch shard and index again, from one revision"
        )
    if extra := found - promised:
        raise CheckpointError(
            f"{path}: expected only the tensors that {index} places here, also holds "
            f"{_listed(extra)}; fetch shard and index again, from one revision"
        )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(quoted(name) for name in islice(ordered, _NAMES_SHOWN))
    more = len(ordered) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
