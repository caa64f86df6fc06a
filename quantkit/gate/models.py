"""The two models that the gate compares, each opened through the users' library.

The quantized one is the *saved* folder, reopened by ``from_pretrained``. The reference
is the source: its tensors read by quantkit (no pickle is ever run), placed by transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantkit.checkpoint import read_tensor
from quantkit.plans import Plan
from quantkit.quiet import quiet_libraries
from quantkit.source import Source


@dataclass(frozen=True)
class Reloaded:
    """The saved model, and what transformers' loading report says of it."""

    model: Any
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def load_saved(folder: Path, dtype: str, device: str) -> Reloaded:
    """Open the staged folder as a user would, in its own data type."""
    from transformers import AutoModelForCausalLM

    with quiet_libraries():
        import bitsandbytes  # noqa: F401 - here, so that its advice at import is held back

        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), device_map=device, output_loading_info=True
        )
    _keep_stored_layout(model)
    return Reloaded(
        model.eval(),
        tuple(sorted(info["missing_keys"])),
        tuple(sorted(info["unexpected_keys"])),
        tuple(sorted(str(each[0]) for each in info["mismatched_keys"])),
    )


def load_reference(source: Source, plan: Plan, dtype: str, device: str) -> Any:
    """The source model as ``dtype``."""
    import transformers

    wanted = getattr(torch, dtype)
    state = {}
    for item in plan.tensors:
        if item.action != "drop":
            value = read_tensor(source.folder, item.source)
            state[item.source.name] = value.to(wanted) if value.is_floating_point() else value
    with quiet_libraries():
        config = transformers.AutoConfig.from_pretrained(source.folder)
        model_class = getattr(transformers, plan.class_name)
        model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=wanted)
    return model.to(device).eval()


def _keep_stored_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking weights at the first forward on AVX512-BF16 CPUs.

    Repacked, it computes in bfloat16 and stops on some shapes; and the bytes in memory
    would no longer be those of the file.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
