"""Level ``structure``: the staged files hold what the plan says, whole and finite.

Reads the files' own headers and bytes; it shares nothing with the code that wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from pathlib import Path

import torch

from quantkit.checkpoint import CheckpointIndex, open_checkpoint, read_tensor
from quantkit.errors import CheckpointError
from quantkit.gate.report import Failure, Level, judged
from quantkit.gate.settings import generation_failures
from quantkit.plans import Plan
from quantkit.types import FLOAT_DTYPES, OutputTensor, TensorRecord

#: The part that lies beside each weight of bitsandbytes' four bits.
_TABLE = ".quant_map"


def check_structure(folder: Path, plan: Plan) -> Level:
    """Every name, shape, data type and size accounted for; every float finite."""
    try:
        index = open_checkpoint(folder)
    except CheckpointError as error:
        failure = Failure("structure", "checkpoint", str(error), "readable")
        return judged("structure", {}, [failure])
    expected = {each.name: each for shard in plan.shards for each in shard.tensors}
    found = {each.name: each for each in index.tensors}
    failures = [
        *_names(expected.keys(), found.keys()),
        *_forms(expected, found),
        *_sizes(index, plan),
        *_config(folder, plan),
        *generation_failures(folder, plan.generation),
        *nonfinite(folder, index),
    ]
    measures = {"tensors": len(found), "bytes": sum(index.file_bytes.values())}
    return judged("structure", measures, failures)


def _names(expected: Set[str], found: Set[str]) -> Iterator[Failure]:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing:
        yield Failure("structure", "missing tensors", str(len(missing)), "0", missing[0])
    if extra:
        yield Failure("structure", "unplanned tensors", str(len(extra)), "0", extra[0])


def _forms(expected: dict[str, OutputTensor], found: dict[str, TensorRecord]) -> Iterator[Failure]:
    for name in expected.keys() & found.keys():
        want, got = expected[name], found[name]
        shape_differs = want.shape != got.shape and not want.variable
        if want.dtype != got.dtype or shape_differs:
            yield Failure(
                "structure",
                "tensor",
                f"{got.dtype} {list(got.shape)}",
                f"{want.dtype} {list(want.shape)}",
                name,
            )


def _sizes(index: CheckpointIndex, plan: Plan) -> Iterator[Failure]:
    for shard in plan.shards:
        size = index.file_bytes.get(shard.name, 0)
        if not shard.nbytes - shard.slack <= size <= shard.nbytes:
            yield Failure(
                "structure",
                "file size",
                f"{size} bytes",
                f"{shard.nbytes - shard.slack} to {shard.nbytes}",
                shard.name,
            )


def _config(folder: Path, plan: Plan) -> Iterator[Failure]:
    try:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield Failure("structure", "config.json", str(error), "readable")
        return
    if not isinstance(written, dict):
        yield Failure("structure", "config.json", type(written).__name__, "an object")
        return
    for key in sorted(written.keys() | plan.config.keys()):
        if written.get(key) != plan.config.get(key):
            yield Failure(
                "structure", "config.json", repr(written.get(key)), repr(plan.config.get(key)), key
            )


def nonfinite(folder: Path, index: CheckpointIndex) -> Iterator[Failure]:
    """Every float tensor with a NaN or an infinity."""
    # bitsandbytes may store packed codes in a float's type: they are no numbers
    tables = (each.name for each in index.tensors if each.name.endswith(_TABLE))
    packed = {name.removesuffix(_TABLE) for name in tables}
    for record in index.tensors:
        if record.dtype not in FLOAT_DTYPES or not record.elements or record.name in packed:
            continue
        low, high = torch.aminmax(read_tensor(folder, record))
        if not (torch.isfinite(low) and torch.isfinite(high)):
            yield Failure("structure", "values", "NaN or infinite", "finite", record.name)
