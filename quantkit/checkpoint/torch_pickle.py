"""The tensors of one torch ``.bin``: where they lie, without unpickling anything.

What is accepted: a dict (plain or ordered) of names to tensors or Parameters, as
``torch.save(model.state_dict(), ...)`` writes it. Also under the key ``_metadata``,
where some tools put what is an attribute of the ordered dict: a dict, ignored.
Anything else beside tensors (numbers, text, ``None``, dicts of dicts such as a
training checkpoint's) is refused with its key: to drop data of unknown meaning
silently is not this module's decision.

Storages may be shared (tied weights), views may be strided. torch writes each
storage whole, so a record covers only the byte range that its view touches.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from quantkit.checkpoint.layout import is_contiguous, touched_elements
from quantkit.checkpoint.names import check_tensor_name, quoted
from quantkit.checkpoint.pickle_machine import interpret
from quantkit.checkpoint.reading import open_weights
from quantkit.checkpoint.torch_globals import StorageRef, TensorRef
from quantkit.checkpoint.torch_zip import StoredMember, TorchArchive, read_torch_archive
from quantkit.errors import CheckpointError
from quantkit.types import ITEM_BYTES, TensorRecord

#: An expanded view (stride 0) claims more elements than are stored; reading it
#: makes them. Up to this many bytes that is a mask or a table, beyond it a bomb.
MAX_EXPANDED_BYTES = 64 * 2**20

_AGAIN = "the file is damaged, fetch it again"


def read_torch_index(path: Path) -> list[TensorRecord]:
    """Every tensor of the file, in the state dict's order."""
    with open_weights(path) as stream:
        archive = read_torch_archive(stream, path)
    found = interpret(archive.pickle, f"{path} (data.pkl)")
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path}: expected a dict of tensors, got {quoted(found)}; "
            "save the model's state_dict()"
        )
    tensors = {
        check_tensor_name(name, str(path)): _expect_tensor(name, value, path)
        for name, value in found.items()
        if not (name == "_metadata" and isinstance(value, dict))
    }
    _check_storages(tensors, archive, path)
    return [
        _make_record(name, tensor, archive.storages[tensor.storage.key], path)
        for name, tensor in tensors.items()
    ]


def _expect_tensor(name: str, value: object, path: Path) -> TensorRef:
    if isinstance(value, TensorRef):
        return value
    if isinstance(value, dict):
        problem = f"a dict (keys such as {quoted(next(iter(value), ''))}), so this may be a "
        problem += "training checkpoint; save the inner state dict alone"
    else:
        problem = f"a {type(value).__name__}; save the tensors without it"
    raise CheckpointError(f"{path}: expected a tensor under the key {quoted(name)}, got {problem}")


def _check_storages(tensors: Mapping[str, TensorRef], archive: TorchArchive, path: Path) -> None:
    """Each storage is a member of just its size, and all its views agree about it."""
    seen: dict[str, StorageRef] = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        where = f"{path}: tensor {quoted(name)}: storage {quoted(storage.key)}"
        if seen.setdefault(storage.key, storage) != storage:
            raise CheckpointError(
                f"{where}: expected one dtype and size for all its views, got two; {_AGAIN}"
            )
        member = archive.storages.get(storage.key)
        if member is None:
            raise CheckpointError(
                f"{where}: expected it in the zip's data folder, got none; {_AGAIN}"
            )
        expected = storage.numel * ITEM_BYTES[storage.dtype]
        if member.nbytes != expected:
            raise CheckpointError(
                f"{where}: expected {expected} bytes for {storage.numel} of {storage.dtype}, "
                f"the zip holds {member.nbytes}; {_AGAIN}"
            )


def _make_record(name: str, tensor: TensorRef, member: StoredMember, path: Path) -> TensorRecord:
    storage = tensor.storage
    item = ITEM_BYTES[storage.dtype]
    touched = touched_elements(tensor.shape, tensor.stride)
    where = f"{path}: tensor {quoted(name)}"
    # Slicing past the end leaves an empty view with an offset outside its storage.
    start = tensor.offset if touched else 0
    if start + touched > storage.numel:
        raise CheckpointError(
            f"{where}: expected elements within its storage of {storage.numel}, "
            f"got {start} to {start + touched}; {_AGAIN}"
        )
    elements = prod(tensor.shape)
    if elements > storage.numel and elements * item > MAX_EXPANDED_BYTES:
        raise CheckpointError(
            f"{where}: expected at most {MAX_EXPANDED_BYTES} bytes of an expanded view, "
            f"got {elements * item} from a storage of {member.nbytes}; "
            "save the tensor contiguous"
        )
    return TensorRecord(
        name=name,
        dtype=storage.dtype,
        shape=tensor.shape,
        file=path.name,
        offset=member.offset + start * item,
        nbytes=touched * item,
        stride=None if is_contiguous(tensor.shape, tensor.stride) else tensor.stride,
    )
