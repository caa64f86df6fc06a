"""A checkpoint as the gate reads it: the source, or a quantized folder, whoever made it.

Names are matched to transformers' model class on the meta device, so that a folder needs
no manifest to be judged. A quantized weight is stored as several *parts*; each belongs to
the parameter of its module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantkit.architecture import Architecture, read_architecture
from quantkit.cautions import stored_dtype
from quantkit.checkpoint import CheckpointIndex, open_checkpoint, read_tensor
from quantkit.errors import CheckpointError, UnsupportedModelError
from quantkit.gate.decoding import DECODERS, decode
from quantkit.gate.library import install
from quantkit.skeleton import build_empty, parse_config
from quantkit.source import Source, quantization_method, quantization_settings, read_object
from quantkit.types import ITEM_BYTES, TensorRecord

#: How the parts of a quantized weight are named, by quantization method: the module and the
#: part; ``weight`` itself is bitsandbytes' packed tensor.
_PART_NAMES = {
    "bitsandbytes": re.compile(
        r"^(?P<module>.+?)\.(?:weight\.(?P<part>(?:nested_)?absmax|(?:nested_)?quant_map|"
        r"quant_state\.bitsandbytes__(?:nf4|fp4))|(?P<row>SCB|weight_format))$"
    ),
    "gptq": re.compile(r"^(?P<module>.+)\.(?P<part>qweight|qzeros|scales|g_idx)$"),
    "awq": re.compile(r"^(?P<module>.+)\.(?P<part>qweight|qzeros|scales)$"),
}


@dataclass(frozen=True)
class Opened:
    """A checkpoint and the model class that it is for.

    ``parts`` gives for each parameter, by its name in memory, the stored tensors: ``""`` is
    the weight itself, others are what its quantization adds. ``twice`` are further stored
    tensors for one that is there already (a head under the names that different loaders look
    for), and ``unknown`` stored names that the model has no place for.
    """

    folder: Path
    index: CheckpointIndex
    config: Mapping[str, Any]
    parsed: Any
    architecture: Architecture
    parts: Mapping[str, Mapping[str, TensorRecord]]
    twice: Mapping[str, tuple[TensorRecord, ...]]
    unknown: tuple[str, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """``quantization_config``; empty for a folder that is not quantized."""
        return quantization_settings(self.config, self.folder / "config.json")

    @property
    def method(self) -> str:
        """``bitsandbytes``, ``gptq``, ``awq``, or ``plain``."""
        return _method(self.settings)

    @property
    def dtype(self) -> str:
        """What users get who load it with its own data type."""
        return self.architecture.dtype

    @property
    def missing(self) -> tuple[str, ...]:
        """Parameters of the model that no stored tensor fills, by name in memory."""
        names = sorted(self.architecture.parameters)
        return tuple(name for name in names if self._stored_as(name) not in self.parts)

    def is_quantized(self, name: str) -> bool:
        """Whether the parameter is stored quantized."""
        parts = self.parts.get(name, {})
        return len(parts) > 1 or (bool(parts) and "" not in parts)

    def load(self, names: Sequence[str], dtype: str | None = None) -> dict[str, Tensor]:
        """Weights by their names in memory, as the sweep asks for them.

        The parts of a weight that its library decodes come as ``NAME.PART``; what no
        library here decodes comes decoded. ``dtype`` overrides the model's own.
        """
        found: dict[str, Tensor] = {}
        for name in names:
            own = self._stored_as(name)
            if own in found:  # a tied pair shares its memory
                found[name] = found[own]
            else:
                found |= self._read(name, own, dtype)
        return found

    def _stored_as(self, name: str) -> str:
        """The parameter that is stored for ``name``: of a tied pair it may be either."""
        ties = self.architecture.ties
        other = {own: tied for tied, own in ties.items()} | dict(ties)
        return name if name in self.parts else other.get(name, name)

    def _read(self, name: str, own: str, dtype: str | None) -> dict[str, Tensor]:
        if own not in self.parts:
            raise CheckpointError(
                f"{self.folder}: nothing is stored for {name}; the checkpoint is incomplete"
            )
        parts = {part: read_tensor(self.folder, at) for part, at in self.parts[own].items()}
        wanted = getattr(torch, dtype or self.architecture.parameters[name][1])
        if self.is_quantized(own) and self.method in DECODERS:
            weight = decode(self.method, parts, self.settings)
            if self.is_transposed(own):
                weight = weight.T.contiguous()
            return {name: weight.to(wanted)}
        if "" not in parts:
            raise CheckpointError(f"{self.folder}: {name} is stored without its weight")
        if not self.is_quantized(own):
            parts[""] = parts[""].to(wanted)
        return {f"{name}.{part}" if part else name: value for part, value in parts.items()}

    def is_transposed(self, name: str) -> bool:
        """Whether the parameter's module is a Conv1D, which holds its weight (in, out)."""
        linear = self.architecture.linears.get(name.rpartition(".")[0])
        return linear is not None and linear.kind == "Conv1D"


def open_original(source: Source, dtype: str = "auto") -> Opened:
    """The source. Its weights are read by quantkit: no pickle is run."""
    return _open(source.folder, source.config, source.checkpoint, dtype)


def open_saved(folder: Path) -> Opened:
    """A quantized folder, in its own data type.

    Raises:
        CheckpointError, SourceError: it cannot be read.
        UnsupportedModelError: a model or a quantization that the gate cannot judge.
    """
    opened = _open(folder, read_object(folder / "config.json"), open_checkpoint(folder), "auto")
    known = ("plain", "bitsandbytes", *DECODERS)
    if opened.method not in known:
        raise UnsupportedModelError(
            f"{folder}: quantized by {opened.method!r}; the gate judges {', '.join(known)}"
        )
    if opened.index.container == "torch" and opened.method == "bitsandbytes":
        raise UnsupportedModelError(
            f"{folder}: bitsandbytes weights in a .bin, which its library would unpickle, and "
            "quantkit runs no pickle; save them as safetensors"
        )
    return opened


def _open(folder: Path, config: Mapping[str, Any], index: CheckpointIndex, dtype: str) -> Opened:
    settings = quantization_settings(config, folder / "config.json")
    method = _method(settings)
    placed = {each.name: _placed(each.name, method) for each in index.tensors}
    names = list(dict.fromkeys(name for name, _ in placed.values()))
    architecture = read_architecture(folder, config, names, dtype, stored_dtype(index.tensors))
    parts: dict[str, dict[str, TensorRecord]] = {}
    twice: dict[str, tuple[TensorRecord, ...]] = {}
    unknown = []
    for record in index.tensors:
        name, part = placed[record.name]
        memory = architecture.memory_names.get(name)
        if memory is None:
            unknown.append(record.name)
        elif part in parts.get(memory, {}):
            twice[memory] = (*twice.get(memory, ()), record)
        else:
            parts.setdefault(memory, {})[part] = record
    parsed = parse_config(folder, config)
    return Opened(folder, index, config, parsed, architecture, parts, twice, tuple(unknown))


def _method(settings: Mapping[str, Any]) -> str:
    return str(quantization_method(settings) or "plain")


def _placed(stored: str, method: str) -> tuple[str, str]:
    """The parameter that a stored tensor belongs to, by its stored name, and which part it is."""
    pattern = _PART_NAMES.get(method)
    found = pattern.match(stored) if pattern else None
    if found is None:
        return stored, ""
    groups = found.groupdict()
    return f"{groups['module']}.weight", groups["part"] or groups.get("row") or ""


def empty_model(opened: Opened, device: str) -> Any:
    """The model without weights, its quantized modules the library's own.

    Where the gate decodes the weights itself, the modules stay plain ones.
    """
    model = build_empty(opened.parsed, opened.dtype, with_buffers=True)
    if opened.method == "bitsandbytes":
        install(model, opened.parsed.quantization_config, device)
    return model


def resident_bytes(opened: Opened, dtype: str | None = None) -> int:
    """What the model takes when it is loaded whole, in ``dtype`` or as it is stored."""
    if dtype is not None or opened.method in DECODERS:
        elements = sum(prod(shape) for shape, _ in opened.architecture.parameters.values())
        return elements * ITEM_BYTES[dtype or opened.dtype]
    return sum(opened.index.file_bytes.values())
