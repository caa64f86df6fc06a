"""Builds pickles opcode by opcode, and reads them with an ear on Python's audit events."""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path

import pytest

from quantkit.checkpoint.torch_pickle import read_torch_index
from quantkit.errors import CheckpointError
from quantkit.types import TensorRecord

PROTO = b"\x80\x02"
ORDERED = b"ccollections\nOrderedDict\n)R"

#: Audit events that mean "code of the file's choosing ran or was about to".
ALARMS = ("pickle.find_class", "os.system", "os.exec", "subprocess.Popen")
_heard: list[str] | None = None


def _listen(event: str, _: object) -> None:
    if _heard is not None and event in ALARMS:
        _heard.append(event)


sys.addaudithook(_listen)  # cannot be removed, hence the switch


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def counts(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(key: str = "0", numel: int = 6, kind: bytes = b"FloatStorage") -> bytes:
    head = b"(" + text("storage") + b"ctorch\n" + kind + b"\n"
    return head + text(key) + text("cpu") + integer(numel) + b"tQ"


def tensor(
    source: bytes | None = None,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    tail: bytes = b"\x89" + ORDERED,
) -> bytes:
    head = b"ctorch._utils\n_rebuild_tensor_v2\n(" + (source or storage())
    return head + integer(offset) + counts(shape) + counts(stride) + tail + b"tR"


def state(value: bytes, name: str = "w") -> bytes:
    return PROTO + b"}" + text(name) + value + b"s."


def write(path: Path, data: bytes, storage_bytes: int = 24) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", bytes(storage_bytes))
    return path


def read(path: Path) -> list[TensorRecord]:
    """The records, after making sure that no alarm was heard."""
    global _heard
    _heard = []
    try:
        return read_torch_index(path)
    finally:
        heard, _heard = _heard, None
        assert heard == []


def refused(path: Path, match: str, kind: type[CheckpointError] = CheckpointError) -> None:
    with pytest.raises(kind, match=match) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    assert len(message) < 1000
