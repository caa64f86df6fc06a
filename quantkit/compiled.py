"""Compiled loops without the compiler: machine code, kept on disk and called by its address.

Importing numba, and finding one function in its own cache, takes as long as quantizing a
gigabyte does. So numba compiles a loop when it is first called on a machine, and LLVM alone loads
what was made of it ever after (:mod:`quantkit.cache`).

The code follows numba's calling convention (its developer manual, "Notes on Numba's
architecture"): ``int32 status(result *, exception **, arguments ...)``, where an array is the
two objects that own it (none here), its size, the bytes of an element, its address, its shape
and its strides, and a tuple is its parts.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from quantkit.cache import remembered_bytes
from quantkit.errors import UsageError

#: What a loop is called in its object file.
_SYMBOL = "quantkit_loop"

#: Engines are never let go: their code would be freed with them.
_engines: list[Any] = []

Argument = Any  # an array, an integer, or a tuple of arguments


class Loop:
    """One function of :mod:`quantkit.kernels.loops`, on the caller's thread and without the GIL."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name
        self._linked: dict[str, Callable[..., int]] = {}
        self._lock = Lock()

    def __call__(self, *arguments: Argument) -> int:
        """What the loop returns, 0 for nothing. Arrays must be aligned and row-major."""
        signature = f"({', '.join(map(_type_of, arguments))})"
        result, exception = ctypes.c_int64(), ctypes.c_void_p()
        linked = self._linked.get(signature) or self._link(signature, arguments)
        flat = [word for each in arguments for _, word in _words(each)]
        if status := linked(ctypes.byref(result), ctypes.byref(exception), *flat):
            raise RuntimeError(f"{self._module}.{self._name}{signature}: status {status}")
        return result.value

    def _link(self, signature: str, arguments: tuple[Argument, ...]) -> Callable[..., int]:
        with self._lock:
            if signature not in self._linked:
                code = remembered_bytes(
                    "loop",
                    [self._module, self._name, signature, *_depends_on()],
                    lambda: _compile(self._module, self._name, signature),
                )
                kinds = [kind for each in arguments for kind, _ in _words(each)]
                self._linked[signature] = _load(code, kinds)
            return self._linked[signature]


def has_half_instruction() -> bool:
    """Whether this CPU casts float16 itself; LLVM would call a function that may not be there."""
    if platform.machine() in ("aarch64", "arm64"):
        return True
    from llvmlite.binding import get_host_cpu_features

    return bool(get_host_cpu_features().get("f16c"))


def _type_of(argument: Argument) -> str:
    """An argument's type, as numba spells it."""
    if isinstance(argument, tuple):
        return f"Tuple(({', '.join(map(_type_of, argument))},))"
    if not isinstance(argument, np.ndarray):
        return "int64"
    flags = argument.flags
    if not (flags.c_contiguous and flags.aligned and argument.dtype.isnative and argument.ndim):
        raise ValueError(
            "a loop takes aligned, row-major arrays in this machine's byte order, got "
            f"{argument.dtype.str} of shape {argument.shape}, strides {argument.strides}, "
            f"aligned: {flags.aligned}"
        )
    return f"{_name_of(argument.dtype)}[{':, ' * (argument.ndim - 1)}::1]"


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    return dtype.name  # put together anew each time it is asked for


def _words(argument: Argument) -> list[tuple[Any, Any]]:
    """An argument as what is passed, each with its type in C."""
    if isinstance(argument, tuple):
        return [word for part in argument for word in _words(part)]
    if not isinstance(argument, np.ndarray):
        return [(ctypes.c_int64, int(argument))]
    return [
        (ctypes.c_void_p, None),
        (ctypes.c_void_p, None),
        (ctypes.c_int64, argument.size),
        (ctypes.c_int64, argument.itemsize),
        (ctypes.c_void_p, argument.ctypes.data),
        *((ctypes.c_int64, each) for each in (*argument.shape, *argument.strides)),
    ]


@cache
def _depends_on() -> list[str]:
    """All else that the machine code depends on: the loops, who compiles them, and for what."""
    from llvmlite import binding

    loops = sorted((Path(__file__).parent / "kernels" / "loops").glob("*.py"))
    text = hashlib.sha256(b"\0".join(path.read_bytes() for path in loops)).hexdigest()
    compilers = [version("numba"), version("llvmlite")]
    told = json.dumps(sorted(each for each in os.environ.items() if each[0].startswith("NUMBA_")))
    cpu = [binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()]
    return [text, *compilers, told, binding.get_default_triple(), *cpu]


def _compile(module: str, name: str, signature: str) -> bytes:
    """An object file that holds the loop, for this machine."""
    from llvmlite import binding
    from numba.core.sigutils import normalize_signature

    loop = getattr(import_module(f"quantkit.kernels.loops.{module}"), name)
    if not hasattr(loop, "compile"):
        raise UsageError("NUMBA_DISABLE_JIT is set, and there are loops to compile: unset it")
    types, _ = normalize_signature(signature)
    loop.compile(types)
    made = loop.overloads[types]
    code = binding.parse_assembly(made.library.get_llvm_str())
    code.get_function(made.fndesc.llvm_func_name).name = _SYMBOL
    return bytes(_machine().emit_object(code))


def _machine() -> Any:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="jitdefault",
        jit=True,
    )


def _load(code: bytes, kinds: list[Any]) -> Callable[..., int]:
    from llvmlite import binding

    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *kinds)
    _engines.append(engine)
    return kind(engine.get_function_address(_SYMBOL))
