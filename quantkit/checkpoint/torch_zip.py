"""The zip around a torch ``.bin``: where each stored member's bytes lie.

``torch.save`` (since 1.6) writes a zip whose members are stored, not compressed:
``NAME/data.pkl``, ``NAME/data/0`` ..., ``NAME/version``, since 2.1 ``NAME/byteorder``;
any NAME. The central directory is read with :mod:`zipfile`. A member's bytes begin
after its local header (APPNOTE.TXT 4.3.7): 30 bytes, the name and an extra field
whose lengths stand at 26 and 28; torch aligns data by padding that extra field, so
that only the local header tells the place.

Readers disagree about a zip whose parts disagree: some go by local headers, some by the
directory, some stop at a flag or a checksum where others read on. Scanners were bypassed
that way (CVE-2025-1944, CVE-2025-1945). So both must say the same here, no bytes may lie
between members, and a member that torch.save never writes is refused (CVE-2025-1889).
"""

from __future__ import annotations

import os
import re
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

#: Longest ``data.pkl`` accepted, in bytes: room for some 50,000 tensors.
MAX_PICKLE_BYTES = 16 * 2**20

#: Longest central directory accepted, in bytes: room for some 150,000 members.
MAX_DIRECTORY_BYTES = 16 * 2**20

_AGAIN = "the file is damaged, fetch it again"
_RESAVE = "load it where you trust it and save it again with a current torch"

_LOCAL_HEADER_BYTES = 30
_LOCAL_MAGIC = b"PK\x03\x04"
_END_RECORD_BYTES = 22
_END_MAGIC = b"PK\x05\x06"
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_DESCRIPTOR = 0x8
_UTF8_NAME = 0x800
#: Flags that do not change a stored member's bytes: a descriptor follows it, its name is UTF-8.
_HARMLESS = _DESCRIPTOR | _UTF8_NAME
#: The longest descriptor: signature, CRC-32, and two sizes of 64 bits (APPNOTE.TXT 4.3.9).
_DESCRIPTOR_BYTES = 24
_ZIP64 = 0xFFFFFFFF

#: What torch.save writes, below NAME/.
_MEMBERS = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
    r"|data/[A-Za-z0-9_-]{1,64}"
)

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
    _check_members(members, prefix, path)
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
    _check_spans([*spans, directory], path)
    return members


def _check_spans(spans: list[tuple[int, int]], path: Path) -> None:
    """One after another from the file's first byte, with room for descriptors only."""
    if overlaps(spans):
        raise CheckpointError(
            f"{path}: expected zip members one after another, they overlap; {_AGAIN}"
        )
    reached = 0
    for begin, end in sorted(spans):
        if begin - reached > (_DESCRIPTOR_BYTES if reached else 0):
            raise CheckpointError(
                f"{path}: expected zip members one after another, bytes {reached} to {begin} are "
                "no member's: what is hidden there another reader may find; do not use the file"
            )
        reached = end


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
    length = _directory_bytes(stream.fileno(), tail, size)
    if length > MAX_DIRECTORY_BYTES:
        raise CheckpointError(
            f"{path}: expected a zip directory of at most {MAX_DIRECTORY_BYTES} bytes, got "
            f"{length}; save the tensors in several files"
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


def _directory_bytes(fd: int, tail: bytes, size: int) -> int:
    """The length that the end record states, or the zip64 record before it (4.3.14)."""
    (stated,) = struct.unpack_from("<I", tail, 12)
    record = os.pread(fd, 56, max(0, size - _END_RECORD_BYTES - 20 - 56))
    if record.startswith(b"PK\x06\x06") and len(record) == 56:
        (stated,) = struct.unpack_from("<Q", record, 40)
    return int(stated)


def _locate(fd: int, info: zipfile.ZipInfo, where: str) -> StoredMember:
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise CheckpointError(
            f"{where}: expected it stored as torch.save does, it is compressed; {_RESAVE}"
        )
    if info.flag_bits & _ENCRYPTED:
        raise CheckpointError(f"{where}: expected plain bytes, it is encrypted; {_RESAVE}")
    if info.flag_bits & ~_HARMLESS:
        raise CheckpointError(
            f"{where}: expected no flags of zip, got {info.flag_bits:#x}; {_AGAIN}"
        )
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
    _check_local(header, info, where)
    offset = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    return StoredMember(offset, info.file_size, info.CRC)


def _check_local(header: bytes, info: zipfile.ZipInfo, where: str) -> None:
    """The local header agrees with the directory about all that changes how bytes are read."""
    flags, method = struct.unpack_from("<HH", header, 6)
    crc, packed, size = struct.unpack_from("<III", header, 14)
    if flags & ~_HARMLESS or method != zipfile.ZIP_STORED:
        raise CheckpointError(
            f"{where}: expected plain stored bytes, its local header says flags {flags:#x}, "
            f"method {method}; {_AGAIN}"
        )
    if flags & _DESCRIPTOR and not (crc or packed or size):
        return  # CRC and sizes follow the member
    if crc != info.CRC or any(each not in (info.file_size, _ZIP64) for each in (packed, size)):
        raise CheckpointError(
            f"{where}: expected the sizes and the CRC-32 of the directory in its local header, got "
            f"others; {_AGAIN}"
        )


def _find_prefix(members: dict[str, StoredMember], path: Path) -> str:
    """``NAME/`` of the one ``NAME/data.pkl``."""
    found = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise CheckpointError(
            f"{path}: expected one NAME/data.pkl in the zip, got {len(found)} "
            f"among {len(members)} members; this is no file made by torch.save"
        )
    return found[0].removesuffix("data.pkl")


def _check_members(members: Mapping[str, StoredMember], prefix: str, path: Path) -> None:
    for name in members:
        if not (name.startswith(prefix) and _MEMBERS.fullmatch(name.removeprefix(prefix))):
            raise CheckpointError(
                f"{path}: zip member {quoted(name)}: torch.save writes none of that name; what it "
                "is for, only its author knows: save the tensors again without it"
            )


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
    found = zlib.crc32(content)
    if found != member.crc and member.crc == 0:  # torch.serialization.set_crc32_options(False)
        raise CheckpointError(
            f"{path}: expected the CRC-32 of data.pkl, got 0: saved without checksums, which other "
            f"readers of zips take for damage; {_RESAVE}"
        )
    if found != member.crc:
        raise CheckpointError(
            f"{path}: expected CRC-32 {member.crc:08x} of data.pkl, got {found:08x}; {_AGAIN}"
        )
    return content
