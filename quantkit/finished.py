"""The layers that a calibration has finished, in ``OUT.partial``: a rerun takes them up.

A layer is two files, ``00003.json`` (what was found, and the other's SHA-256) and
``00003.safetensors`` (its tensors as they will be written). Each is renamed into place, the
latter last, so that a layer is there whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from quantkit.checkpoint import read_tensor
from quantkit.checkpoint.safetensors_header import read_safetensors_header
from quantkit.checkpoint.shards import ShardWriter, flush, layout, put_whole
from quantkit.digests import digest_file
from quantkit.formats import Write
from quantkit.types import OutputTensor

_IDENTITY = "identity.json"


class FinishedLayers:
    """A folder of finished layers, all of one ``identity``; those of another are removed."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        text = json.dumps(identity, sort_keys=True)
        path = folder / _IDENTITY
        if folder.is_dir() and (not path.is_file() or path.read_bytes() != text.encode()):
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        put_whole(path, text)

    def found(self, index: int) -> Mapping[str, Any] | None:
        """What was recorded of a layer; ``None`` unless it is there, whole and unchanged."""
        note, weights = self._paths(index)
        try:
            recorded: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
            return recorded if digest_file(weights).sha256 == recorded["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def tensors(self, index: int, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """A finished layer's tensors, or those of ``names``, by their names in the output."""
        _, weights = self._paths(index)
        return {
            each.name: read_tensor(weights.parent, each)
            for each in read_safetensors_header(weights)
            if names is None or each.name in names
        }

    def add(
        self,
        index: int,
        outputs: Sequence[OutputTensor],
        writes: Sequence[Write],
        recorded: Mapping[str, Any],
    ) -> None:
        """Put a layer on the disk."""
        note, weights = self._paths(index)
        new = f"{weights.name}.new"
        shard = replace(layout([outputs], 1 << 62)[0], name=new)
        writer = ShardWriter(self._folder, shard)
        try:
            for each in writes:
                writer.write(each.name, each.offset, each.data)
            writer.finish()
        finally:
            writer.close()
        digest = digest_file(self._folder / new).sha256
        put_whole(note, json.dumps({**recorded, "sha256": digest}))
        flush(self._folder / new)
        (self._folder / new).rename(weights)
        flush(self._folder)

    def _paths(self, index: int) -> tuple[Path, Path]:
        return self._folder / f"{index:05}.json", self._folder / f"{index:05}.safetensors"
