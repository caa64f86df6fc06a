"""Where a run computes: ``auto`` takes CUDA when there is one."""

from __future__ import annotations

from typing import Literal, get_args

from quantkit.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]


def choose_device(wanted: Device) -> str:
    """``"cpu"`` or ``"cuda"``.

    Raises:
        UsageError: not a device's name, or there is no CUDA device.
    """
    import torch

    if wanted not in get_args(Device):
        raise UsageError(f"device {wanted!r}: expected one of {', '.join(get_args(Device))}")
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return "cuda" if wanted != "cpu" and there else "cpu"
