"""In words, everything that a number of the gate depends on beside the two folders."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from quantkit.evaluation import EvaluationText
from quantkit.gate.decoding import DECODERS, has_library
from quantkit.gate.field import FLOOR_STRIDE, REFERENCE, Field, compute_dtype
from quantkit.gate.likelihood import BLOCK_TOKENS
from quantkit.gate.opened import Opened


def protocol(
    texts: Sequence[EvaluationText],
    windows: int,
    length: int,
    saved: Opened,
    field: Field,
    device: str,
) -> dict[str, Any]:
    """The protocol, and each text's name and digest."""
    routes = ", ".join(sorted({each.route for each in texts}))
    words = [
        f"{windows} non-overlapping windows of at most {length} tokens, the whole text encoded "
        f"once without special tokens ({routes}), all predicted tokens, float32 logits, "
        "log-softmax in float64",
        f"reference in {REFERENCE}, quantized loaded in {saved.dtype} and computed in "
        f"{compute_dtype(saved)}, {_how(saved, field)}, on {device_name(device)}",
        f"95 % interval of the ratio: paired, normal, over blocks of {BLOCK_TOKENS} tokens",
    ]
    if field.floor is not None:
        words.append(
            f"noise floor: the source in {field.floor_dtype} on one window in {FLOOR_STRIDE}"
        )
    return {
        "protocol": "; ".join(words),
        "text": ", ".join(each.name for each in texts),
        "text_sha256": ", ".join(each.sha256 for each in texts),
    }


def _how(saved: Opened, field: Field) -> str:
    held = "whole in memory" if field.whole else "one layer at a time"
    if saved.method in DECODERS and not (field.whole and has_library(saved.method)):
        return f"{held}, its stored weights decoded by the gate"
    return f"{held}, in the library's own modules"


def device_name(device: str) -> str:
    """The processor's own name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
