"""A conversion as data: every source tensor's fate, the output's layout, its config.

The plan serializes to JSON; ``quantkit plan`` prints it, ``convert`` executes exactly it,
and its digest is in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from quantkit.checkpoint.shards import Shard
from quantkit.types import ACTIONS, ITEM_BYTES, Action, OutputTensor, TensorRecord

#: Resident memory, in bytes: of libraries and segments in flight without torch, of both with it,
#: and what transformers adds. bench/bnb.py measures the whole process.
_LIBRARY_BYTES, _WITH_TORCH_BYTES, _TRANSFORMERS_BYTES = 200_000_000, 400_000_000, 300_000_000

#: Of all three in a calibration, which runs transformers' own layers: 515 MB on a tiny model, and
#: 674 MB on the demo, whose tokenizer encodes the text that ships with quantkit.
_CALIBRATING_BYTES = 750_000_000

#: A decoder layer, by the beginning of a name in memory.
_LAYER = re.compile(r"^.*?\.\d+\.")


@dataclass(frozen=True)
class TensorPlan:
    """The fate of one source tensor, and why.

    ``shape`` is the weight as (out, in) when it is quantized; ``transposed`` says that
    the source stores it as (in, out). ``tied_to`` names the source tensor that a
    dropped tied copy must equal. ``memory`` is its name in transformers' model. ``unfit`` says
    why no loader would take it quantized, where that is what keeps it.
    """

    source: TensorRecord
    action: Action
    reason: str
    dtype: str
    outputs: tuple[OutputTensor, ...] = ()
    shape: tuple[int, int] | None = None
    transposed: bool = False
    tied_to: str | None = None
    memory: str | None = None
    unfit: str | None = None


@dataclass(frozen=True)
class Plan:
    """A whole conversion, as data. Sizes in bytes."""

    model_type: str
    class_name: str
    dtype: str
    method: Mapping[str, Any]
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    chat_template: str | None
    split_special_tokens: bool
    max_positions: int | None
    warnings: tuple[str, ...]

    @property
    def source_bytes(self) -> int:
        return sum(each.source.nbytes for each in self.tensors)

    @property
    def output_bytes(self) -> int:
        """The most that the weight files take; exact unless ``slack_bytes``."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def slack_bytes(self) -> int:
        """How much less than ``output_bytes`` it may be: texts of variable length."""
        return sum(shard.slack for shard in self.shards)

    @property
    def computes_in_torch(self) -> bool:
        """Whether some of the arithmetic is torch's, whose sums depend on its threads."""
        return self.is_calibrated or bool(self.method.get("double_quant", False))

    @property
    def memory_bytes(self) -> int:
        """Forecast of the peak without the gate: libraries, segments in flight, the largest
        weight that must be held whole, and what a calibration holds beside its activations.

        Not counted is what a first run adds: transformers where it only reads a config, and numba,
        which compiles the loops."""
        whole = [
            _whole_bytes(each)
            for each in self.tensors
            if each.action != "drop" and (each.transposed or each.source.stride is not None)
        ]
        libraries = _WITH_TORCH_BYTES if self.computes_in_torch else _LIBRARY_BYTES
        libraries = _CALIBRATING_BYTES if self.is_calibrated else libraries
        return libraries + max(whole, default=0) + self._calibration_bytes

    @property
    def is_calibrated(self) -> bool:
        """Whether the model's own layers are run to make it."""
        return bool(self.method["format"] == "gptq")

    @property
    def _calibration_bytes(self) -> int:
        """In float32, the larger of two: all that lies outside the layers; or two layers (the
        next is read while one is worked on), the widest Hessian, what its modules' outputs lack,
        and the weight that is rounded."""
        if not self.is_calibrated:
            return 0
        sizes: dict[str, int] = {}
        for each in (each for each in self.tensors if each.action != "drop"):
            found = _LAYER.match(each.memory or "")
            inside = found[0] if found else ""
            sizes[inside] = sizes.get(inside, 0) + each.source.elements
        outside = sizes.pop("", 0)
        widest = max((each.shape[1] for each in self.tensors if each.shape), default=0)
        return 4 * max(outside, 2 * max(sizes.values(), default=0) + 3 * widest**2)

    @property
    def quantized_share(self) -> float:
        """Share of the model's parameters that is quantized."""
        kept = [each for each in self.tensors if each.action != "drop"]
        total = sum(each.source.elements for each in kept)
        quantized = sum(each.source.elements for each in kept if each.action == "quantize")
        return quantized / total if total else 0.0

    def with_action(self, action: Action) -> tuple[TensorPlan, ...]:
        return tuple(each for each in self.tensors if each.action == action)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan's JSON: the identity of what ``convert`` will do."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def in_layer(memory: str | None) -> bool:
    """Whether a name in memory is of a decoder layer."""
    return _LAYER.match(memory or "") is not None


def _whole_bytes(item: TensorPlan) -> int:
    """What a tensor takes that must be rearranged: itself as stored and in order, and what is read
    ahead, together at most four of its size; a cast's result, and the copy that waits to be written
    where it is kept. How many there are at once differs from run to run."""
    made = item.source.elements * ITEM_BYTES[item.dtype]
    copies = (item.dtype != item.source.dtype) + (item.shape is None)
    return 4 * item.source.nbytes + copies * made


def summary(plan: Plan) -> str:
    """The plan in a few lines, for people about to spend minutes on it."""
    counts = ", ".join(f"{action} {len(plan.with_action(action))}" for action in ACTIONS)
    lines = [
        f"plan: {plan.class_name} in {plan.dtype}; tensors: {counts}; "
        f"{plan.quantized_share:.1%} of the parameters quantized",
        f"      reads {plan.source_bytes:,} bytes, writes {plan.output_bytes:,}, takes "
        f"{memory_forecast(plan)} of memory before the gate",
    ]
    return "\n".join([*lines, *(f"warning: {each}" for each in plan.warnings)])


def memory_forecast(plan: Plan) -> str:
    """In words, with what transformers adds where this process has loaded it, as the first to
    read a config does."""
    text = f"about {plan.memory_bytes / 1e6:,.0f} MB"
    if "transformers" in sys.modules and not plan.is_calibrated:  # counted there
        text += f" (and {_TRANSFORMERS_BYTES / 1e6:.0f} MB for transformers, loaded by now)"
    return text


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as ``quantkit plan --json`` prints it."""
    return {
        **asdict(plan),
        "digest": plan.digest,
        "source_bytes": plan.source_bytes,
        "output_bytes": plan.output_bytes,
        "slack_bytes": plan.slack_bytes,
        "memory_bytes": plan.memory_bytes,
        "quantized_share": plan.quantized_share,
    }
