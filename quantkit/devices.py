"""Where a run computes: ``auto`` takes CUDA when there is one."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

from quantkit.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]

_CONTROL_GROUP = Path("/sys/fs/cgroup")


def choose_device(wanted: Device) -> str:
    """``"cpu"`` or ``"cuda"``.

    Raises:
        UsageError: not a device's name, or there is no CUDA device.
    """
    if wanted not in get_args(Device):
        raise UsageError(f"device {wanted!r}: expected one of {', '.join(get_args(Device))}")
    there = wanted != "cpu" and _has_driver() and _has_cuda()
    if wanted == "cuda" and not there:
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return "cuda" if there else "cpu"


def _has_driver() -> bool:
    """Whether there is a driver of NVIDIA's, or of AMD's, whose devices torch calls CUDA too.

    Without one torch need not be asked, which takes seconds to import.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def free_memory() -> int:
    """Bytes that this process may still take: the machine's, or what its container leaves it.

    A container's share is its control group's (Linux, cgroup v2). What is used of it includes the
    cache of files that were read, which the kernel takes back where memory is wanted.
    """
    import psutil

    machine = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError, KeyError):  # no such files, or "max"
        limit, used = (
            int((_CONTROL_GROUP / name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
        lines = (_CONTROL_GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = int(dict(line.split() for line in lines)["inactive_file"])
        return max(0, min(machine, limit - used + cached))
    return machine


def count_threads() -> int:
    """The threads that torch shares its arithmetic out among."""
    import torch

    return torch.get_num_threads()


@contextmanager
def torch_as_it_starts() -> Iterator[None]:
    """Without the device that a program has set for new tensors, and without its autocast.

    Code that names neither would compute elsewhere, or in another data type.
    """
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "get_default_device"):  # not imported, or not yet
        yield
        return
    with ExitStack() as usual:
        if torch.get_default_device().type != "cpu":
            usual.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                usual.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def tensor_cores(*, allowed: bool) -> Iterator[None]:
    """Whether a CUDA device multiplies float32 matrices as TF32: eleven bits of each factor.

    That is what float16 keeps of them too. Sums are float32's either way.
    """
    import torch

    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    if before == allowed:
        yield
        return
    matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before
