"""The zip around a torch ``.bin``: where each stored member's bytes lie.

``torch.save`` (since 1.6) writes a zip whose members are stored, not compressed:
``NAME/data.pkl``, ``NAME/data/0`` ..., ``NAME/version``, since 2.1 ``NAME/byteorder``;
any NAME. The central directory is read with :mod:`zipfile`. A member's bytes begin
after its local header (APPNOTE.TXT 4.3.7): 30 bytes, the name and an extra field
whose lengths stand at 26 and 28; torch aligns data by padding that extra field, so
that only the local header tells the place.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from quantkit.checkpoint.layout import overlaps
from quantkit.checkpoint.names import quoted
from quantkit.checkpoint.reading import read_bytes
from quantkit.errors import CheckpointError

#: Longest ``data.pkl`` accepted, in bytes: room for some 200,000 tensors.
MAX_PICKLE_BYTES = 64 * 2**20

_AGAIN = "the file is damaged, fetch it again"
_RESAVE = "load it where you trust it and save it again with a current torch"

_LOCAL_HEADER_BYTES = 30
_LOCAL_MAGIC = b"PK\x03\x04"
_END_RECORD_BYTES = 22
_END_MAGIC = b"PK\x05\x06"
_ENCRYPTED = 0x1
_UTF8_NAME = 0x800

#: How files that are no zip begin. The first is torch's old magic number
#: 0x1950a86a20f9469cfc6c, pickled (torch/serialization.py, MAGIC_NUMBER).
_OTHER_KINDS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", f"a torch file from before 1.6; {_RESAVE}"),
    (257, b"ustar", f"a tar, as torch wrote before 0.1.10; {_RESAVE}"),
    (0, b"version https://git-lfs", "a git-lfs pointer; run 'git lfs pull'"),
    (0, b"\x80", f"a bare pickle; {_RESAVE}"),
)


@dataclass(frozen=True)
class StoredMember:
    """One member's bytes: absolute position in the file, length, and CRC-32."""

    offset: int
    nbytes: int
    crc: int


@dataclass(frozen=True)
class TorchArchive:
    """``pickle`` is ``data.pkl``'s content, ``storages`` the ``data/KEY`` members by key."""

    pickle: bytes
    storages: Mapping[str, StoredMember]


def read_torch_archive(stream: BinaryIO, path: Path) -> TorchArchive:
    """The archive in ``stream``; ``path`` is for messages."""
    fd = stream.fileno()
    _check_kind(fd, path)
    members = _locate_members(stream, path)
    prefix = _find_prefix(members, path)
    _check_byteorder(fd, members.get(f"{prefix}byteorder"), path)
    folder = f"{prefix}data/"
    storages = {
        name.removeprefix(folder): member
        for name, member in members.items()
        if name.startswith(folder)
    }
    return TorchArchive(_read_pickle(fd, members[f"{prefix}data.pkl"], path), storages)


def _check_kind(fd: int, path: Path) -> None:
    head = os.pread(fd, 512, 0)
    if head.startswith(_LOCAL_MAGIC):
        return
    found = next(
        (kind for at, magic, kind in _OTHER_KINDS if head[at:].startswith(magic)),
        f"a file beginning with {head[:4]!r}; {_AGAIN}",
    )
    raise CheckpointError(f"{path}: expected a zip made by torch.save, got {found}")


def _locate_members(stream: BinaryIO, path: Path) -> dict[str, StoredMember]:
    infos, directory = _read_directory(stream, path)
    if any(info.filename.endswith("/constants.pkl") for info in infos):
        raise CheckpointError(
            f"{path}: expected a state dict, got a TorchScript program; "
            "save the model's state_dict() instead"
        )
    members: dict[str, StoredMember] = {}
    spans: list[tuple[int, int]] = []
    for info in infos:
        where = f"{path}: zip member {quoted(info.filename)}"
        if info.filename in members:
            raise CheckpointError(f"{where}: expected once, got twice; {_AGAIN}")
        member = _locate(stream.fileno(), info, where)
        members[info.filename] = member
        spans.append((info.header_offset, member.offset + member.nbytes))
    if overlaps([*spans, directory]):
        raise CheckpointError(
            f"{path}: expected zip members one after another, they overlap; {_AGAIN}"
        )
    return members


def _read_directory(stream: BinaryIO, path: Path) -> tuple[list[zipfile.ZipInfo], tuple[int, int]]:
    """The central directory's entries, and the bytes from its start to the file's end."""
    size = os.fstat(stream.fileno()).st_size
    tail = os.pread(stream.fileno(), _END_RECORD_BYTES, max(0, size - _END_RECORD_BYTES))
    # zipfile would search for the record before trailing bytes; torch writes none.
    if len(tail) != _END_RECORD_BYTES or not tail.startswith(_END_MAGIC) or tail[-2:] != b"\0\0":
        raise CheckpointError(
            f"{path}: expected the zip's end record in the last {_END_RECORD_BYTES} bytes, "
            "got none; the file is truncated or has trailing bytes, fetch it again"
        )
    try:
        archive = zipfile.ZipFile(stream)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        OSError,
        EOFError,
        OverflowError,
        struct.error,
    ) as error:
        raise CheckpointError(f"{path}: expected a readable zip, but {error}; {_AGAIN}") from None
    with archive:
        return archive.infolist(), (archive.start_dir or 0, size)


def _locate(fd: int, info: zipfile.ZipInfo, where: str) -> StoredMember:
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise CheckpointError(
            f"{where}: expected it stored as torch.save does, it is compressed; {_RESAVE}"
        )
    if info.flag_bits & _ENCRYPTED:
        raise CheckpointError(f"{where}: expected plain bytes, it is encrypted; {_RESAVE}")
    if info.header_offset < 0 or info.filename != info.orig_filename:
        raise CheckpointError(f"{where}: expected a plain name and place; {_AGAIN}")
    header = read_bytes(fd, info.header_offset, _LOCAL_HEADER_BYTES, where)
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    name = read_bytes(fd, info.header_offset + _LOCAL_HEADER_BYTES, name_bytes, where)
    # Readers that go by local headers must see the same members as this one.
    encoding = "utf-8" if info.flag_bits & _UTF8_NAME else "cp437"
    if not header.startswith(_LOCAL_MAGIC) or name != info.filename.encode(encoding):
        raise CheckpointError(
            f"{where}: expected a local header of that name at byte {info.header_offset}, "
            f"got another; {_AGAIN}"
        )
    offset = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    return StoredMember(offset, info.file_size, info.CRC)


def _find_prefix(members: dict[str, StoredMember], path: Path) -> str:
    """``NAME/`` of the one ``NAME/data.pkl``."""
    found = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise CheckpointError(
            f"{path}: expected one NAME/data.pkl in the zip, got {len(found)} "
            f"among {len(members)} members; this is no file made by torch.save"
        )
    return found[0].removesuffix("data.pkl")


def _check_byteorder(fd: int, member: StoredMember | None, path: Path) -> None:
    """Files from before torch 2.1 do not say; practically all are little-endian."""
    if member is None:
        return
    order = read_bytes(fd, member.offset, min(member.nbytes, 16), str(path))
    if order != b"little":
        raise CheckpointError(
            f"{path}: expected byteorder 'little', got {quoted(order.decode('latin-1'))}; {_RESAVE}"
        )


def _read_pickle(fd: int, member: StoredMember, path: Path) -> bytes:
    if member.nbytes > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path}: expected data.pkl of at most {MAX_PICKLE_BYTES} bytes, "
            f"got {member.nbytes}; tensors belong beside the pickle, not in it"
        )
    content = read_bytes(fd, member.offset, member.nbytes, str(path))
    if zlib.crc32(content) != member.crc:
        raise CheckpointError(
            f"{path}: expected CRC-32 {member.crc:08x} of data.pkl, "
            f"got {zlib.crc32(content):08x}; {_AGAIN}"
        )
    return content
