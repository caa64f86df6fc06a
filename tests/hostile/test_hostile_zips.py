"""The zip around a .bin, damaged or made to attack."""

from __future__ import annotations

import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quantkit.checkpoint import torch_zip
from quantkit.checkpoint.reading import read_tensor
from quantkit.checkpoint.torch_pickle import read_torch_index
from quantkit.errors import CheckpointError

Edit = Callable[[dict[str, bytes]], None]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}, path)
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, members: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        read_torch_index(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def patch(path: Path, find: bytes, replace: bytes, last: bool = False) -> None:
    content = path.read_bytes()
    at = content.rfind(find) if last else content.find(find)
    assert at >= 0
    path.write_bytes(content[:at] + replace + content[at + len(find) :])


def central_entry(path: Path, name: str) -> int:
    """Position of the central directory's entry (46 bytes, then the name)."""
    return path.read_bytes().rfind(name.encode()) - 46


def poke(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)


def test_rewritten_by_another_tool_it_still_reads(sound: Path) -> None:
    expected = torch.load(sound, weights_only=True)
    rewrite(sound, members_of(sound))
    for record in read_torch_index(sound):
        assert torch.equal(read_tensor(sound.parent, record), expected[record.name])


def test_zip64_local_headers(sound: Path) -> None:
    expected, members = torch.load(sound, weights_only=True), members_of(sound)
    with zipfile.ZipFile(sound, "w") as archive:
        for name, content in members.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(content)
    for record in read_torch_index(sound):
        assert torch.equal(read_tensor(sound.parent, record), expected[record.name])


def test_storage_beyond_four_gib(tmp_path: Path) -> None:
    """Zip64 sizes and offsets, on a sparse file: 4 GiB of holes, a few kB of disk."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"big": torch.zeros(8, dtype=torch.uint8), "w": torch.arange(3.0)}, path)
    members, size = members_of(path), 2**32 + 4096
    pickle = members["pytorch_model/data.pkl"].replace(b"K\x08", b"\x8a\x05" + _le(size, 5))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle)
        archive.writestr("x/data/1", members["pytorch_model/data/1"])
        hole = zipfile.ZipInfo("x/data/0")
        hole.file_size = size
        with archive.open(hole, "w", force_zip64=True) as member:
            _skip(member, size)
        archive.writestr("x/version", "3")
    big, w = read_torch_index(path)
    assert (big.nbytes, big.shape) == (size, (size,))
    assert read_tensor(tmp_path, w).tolist() == [0, 1, 2]


def _le(value: int, length: int) -> bytes:
    return value.to_bytes(length, "little")


def _skip(member: object, size: int) -> None:
    """Grow a zip member being written by a hole, so that no 4 GiB are written."""
    member._fileobj.seek(size, os.SEEK_CUR)  # type: ignore[attr-defined]
    member._file_size = size  # type: ignore[attr-defined]


def test_compressed_members(sound: Path) -> None:
    rewrite(sound, members_of(sound), compression=zipfile.ZIP_DEFLATED)
    refused(sound, "it is compressed")


def test_stored_by_name_but_of_two_sizes(sound: Path) -> None:
    poke(sound, central_entry(sound, "pytorch_model/data/0") + 24, struct.pack("<I", 2**31))
    refused(sound, "it is compressed")


def test_encrypted_flag(sound: Path) -> None:
    poke(sound, central_entry(sound, "pytorch_model/data/0") + 8, b"\x01\x08")
    refused(sound, "it is encrypted")


@pytest.mark.parametrize("offset", [1, 2**31, 2**32 - 2])
def test_local_header_elsewhere(sound: Path, offset: int) -> None:
    poke(sound, central_entry(sound, "pytorch_model/data/0") + 42, struct.pack("<I", offset))
    refused(sound, "expected")


def test_sizes_beyond_the_file(sound: Path) -> None:
    at = central_entry(sound, "pytorch_model/data.pkl")
    poke(sound, at + 20, struct.pack("<II", 2**20, 2**20))
    refused(sound, "overlap")


def test_local_name_differs_from_the_directory(sound: Path) -> None:
    patch(sound, b"pytorch_model/data/0", b"pytorch_model/data/7")
    refused(sound, "expected a local header of that name")


def test_member_twice(sound: Path) -> None:
    patch(sound, b"pytorch_model/data/1", b"pytorch_model/data/0")
    patch(sound, b"pytorch_model/data/1", b"pytorch_model/data/0", last=True)
    refused(sound, "expected once, got twice")


def test_two_members_over_the_same_bytes(sound: Path) -> None:
    members = members_of(sound)
    inner = members.pop("pytorch_model/data/0")
    flags = struct.pack("<H", 8)  # its sizes follow it, says the header
    fake = (
        b"PK\x03\x04\0\0" + flags + bytes(18) + struct.pack("<HH", 20, 0) + b"pytorch_model/data/0"
    )
    rewrite(sound, members | {"pytorch_model/pad": fake + inner, "pytorch_model/data/0": inner})
    at = sound.read_bytes().find(fake)
    poke(sound, central_entry(sound, "pytorch_model/data/0") + 42, struct.pack("<I", at))
    refused(sound, "overlap")


@pytest.mark.parametrize(("at", "hidden"), [(0, b"PK\x03\x04" + bytes(20)), (2, bytes(25))])
def test_bytes_that_are_no_members(sound: Path, at: int, hidden: bytes) -> None:
    """Between members there is room for a descriptor, and before the first for nothing."""
    members = [*members_of(sound).items()]
    with zipfile.ZipFile(sound, "w") as archive:
        for place, (name, content) in enumerate(members):
            if place == at:
                assert archive.fp is not None
                archive.fp.write(hidden)
                archive.start_dir = archive.fp.tell()
            archive.writestr(name, content)
    refused(sound, "no member's")


def test_a_local_header_that_is_none(sound: Path) -> None:
    poke(sound, sound.read_bytes().find(b"pytorch_model/data/0") - 30, b"PK\x07\x08")
    refused(sound, "expected a local header of that name")


def test_a_name_beyond_ascii_without_the_flag_of_utf_8(sound: Path) -> None:
    rewrite(sound, members_of(sound))
    sound.write_bytes(sound.read_bytes().replace(b"pytorch_model/", b"mod\xc3\xa8le_autre/"))
    assert [each.name for each in read_torch_index(sound)] == ["w", "b"]


def test_a_name_beyond_ascii_with_the_flag_of_utf_8(sound: Path) -> None:
    members = members_of(sound)
    rewrite(sound, {n.replace("pytorch_model", "modèle"): each for n, each in members.items()})
    assert [each.name for each in read_torch_index(sound)] == ["w", "b"]


def test_the_directory_may_have_any_order(sound: Path) -> None:
    members = members_of(sound)
    with zipfile.ZipFile(sound, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.filelist.reverse()
    assert [each.name for each in read_torch_index(sound)] == ["w", "b"]


def test_a_name_that_some_readers_cut_short(sound: Path) -> None:
    """At the zero, as zipfile does: the directory names another member to the others."""
    rewrite(sound, members_of(sound))
    at = central_entry(sound, "pytorch_model/data/0")
    content = sound.read_bytes()
    (size,) = struct.unpack_from("<I", content, len(content) - 10)
    longer = content[: at + 66] + b"\0x" + content[at + 66 :]
    sound.write_bytes(longer)
    poke(sound, at + 28, struct.pack("<H", 22))
    poke(sound, len(longer) - 10, struct.pack("<I", size + 2))
    refused(sound, "expected a plain name and place")


@pytest.mark.parametrize(
    ("flags", "crc", "packed", "nbytes", "sound_one"),
    [
        (8, 0, 0, 0, True),  # they follow it
        (0, 0, 0, 0, False),
        (8, 1, 0, 0, False),
        (8, 0, 1, 0, False),
        (8, 0, 0, 1, False),
    ],
)
def test_what_a_local_header_leaves_to_a_descriptor(
    sound: Path, flags: int, crc: int, packed: int, nbytes: int, sound_one: bool
) -> None:
    rewrite(sound, members_of(sound))
    at = sound.read_bytes().find(b"pytorch_model/data/0") - 30
    poke(sound, at + 6, struct.pack("<H", flags))
    poke(sound, at + 14, struct.pack("<III", crc, packed, nbytes))
    if sound_one:
        assert [each.name for each in read_torch_index(sound)] == ["w", "b"]
    else:
        refused(sound, "sizes and the CRC-32 of the directory")


def test_a_directory_is_read_up_to_a_limit(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(sound, members_of(sound))
    content = sound.read_bytes()
    length = len(content) - 22 - content.find(b"PK\x01\x02")
    monkeypatch.setattr(torch_zip, "MAX_DIRECTORY_BYTES", length)
    assert len(read_torch_index(sound)) == 2
    monkeypatch.setattr(torch_zip, "MAX_DIRECTORY_BYTES", length - 1)
    refused(sound, f"a zip directory of at most {length - 1} bytes, got {length};")


def test_a_directory_of_64_bits_is_held_to_the_limit(sound: Path) -> None:
    """torch.save writes such a record before the plain one, which then says nothing."""
    content = sound.read_bytes()
    at = content.rfind(b"PK\x06\x06")
    assert at == len(content) - 22 - 20 - 56
    poke(sound, at + 40, struct.pack("<Q", 2**40))
    refused(sound, f"a zip directory of at most {16 * 2**20} bytes, got {2**40};")


def test_checksum_of_the_pickle(sound: Path) -> None:
    patch(sound, b"_rebuild_tensor_v2", b"_rebuild_tensor_v3")
    refused(sound, r"expected CRC-32 [0-9a-f]{8} of data\.pkl, got [0-9a-f]{8}; .*fetch it again")


def test_saved_without_checksums(tmp_path: Path) -> None:
    """It is not damaged, and to fetch it again would not help."""
    path = tmp_path / "pytorch_model.bin"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    refused(path, r"saved without checksums.*save it again")


def test_oversized_pickle(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_zip, "MAX_PICKLE_BYTES", 10)
    refused(sound, r"data\.pkl of at most 10 bytes")


def edited(change: str) -> Edit:
    def edit(members: dict[str, bytes]) -> None:
        match change:
            case "no-pickle":
                del members["pytorch_model/data.pkl"]
            case "two-pickles":
                members["other/data.pkl"] = members["pytorch_model/data.pkl"]
            case "big-endian":
                members["pytorch_model/byteorder"] = b"big"
            case "no-storage":
                del members["pytorch_model/data/0"]
            case "short-storage":
                members["pytorch_model/data/0"] = bytes(23)
            case "long-storage":
                members["pytorch_model/data/0"] = bytes(25)

    return edit


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("no-pickle", r"one NAME/data\.pkl in the zip, got 0"),
        ("two-pickles", r"one NAME/data\.pkl in the zip, got 2"),
        ("big-endian", "byteorder 'little', got 'big'"),
        ("no-storage", "storage '0': expected it in the zip"),
        ("short-storage", "expected 24 bytes for 6 of float32, the zip holds 23"),
        ("long-storage", "expected 24 bytes for 6 of float32, the zip holds 25"),
    ],
)
def test_members_changed(sound: Path, change: str, match: str) -> None:
    members = members_of(sound)
    edited(change)(members)
    refused(rewrite(sound, members), match)


def test_without_byteorder_as_before_torch_2_1(sound: Path) -> None:
    members = members_of(sound)
    del members["pytorch_model/byteorder"]
    assert len(read_torch_index(rewrite(sound, members))) == 2


@pytest.mark.parametrize("extra", [b"\0", b"PK\x05\x06", bytes(100)])
def test_trailing_bytes(sound: Path, extra: bytes) -> None:
    sound.write_bytes(sound.read_bytes() + extra)
    refused(sound, "trailing bytes")


def test_comment_and_prefix(sound: Path) -> None:
    content = sound.read_bytes()
    for comment in (b"\x03\0abc", b"\x03\0"):
        sound.write_bytes(content[:-2] + comment)
        refused(sound, "end record")
    sound.write_bytes(b"#!/bin/sh\n" + content)
    refused(sound, "beginning with b'#!/b'")


def test_truncated_anywhere(sound: Path) -> None:
    content = sound.read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        sound.write_bytes(content[:length])
        refused(sound, "expected")


@pytest.mark.parametrize("seed", range(5))
def test_any_damage_ends_in_the_error_or_in_bounds(sound: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = sound.read_bytes()
    directory = content.find(b"PK\x01\x02")
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            start = rng.choice([0, directory])  # half of the damage where it hurts
            damaged[rng.randrange(start, len(damaged))] = rng.randrange(256)
        sound.write_bytes(damaged)
        try:
            records = read_torch_index(sound)
        except CheckpointError:
            continue
        assert all(r.offset >= 0 and r.offset + r.nbytes <= len(content) for r in records)
