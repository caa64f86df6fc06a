"""The models of one judgement, side by side: whole where they fit, else a layer at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from quantkit.devices import free_memory
from quantkit.gate.models import LoadingReport, load_saved, names_report
from quantkit.gate.opened import Opened, resident_bytes
from quantkit.gate.runners import Runner, Whole, Windows, hold, walk

#: What the loaded models and the libraries need beside the weights, in bytes.
_WORKING_ROOM = 2 << 30

#: The reference is computed in this data type.
REFERENCE = "float32"

#: One window in so many is scored for the noise floor.
FLOOR_STRIDE = 8


@dataclass(frozen=True)
class Field:
    """Runners of the source, of each saved folder, and of the source in ``floor_dtype``.

    ``floor`` knows only ``floor_windows``; it is ``None`` where the quantized model
    computes in the reference's data type. ``whole`` says how they are held.
    """

    reference: Runner
    saved: tuple[Runner, ...]
    reports: tuple[LoadingReport, ...]
    floor: Runner | None
    floor_windows: tuple[int, ...]
    floor_dtype: str
    whole: bool


def compute_dtype(saved: Opened) -> str:
    """What the folder's quantized modules compute in."""
    settings = saved.settings
    named = settings.get("bnb_4bit_compute_dtype") if settings.get("load_in_4bit") else None
    return str(named or saved.dtype).removeprefix("torch.")


def fits(original: Opened, saved: Sequence[Opened], device: str) -> bool:
    """Whether all models together, whole, leave room on the device."""
    needed = resident_bytes(original, REFERENCE) + resident_bytes(original, "float16")
    needed += sum(resident_bytes(each) for each in saved)
    return needed < room_for_models(device)


def room_for_models(device: str) -> int:
    """Bytes that models may take of what is free on the device now."""
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
    return free - _WORKING_ROOM


@contextmanager
def opened_field(
    original: Opened, saved: Sequence[Opened], windows: Windows, device: str, *, whole: bool
) -> Iterator[Field]:
    """Open all runners; those that walk are closed at the end."""
    dtype = compute_dtype(saved[0])
    some = tuple(range(0, len(windows), FLOOR_STRIDE)) if dtype != REFERENCE else ()
    few = [windows[at] for at in some]
    if whole:
        loaded = [load_saved(each, device) for each in saved]
        yield Field(
            hold(original, windows, device, REFERENCE),
            tuple(Whole(each.model, windows) for each in loaded),
            tuple(each.report for each in loaded),
            hold(original, few, device, dtype) if few else None,
            some,
            dtype,
            whole=True,
        )
        return
    with ExitStack() as stack:
        scratch = _scratch(saved[0].folder)
        floor = stack.enter_context(walk(original, few, device, scratch, dtype)) if few else None
        if floor is not None:
            floor.sweep.let_go()  # nobody compares its weights
        walked = [
            stack.enter_context(walk(original, windows, device, scratch, REFERENCE)),
            *(stack.enter_context(walk(each, windows, device, scratch)) for each in saved),
        ]
        reports = tuple(names_report(each) for each in saved)
        yield Field(
            walked[0], tuple(walked[1:]), reports, floor, some, dtype, whole=False
        )  # fmt: skip


def _scratch(folder: Path) -> Path:
    """Where activations may spill: beside the weights, whose disk has room for such sizes."""
    return folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
