"""bitsandbytes' own modules, filled with the bytes of a saved folder.

What ``from_pretrained`` does for a whole model, for any piece of one: transformers puts
the modules in place, bitsandbytes rebuilds its parameter from the stored parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.quiet import quiet_loading


def install(model: Any, settings: Any, device: str) -> None:
    """Replace the modules of an empty ``model`` as transformers does before it loads."""
    from transformers.quantizers.auto import AutoHfQuantizer

    with quiet_loading():
        quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=True)
        # a device, not its name: by name, what lies on a CPU may be left as it is
        quantizer.preprocess_model(model, device_map={"": torch.device(device)})
    model.eval()  # the new modules begin in training, where Linear8bitLt computes otherwise
    keep_stored_layout(model)


def keep_stored_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking weights at the first forward on AVX512-BF16 CPUs.

    Repacked, it computes in bfloat16 and stops on some shapes; and the bytes in memory
    would no longer be those of the file.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def place(
    module: nn.Module, values: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> None:
    """Fill ``module``: weights by name, a quantized one's parts as ``NAME.PART``.

    ``dtype`` is not applied here: what read the values did so, and knows how each is stored.
    """
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in values.keys() & names}
    for key, value in values.items():
        if key not in names:
            owner = max((name for name in parts if key.startswith(f"{name}.")), key=len)
            parts[owner][key.removeprefix(f"{owner}.")] = value
    made: dict[int, nn.Parameter] = {}
    for name, stored in parts.items():
        path, _, leaf = name.rpartition(".")
        inside, value = module.get_submodule(path), values[name]
        if id(value) not in made:  # a tied pair is one value, and stays one parameter
            made[id(value)] = _parameter(inside, value, stored, device)
        inside._parameters[leaf] = made[id(value)]


def _parameter(
    module: nn.Module,
    value: Tensor,
    parts: Mapping[str, Tensor],
    device: torch.device,
) -> nn.Parameter:
    from bitsandbytes import nn as library

    made: nn.Parameter
    if parts and isinstance(module, library.Linear4bit):
        made = library.Params4bit.from_prequantized(
            data=value,
            quantized_stats={f"weight.{part}": each for part, each in parts.items()},
            requires_grad=False,
            device=device,
            module=module,
        )
    elif "SCB" in parts and isinstance(module, library.Linear8bitLt):
        made = library.Int8Params(
            value, requires_grad=False, has_fp16_weights=False, SCB=parts["SCB"]
        ).to(device)
    else:
        made = nn.Parameter(value.to(device), requires_grad=False)
    return made
