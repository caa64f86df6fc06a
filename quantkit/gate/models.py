"""Models whole in memory: the saved folder through the users' library, and the source.

The quantized one is the *saved* folder, reopened by ``from_pretrained``. The source's
tensors are read by quantkit (no pickle is ever run), placed by transformers.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any

import torch

from quantkit.gate.decoding import has_library
from quantkit.gate.library import keep_stored_layout
from quantkit.gate.opened import Opened
from quantkit.gate.settings import GENERATION
from quantkit.quiet import quiet_loading


@dataclass(frozen=True)
class LoadingReport:
    """What a load leaves over: names that should not be there."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reloaded:
    """The saved model, and what transformers' loading report says of it."""

    model: Any
    report: LoadingReport


def load_saved(opened: Opened, device: str) -> Reloaded:
    """Open a folder as a user would, in its own data type.

    Where the library that serves the format is not installed, the gate decodes the weights;
    it reads them too where they lie in a ``.bin``, which a library would unpickle.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    if not has_library(opened.method) or opened.index.container == "torch":
        if (opened.folder / GENERATION).is_file():  # from_pretrained reads it, and may refuse it
            GenerationConfig.from_pretrained(opened.folder)
        return Reloaded(load_plain(opened, opened.dtype, device), names_report(opened))
    with quiet_loading():
        import bitsandbytes  # noqa: F401 - here, so that its advice at import is held back

        model, info = AutoModelForCausalLM.from_pretrained(
            opened.folder,
            dtype=getattr(torch, opened.dtype),
            device_map=device,
            output_loading_info=True,
            use_safetensors=True,
            **_options(opened),
        )
    keep_stored_layout(model)
    report = LoadingReport(
        tuple(sorted(info["missing_keys"])),
        tuple(sorted(info["unexpected_keys"])),
        tuple(sorted(str(each[0]) for each in info["mismatched_keys"])),
    )
    return Reloaded(model.eval(), report)


def _options(opened: Opened) -> dict[str, Any]:
    """GPTQModel's plain kernel: others repack the weights, and compute in a type of their own."""
    if opened.method != "gptq":
        return {}
    from transformers import GPTQConfig

    # without it GPTQModel wants more workers than a small machine has cores, and stops
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(min(2, os.cpu_count() or 1)))
    bits = int(opened.settings["bits"])
    return {"quantization_config": GPTQConfig(bits=bits, backend="gptq_torch")}


def load_plain(opened: Opened, dtype: str, device: str) -> Any:
    """The model as ``dtype``, every weight read or decoded by the gate."""
    import transformers

    wanted = getattr(torch, dtype)
    state = opened.load(tuple(opened.architecture.parameters), dtype)
    for tied in opened.architecture.ties:
        state.pop(tied, None)
    config = copy.deepcopy(opened.parsed)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with quiet_loading():
        model_class = getattr(transformers, opened.architecture.class_name)
        model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=wanted)
    return model.to(device).eval()


def names_report(opened: Opened) -> LoadingReport:
    """The loading report as names and shapes foretell it, where no whole model is loaded."""
    architecture = opened.architecture
    mismatched = [
        parts[""].name
        for name, parts in opened.parts.items()
        if not opened.is_quantized(name)
        and parts[""].shape != tuple(architecture.parameters[name][0])
    ]
    return LoadingReport(
        opened.missing,
        tuple(name for name in opened.unknown if name not in architecture.ignored),
        tuple(sorted(mismatched)),
    )
