"""Whether the stored parts of every quantized weight fit its module and the config.

A decoder may read a folder right whose ``quantization_config`` says something else, or
wrap around where a kernel would read out of bounds. Other loaders allocate by the config
before they read; so it is held to the tensors, part by part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, prod
from typing import Any

import torch

from quantkit.checkpoint import read_tensor
from quantkit.gate.decoding import unpack
from quantkit.gate.opened import Opened
from quantkit.gate.report import Failure
from quantkit.gate.stated import failure, is_listed, overridden, stated_failures
from quantkit.types import TensorRecord

_HALVES = ("float16", "bfloat16")

#: More than the JSON of any ``quant_state``, in bytes.
_MOST_STATE = 1 << 16
_INT32 = ("int32",)


def check_parts(saved: Opened) -> Iterator[Failure]:
    """Every part that does not fit: its data type, its shape, or what the config says of it."""
    if failures := list(stated_failures(saved)):
        yield from failures  # the parts are measured by what is stated
        return
    for name in saved.parts:
        if saved.is_quantized(name):
            shape, _ = saved.architecture.parameters[name]
            if len(shape) == 2:
                yield from _CHECKED[saved.method](saved, name)
            else:
                got = f"quantized ({', '.join(filter(None, saved.parts[name]))})"
                yield failure("parts", got, f"a weight of shape {list(shape)}", name)


def _misfit(
    record: TensorRecord | None,
    what: str,
    name: str,
    dtypes: tuple[str, ...],
    shape: tuple[int, ...],
) -> Iterator[Failure]:
    """How one part is missing, or of another data type or shape than it should be."""
    if record is None:
        yield failure(what, "missing", "stored", name)
    elif record.dtype not in dtypes or record.shape != shape:
        got = f"{record.dtype} {list(record.shape)}"
        yield failure(what, got, f"{' or '.join(dtypes)} {list(shape)}", record.name)


def _sides(saved: Opened, name: str) -> tuple[int, int]:
    """(out, in) of the module."""
    linear = saved.architecture.linears.get(name.removesuffix(".weight"))
    if linear is not None:
        return linear.out_features, linear.in_features
    rows, columns = saved.architecture.parameters[name][0]
    return rows, columns


# GPTQ and AWQ


def _gptq(saved: Opened, name: str) -> Iterator[Failure]:
    parts, (rows, columns) = saved.parts[name], _sides(saved, name)
    settings, left_out = overridden(saved, name)
    if left_out:
        yield failure("quantization_config", "not quantized", "as it is stored", name)
        return
    if (blocks := settings.get("modules_in_block_to_quantize")) is not None:
        yield from _listed(saved, name, blocks)
    bits, size = int(settings["bits"]), int(settings.get("group_size", 128))
    size = columns if size == -1 else size
    if columns % size:
        yield failure("quantization_config", size, f"a divisor of {columns}", f"{name} group_size")
        return
    groups = columns // size
    packed = ceil(columns * bits / 32)
    failures = [
        *_misfit(parts.get("qweight"), "qweight", name, _INT32, (packed, rows)),
        *_misfit(parts.get("qzeros"), "qzeros", name, _INT32, (groups, ceil(rows * bits / 32))),
        *_misfit(parts.get("scales"), "scales", name, _HALVES, (groups, rows)),
    ]
    if "g_idx" in parts:
        failures += _misfit(parts["g_idx"], "g_idx", name, _INT32, (columns,))
        if not failures:
            in_order = settings.get("desc_act", False) is False  # the loaders' default
            failures += _indices(saved, parts["g_idx"], groups, size if in_order else None)
    if not failures and settings.get("sym", True) is True:  # the loaders' default
        stored = saved.settings.get("checkpoint_format") or saved.settings.get("format") or "gptq"
        less = 1 if stored == "gptq" else 0
        failures += _midpoints(saved, parts["qzeros"], bits, less, "sym")
    yield from failures


def _listed(saved: Opened, name: str, blocks: Sequence[Any]) -> Iterator[Failure]:
    """Loaders leave alone what a list of modules, where there is one, does not name."""
    stored = next(iter(saved.parts[name].values())).name.rpartition(".")[0]
    if not is_listed(stored, blocks):
        yield failure(
            "quantization_config", "not listed", "as it is stored", f"modules_in_block: {stored}"
        )


def _indices(
    saved: Opened, record: TensorRecord, groups: int, size: int | None
) -> Iterator[Failure]:
    """``size`` is given where the config says that groups are runs of columns."""
    found = read_tensor(saved.folder, record)
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= groups:
        yield failure("g_idx", f"{low} to {high}", f"0 to {groups - 1}", record.name)
    elif size and not torch.equal(found.long(), torch.arange(found.numel()) // size):
        got = str(saved.settings.get("desc_act", "missing")).lower()
        yield failure("quantization_config", got, "true, as g_idx", f"desc_act: {record.name}")


def _midpoints(
    saved: Opened, record: TensorRecord, bits: int, less: int, key: str
) -> Iterator[Failure]:
    """Kernels that are told of symmetry skip the zero points, and take the middle for all.

    ``less`` is how much less than each is stored, and ``key`` what tells of symmetry.
    """
    zeros = unpack(read_tensor(saved.folder, record), bits) + less
    if not bool(((zeros & ((1 << bits) - 1)) == 1 << (bits - 1)).all()):
        got = str(saved.settings.get(key, "missing")).lower()
        other = "true" if got == "false" else "false"
        yield failure("quantization_config", got, f"{other}, as qzeros", f"{key}: {record.name}")


def _awq(saved: Opened, name: str) -> Iterator[Failure]:
    parts, (rows, columns) = saved.parts[name], _sides(saved, name)
    size = int(saved.settings.get("group_size", 128))
    size = columns if size == -1 else size
    if columns % size:
        yield failure("quantization_config", size, f"a divisor of {columns}", f"{name} group_size")
        return
    groups, packed = columns // size, ceil(rows / 8)
    failures = [
        *_misfit(parts.get("qweight"), "qweight", name, _INT32, (columns, packed)),
        *_misfit(parts.get("qzeros"), "qzeros", name, _INT32, (groups, packed)),
        *_misfit(parts.get("scales"), "scales", name, _HALVES, (groups, rows)),
    ]
    if not failures and saved.settings.get("zero_point", True) is False:
        failures += _midpoints(saved, parts["qzeros"], 4, 0, "zero_point")
    yield from failures


# bitsandbytes


def _bnb(saved: Opened, name: str) -> Iterator[Failure]:
    parts, (rows, columns) = saved.parts[name], _sides(saved, name)
    if "SCB" in parts:
        yield from _misfit(parts.get(""), "weight", name, ("int8",), (rows, columns))
        yield from _misfit(parts["SCB"], "SCB", name, ("float32",), (rows,))
        return
    stated = next((part for part in parts if part.startswith("quant_state.")), None)
    if stated is None:
        yield failure("quant_state", "missing", "stored", name)
        return
    if parts[stated].nbytes > _MOST_STATE:
        yield failure("quant_state", f"{parts[stated].nbytes} bytes", "a few hundred", name)
        return
    try:
        # flattened, as bytes() of a single number would be that many zeros
        state = json.loads(bytes(read_tensor(saved.folder, parts[stated]).flatten().tolist()))
        size, shape = int(state["blocksize"]), [int(each) for each in state["shape"]]
        nested = int(state["nested_blocksize"]) if "nested_blocksize" in state else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        yield failure("quant_state", f"unreadable ({error})"[:120], "its JSON", name)
        return
    if sorted(shape) != sorted((rows, columns)) or size < 1 or (nested is not None and nested < 1):
        got = f"shape {shape}, blocks of {size}" + (f" and {nested}" if nested is not None else "")
        yield failure("quant_state", got, f"shape {[rows, columns]}", name)
        return
    yield from _bnb_stated(saved, name, state, nested is not None)
    yield from _bnb_sizes(saved, name, size, nested)


def _bnb_stated(
    saved: Opened, name: str, state: Mapping[str, Any], nested: bool
) -> Iterator[Failure]:
    """What the config says of all weights, and this one's state of itself."""
    stated = {
        "bnb_4bit_quant_type": state.get("quant_type"),
        "bnb_4bit_use_double_quant": nested,
    }
    for key, own in stated.items():
        said = saved.settings.get(key)
        if said is not None and said != own:
            yield failure("quantization_config", said, f"{own}, as {name}", key)


def _bnb_sizes(saved: Opened, name: str, size: int, nested: int | None) -> Iterator[Failure]:
    """The parts are as long as stated: the library's kernel reads that much whatever there is."""
    parts = saved.parts[name]
    count = prod(_sides(saved, name))
    blocks = ceil(count / size)
    absmax, weight = parts.get("absmax"), parts.get("")
    if absmax is None or absmax.elements != blocks:
        yield failure("absmax", absmax.elements if absmax else "missing", blocks, name)
    if nested is not None:
        absmaxes, table = parts.get("nested_absmax"), parts.get("nested_quant_map")
        yield from _misfit(absmaxes, "nested absmax", name, ("float32",), (ceil(blocks / nested),))
        yield from _misfit(table, "nested quant_map", name, ("float32",), (256,))
    if weight is None or weight.nbytes != ceil(count / 2):
        got = f"{weight.nbytes} bytes" if weight else "missing"
        yield failure("packed weight", got, f"{ceil(count / 2)} bytes", name)


#: One for every method whose weights have parts.
_CHECKED: dict[str, Callable[[Opened, str], Iterator[Failure]]] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bnb,
}
