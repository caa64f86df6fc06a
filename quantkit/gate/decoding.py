"""Weights of formats whose library is a GPU's or is not installed, decoded by their definition.

GPTQ in AutoGPTQ's layout and AWQ's GEMM layout, written from the formats' descriptions and
not from the writer's code. Each takes a weight's stored parts and gives it as float32
(out, in). The gate's own matrix product over it is what the libraries' reference kernels
compute: they decode too, then multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from typing import Any

import torch
from torch import Tensor

from quantkit.errors import CheckpointError, UnsupportedModelError

#: AWQ packs eight 4-bit columns of one int32 in this order.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def decode(method: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """The weight that ``parts`` hold, float32 (out, in).

    Raises:
        CheckpointError: a part is missing, or the parts do not fit each other.
        UnsupportedModelError: a layout of the method that is not known here.
    """
    try:
        return DECODERS[method].weight(parts, settings)
    except (KeyError, RuntimeError, IndexError) as error:
        said = f"the parts of a {method} weight do not fit each other: {error}"
        raise CheckpointError(said) from error


def decode_gptq(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """scale * (code - zero), each input column by its group.

    ``qweight`` int32 (in * bits / 32, out) packs codes along the inputs, ``qzeros`` int32
    (groups, out * bits / 32) along the outputs, both from the lowest bits on; 3 bits run
    on from one word into the next. ``scales`` (groups, out), ``g_idx`` (in,). The ``gptq``
    format stores each zero less one, ``gptq_v2`` as it is.
    """
    bits = _bits_of(parts, settings)
    stored = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if stored not in ("gptq", "gptq_v2"):
        raise UnsupportedModelError(f"GPTQ in the layout {stored!r}; expected gptq or gptq_v2")
    codes = unpack(parts["qweight"].T, bits)  # (out, in)
    offset = 1 if stored == "gptq" else 0
    zeros = (unpack(parts["qzeros"], bits) + offset) & ((1 << bits) - 1)  # (groups, out)
    scales = parts["scales"].float()
    groups = parts["g_idx"].long() if "g_idx" in parts else _in_order(codes.shape[1], scales)
    return ((codes.T - zeros[groups]).float() * scales[groups]).T.contiguous()


def decode_awq(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """scale * (code - zero) in the GEMM layout: ``qweight`` int32 (in, out / 8)."""
    stated = (settings.get(key) for key in ("version", "format"))  # transformers reads either
    layouts = {str(each).lower() for each in stated if each is not None} - {"gemm"}
    if settings.get("bits", 4) != 4 or layouts or settings.get("backend") == "llm-awq":
        raise UnsupportedModelError("AWQ other than 4 bits in the gemm layout")
    codes, zeros = (
        unpack(parts[name], 4).reshape(parts[name].shape[0], -1, 8)[..., list(_AWQ_ORDER)]
        for name in ("qweight", "qzeros")
    )
    codes, zeros = codes.flatten(1), zeros.flatten(1)
    groups = _in_order(codes.shape[0], parts["scales"])
    return ((codes - zeros[groups]).float() * parts["scales"].float()[groups]).T.contiguous()


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 (rows, words) as codes int32 (rows, words * 32 // bits), lowest bits first."""
    rows, count = words.shape
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        codes = (words.contiguous()[:, :, None] >> shifts) & ((1 << bits) - 1)
        return codes.reshape(rows, -1)
    places = torch.arange(32, dtype=torch.int32)
    stream = ((words.contiguous()[:, :, None] >> places) & 1).reshape(rows, count * 32)
    digits = stream[:, : count * 32 // bits * bits].reshape(rows, -1, bits)
    return (digits << torch.arange(bits, dtype=torch.int32)).sum(-1, dtype=torch.int32)


def _bits_of(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> int:
    """This weight's own, seen by its parts: a mixed model's modules differ from the config."""
    if "g_idx" in parts:
        words, codes = parts["qweight"].shape[0], parts["g_idx"].numel()
    else:
        words, codes = parts["qzeros"].shape[1], parts["scales"].shape[1]
    if codes and words * 32 % codes == 0:
        return words * 32 // codes
    return int(settings["bits"])


def _in_order(inputs: int, scales: Tensor) -> Tensor:
    """The group of each input where none is reordered, from the number of groups."""
    return torch.arange(inputs) // ceil(inputs / max(1, scales.shape[0]))


def flat_grid(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Bits and group size as GPTQ's and AWQ's configs state them, else as decoding assumes them.
    Nothing has checked yet that they are numbers."""
    return settings.get("bits", 4), settings.get("group_size", 128)


@dataclass(frozen=True)
class Decoder:
    """How a method's weights are decoded here, and the libraries that transformers opens its
    folders with; none where it is always decoded here.

    ``grid`` finds bits and group size (-1: a whole row) in a ``quantization_config``, as they
    stand there, and never raises. They name a folder, and choose its bound. ``bounds`` is how far
    a row's group may be from its source at worst, by bits: the relative RMS of its error, with
    room for what moves weights on purpose. A scale that is doubled or zeroed is off by about 1.
    """

    weight: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Tensor]
    libraries: tuple[str, ...]
    bounds: Mapping[int, float]
    grid: Callable[[Mapping[str, Any]], tuple[Any, Any]]


#: Every method but bitsandbytes, whose own modules decode on every machine.
DECODERS: dict[str, Decoder] = {
    "gptq": Decoder(
        decode_gptq, ("optimum", "gptqmodel"), {2: 2.0, 3: 1.2, 4: 0.75, 8: 0.3}, flat_grid
    ),
    "awq": Decoder(decode_awq, (), {4: 0.75}, flat_grid),
}


def has_library(method: str) -> bool:
    """Whether transformers opens folders of ``method`` here; where not, the gate decodes them."""
    if method not in DECODERS:
        return True
    libraries = DECODERS[method].libraries
    return bool(libraries) and all(find_spec(each) is not None for each in libraries)
