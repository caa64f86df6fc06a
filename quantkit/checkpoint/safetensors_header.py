"""The header of one ``.safetensors`` file, parsed by hand.

Format (https://github.com/huggingface/safetensors#format): 8 bytes, unsigned
little-endian, N; N bytes of UTF-8 JSON beginning with ``{`` and perhaps padded
with spaces; then the data. Each key is a tensor's name with ``dtype``, ``shape``
and ``data_offsets = [begin, end]`` in bytes from the start of the data;
``__metadata__`` maps strings to strings. Keys are unique, and the tensors cover
the data to the file's last byte without holes or overlap.

The order of the keys is free, as JSON objects have none: only the ranges count.
The safetensors library (0.8.0) accepts duplicate names; this parser does not.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

from quantkit.checkpoint.layout import is_counts, is_shape
from quantkit.checkpoint.names import check_tensor_name, quoted
from quantkit.checkpoint.reading import open_weights, read_bytes
from quantkit.checkpoint.strict_json import parse_object
from quantkit.errors import CheckpointError
from quantkit.types import ITEM_BYTES, TensorRecord

#: The longest header that is read, in bytes: room for 100,000 tensors. The format's own limit,
#: 100 MB, leaves room for JSON that takes gigabytes of memory.
MAX_HEADER_BYTES = 16 * 2**20

_LENGTH_BYTES = 8
_AGAIN = "the file is damaged, fetch it again"

_OTHER_KINDS = (
    (b"version", "a git-lfs pointer: run 'git lfs pull'"),
    (b"PK\x03\x04", "a zip, as torch.save writes: that is a .bin"),
    (b"\x80", "a pickle"),
    (b"GGUF", "a GGUF file"),
)

#: safetensors' names of the data types that quantkit reads.
DTYPES: dict[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors_header(path: Path) -> list[TensorRecord]:
    """Every tensor of the file by rising offset."""
    with open_weights(path) as stream:
        fd = stream.fileno()
        file_bytes = os.fstat(fd).st_size
        header = _read_header(fd, file_bytes, path)
    data_start = _LENGTH_BYTES + len(header)
    entries = parse_object(header, f"{path} (header)")
    _check_metadata(entries.pop("__metadata__", {}), path)
    records = [_parse_entry(name, entry, data_start, path) for name, entry in entries.items()]
    records.sort(key=lambda record: (record.offset, record.nbytes))
    _check_coverage(records, data_start, file_bytes, path)
    return records


def _read_header(fd: int, file_bytes: int, path: Path) -> bytes:
    if file_bytes < _LENGTH_BYTES:
        raise CheckpointError(
            f"{path}: expected at least {_LENGTH_BYTES} bytes, got {file_bytes}; {_AGAIN}"
        )
    length = int.from_bytes(read_bytes(fd, 0, _LENGTH_BYTES, str(path)), "little")
    room = min(file_bytes - _LENGTH_BYTES, MAX_HEADER_BYTES)
    if length > room:
        raise CheckpointError(
            f"{path}: expected a header of at most {room} bytes, its length says {length}; "
            f"the file is truncated or no safetensors file, fetch it again{_other_kind(fd)}"
        )
    header = read_bytes(fd, _LENGTH_BYTES, length, str(path))
    if not header.startswith(b"{"):
        raise CheckpointError(
            f"{path}: expected the header to begin with '{{', got {header[:1]!r}; {_AGAIN}"
        )
    return header


def _other_kind(fd: int) -> str:
    """A hint at what else it looks like: a git-lfs pointer, or another kind of file."""
    for magic, hint in _OTHER_KINDS:
        if os.pread(fd, len(magic), 0) == magic:
            return f" (it looks like {hint})"
    return ""


def _check_metadata(value: object, path: Path) -> None:
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path}: expected __metadata__ to be an object, got {quoted(value)}; {_AGAIN}"
        )
    for key, text in value.items():
        if not isinstance(text, str):
            raise CheckpointError(
                f"{path}: expected __metadata__ key {quoted(key)} to be a string, "
                f"got {quoted(text)}; {_AGAIN}"
            )


def _parse_entry(name: str, entry: object, data_start: int, path: Path) -> TensorRecord:
    name = check_tensor_name(name, str(path))
    where = f"{path}: tensor {quoted(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{where}: expected exactly the keys dtype, shape and data_offsets; {_AGAIN}"
        )
    dtype = _parse_dtype(entry["dtype"], where)
    shape = _parse_shape(entry["shape"], where)
    begin, end = _parse_offsets(entry["data_offsets"], where)
    expected = prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        raise CheckpointError(
            f"{where}: expected {expected} bytes for {dtype} of shape {list(shape)}, "
            f"data_offsets span {end - begin}; {_AGAIN}"
        )
    return TensorRecord(name, dtype, shape, path.name, data_start + begin, expected)


def _parse_dtype(value: object, where: str) -> str:
    dtype = DTYPES.get(value) if isinstance(value, str) else None
    if dtype is None:
        raise CheckpointError(
            f"{where}: expected a dtype among {', '.join(DTYPES)}, got {quoted(value)}; "
            "start from an unquantized release of the model"
        )
    return dtype


def _parse_shape(value: object, where: str) -> tuple[int, ...]:
    shape = tuple(value) if isinstance(value, list) else (None,)
    if not is_shape(shape):
        raise CheckpointError(
            f"{where}: expected shape to be a list of sizes that 64 bits can count; {_AGAIN}"
        )
    return shape


def _parse_offsets(value: object, where: str) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and is_counts(value)):
        raise CheckpointError(
            f"{where}: expected data_offsets to be two byte positions >= 0; {_AGAIN}"
        )
    begin, end = value
    if begin > end:
        raise CheckpointError(
            f"{where}: expected data_offsets to rise, got [{begin}, {end}]; {_AGAIN}"
        )
    return begin, end


def _check_coverage(
    records: list[TensorRecord], data_start: int, file_bytes: int, path: Path
) -> None:
    """``records``, sorted, cover everything from ``data_start`` to the file's end."""
    reached = data_start
    for record in records:
        if record.offset != reached:
            problem = "overlaps the tensor before it" if record.offset < reached else "leaves a gap"
            raise CheckpointError(
                f"{path}: tensor {quoted(record.name)} {problem}: expected it at byte {reached}, "
                f"data_offsets put it at {record.offset}; {_AGAIN}"
            )
        reached += record.nbytes
    if reached != file_bytes:
        problem = "truncated" if file_bytes < reached else "followed by bytes of no tensor"
        raise CheckpointError(
            f"{path}: the data is {problem}: expected a file of {reached} bytes by its header, "
            f"got {file_bytes}; fetch it again"
        )
