"""The few globals a state dict's pickle needs, and what they would have made.

torch writes a tensor as a call of ``_rebuild_tensor_v2`` (torch/_utils.py) on a
storage, which is a persistent id (torch/serialization.py). Here a call yields a
description; torch itself is not asked.

Left out: ``_rebuild_tensor_v3`` and ``UntypedStorage``, which torch writes for the
data types without a storage class of their own (uint16, float8); quantkit does not
read those types. Quantized, sparse and subclassed tensors come by other globals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from quantkit.checkpoint.layout import is_count, is_counts, is_shape
from quantkit.checkpoint.names import quoted

#: Raises the error of the file being read, with the problem it is given.
Fail = Callable[[str], NoReturn]


@dataclass(frozen=True)
class Global:
    """A name that an unpickler would import."""

    module: str
    name: str


@dataclass(frozen=True)
class StorageRef:
    """A persistent id: ``numel`` elements in the archive's member ``data/KEY``."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage; ``offset`` and ``stride`` count elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class OrderedDictRef(dict[str, object]):
    """Stands for a collections.OrderedDict, which may get attributes by BUILD."""


_ORDERED_DICT = Global("collections", "OrderedDict")
_REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")

#: torch's storage classes and the data types they stand for.
_STORAGES: dict[Global, str] = {
    Global("torch", "DoubleStorage"): "float64",
    Global("torch", "FloatStorage"): "float32",
    Global("torch", "HalfStorage"): "float16",
    Global("torch", "BFloat16Storage"): "bfloat16",
    Global("torch", "LongStorage"): "int64",
    Global("torch", "IntStorage"): "int32",
    Global("torch", "ShortStorage"): "int16",
    Global("torch", "CharStorage"): "int8",
    Global("torch", "ByteStorage"): "uint8",
    Global("torch", "BoolStorage"): "bool",
}

#: Everything that a pickle may name.
ALLOWED = frozenset([_ORDERED_DICT, _REBUILD_TENSOR, _REBUILD_PARAMETER, *_STORAGES])


def describe_call(function: Global, arguments: tuple[object, ...], fail: Fail) -> object:
    """What ``function(*arguments)`` would make."""
    if function == _REBUILD_TENSOR:
        return _describe_tensor(arguments, fail)
    if function == _REBUILD_PARAMETER:
        return _describe_parameter(arguments, fail)
    if function == _ORDERED_DICT and not arguments:
        return OrderedDictRef()
    return fail(f"expected no call of {quoted(function.name)} with {len(arguments)} arguments")


def describe_storage(persistent_id: object, fail: Fail) -> StorageRef:
    """The storage of ``('storage', class, key, location, numel)``."""
    match persistent_id:
        case ("storage", Global() as kind, str(key), str(), numel) if kind in _STORAGES:
            if not is_count(numel):
                fail(f"expected storage {quoted(key)} to have a size >= 0")
            return StorageRef(_STORAGES[kind], key, numel)
        case _:
            return fail("expected persistent ids of torch storages, got another kind")


def _describe_tensor(arguments: tuple[object, ...], fail: Fail) -> TensorRef:
    """(storage, offset, size, stride, requires_grad, hooks[, metadata])."""
    match arguments:
        case (StorageRef() as storage, offset, tuple(shape), tuple(stride), bool(), *extras):
            pass
        case _:
            return fail("expected the arguments of torch's _rebuild_tensor_v2, got others")
    # Metadata can say "negate" or "conjugate": the bytes would not be the values.
    if len(extras) not in (1, 2) or any(extras):
        fail("expected tensors without hooks and metadata")
    if not (is_count(offset) and is_shape(shape)):
        fail("expected a tensor's offset and shape to be counts >= 0")
    if len(stride) != len(shape) or not is_counts(stride):
        fail("expected one stride >= 0 for each dimension of a tensor")
    return TensorRef(storage, offset, shape, stride)


def _describe_parameter(arguments: tuple[object, ...], fail: Fail) -> TensorRef:
    """(tensor, requires_grad, hooks)."""
    match arguments:
        case (TensorRef() as tensor, bool(), hooks) if not hooks:
            return tensor
        case _:
            return fail("expected the arguments of torch's _rebuild_parameter, got others")
