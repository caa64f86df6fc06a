"""The safetensors header: what is read, and every way it can be broken."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quantkit.checkpoint.safetensors_header import MAX_HEADER_BYTES, read_safetensors_header
from quantkit.errors import CheckpointError
from quantkit.types import ITEM_BYTES


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file of any header (bytes as they are, else JSON) and any stated length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    stated = len(raw) if length is None else length
    path.write_bytes(stated.to_bytes(8, "little") + raw + data)
    return path


def entry(begin: object, end: object, shape: object = (1,), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        read_safetensors_header(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_every_dtype_and_shape_is_placed(path: Path) -> None:
    tensors = {f"t.{name}": torch.ones((2, 3), dtype=getattr(torch, name)) for name in ITEM_BYTES}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 4)}
    save_file(tensors, path, metadata={"format": "pt"})
    records = read_safetensors_header(path)
    assert {r.name for r in records} == set(tensors)
    content = path.read_bytes()
    for record in records:
        tensor = tensors[record.name]
        assert record.dtype == str(tensor.dtype).removeprefix("torch.")
        assert record.shape == tuple(tensor.shape)
        assert record.stride is None
        assert record.file == path.name
        raw = content[record.offset : record.offset + record.nbytes]
        assert raw == bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def test_no_metadata_and_no_tensors(path: Path) -> None:
    assert read_safetensors_header(write(path, {})) == []


def test_padding_spaces_are_part_of_the_header(path: Path) -> None:
    raw = json.dumps({"a": entry(0, 4)}).encode() + b"   "
    (record,) = read_safetensors_header(write(path, raw, bytes(4)))
    assert record.offset == 8 + len(raw)


def test_order_of_keys_is_free(path: Path) -> None:
    write(path, {"full": entry(0, 4), "empty": entry(0, 0, shape=(0,))}, bytes(4))
    assert [record.name for record in read_safetensors_header(path)] == ["empty", "full"]
    write(path, {"second": entry(4, 8), "first": entry(0, 4)}, bytes(8))
    records = read_safetensors_header(path)
    assert [record.name for record in records] == ["first", "second"]


def test_file_shorter_than_its_length_field(path: Path) -> None:
    path.write_bytes(b"\x10\0\0")
    refused(path, "at least 8 bytes, got 3")


@pytest.mark.parametrize("length", [3, 100, MAX_HEADER_BYTES + 1, 2**64 - 1])
def test_header_length_beyond_the_file(path: Path, length: int) -> None:
    refused(
        write(path, b"{}", length=length), f"at most 2 bytes, its length says {length};.* again$"
    )


def test_header_over_the_formats_limit(path: Path) -> None:
    write(path, b"{}", length=MAX_HEADER_BYTES + 1)
    with path.open("r+b") as stream:
        stream.truncate(MAX_HEADER_BYTES + 100)  # sparse
    refused(path, f"at most {MAX_HEADER_BYTES} bytes")


def test_git_lfs_pointer_is_named(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    refused(path, "git lfs pull")


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "begin with"),
        (b" {}", "begin with"),
        (b"\xef\xbb\xbf{}", "begin with"),
        (b"[]", "begin with"),
        (b"{", "JSON object"),
        (b"{} x", "JSON object"),
        (b'{"a\xff": 1}', "JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "JSON object"),
    ],
)
def test_broken_json(path: Path, raw: bytes, match: str) -> None:
    refused(write(path, raw), match)


def test_duplicate_names(path: Path) -> None:
    one = json.dumps(entry(0, 4))
    raw = f'{{"w": {one}, "w": {one}}}'.encode()
    refused(write(path, raw, bytes(4)), "the key 'w' appears twice")


def test_duplicate_keys_within_a_tensor(path: Path) -> None:
    raw = b'{"w": {"dtype": "F32", "dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}'
    refused(write(path, raw, bytes(4)), "the key 'dtype' appears twice")


@pytest.mark.parametrize(
    "dtype", ["F8_E4M3", "F8_E5M2", "U16", "U64", "C64", "f32", "", 5, None, []]
)
def test_other_dtypes_are_refused_by_name(path: Path, dtype: object) -> None:
    shown = repr(dtype) if isinstance(dtype, str) else f"a {type(dtype).__name__}"
    write(path, {"w": entry(0, 4, dtype=dtype)}, bytes(4))
    refused(path, f"tensor 'w': expected a dtype .* got {shown}")


@pytest.mark.parametrize(
    "shape", [[-1], [1.0], [True], ["1"], [2**63], [2**32, 2**32], [1] * 65, 1, None, {}]
)
def test_impossible_shapes(path: Path, shape: object) -> None:
    refused(write(path, {"w": entry(0, 4, shape=shape)}, bytes(4)), "'w': expected shape")


@pytest.mark.parametrize(
    "offsets", [[-4, 0], [0], [0, 4, 8], [0.0, 4.0], [False, 4], ["0", "4"], None, {}, [0, 2**63]]
)
def test_impossible_offsets(path: Path, offsets: object) -> None:
    header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}
    refused(write(path, header, bytes(4)), "'w': expected data_offsets to be two")


def test_offsets_that_fall(path: Path) -> None:
    refused(write(path, {"w": entry(4, 0)}, bytes(4)), "to rise")


def test_size_that_is_not_the_shapes(path: Path) -> None:
    refused(write(path, {"w": entry(0, 8)}, bytes(8)), "expected 4 bytes .* span 8")


@pytest.mark.parametrize(
    ("second", "match"),
    [((2, 6), "'b' overlaps"), ((0, 4), "'b' overlaps"), ((5, 9), "'b' leaves a")],
)
def test_overlaps_and_gaps(path: Path, second: tuple[int, int], match: str) -> None:
    write(path, {"a": entry(0, 4), "b": entry(*second)}, bytes(16))
    refused(path, match)


def test_gap_before_the_first_tensor(path: Path) -> None:
    refused(write(path, {"a": entry(4, 8)}, bytes(8)), "leaves a gap")


def test_truncated_and_trailing(path: Path) -> None:
    refused(write(path, {"a": entry(0, 4)}, bytes(3)), "the data is truncated")
    refused(write(path, {"a": entry(0, 4)}, bytes(5)), "followed by bytes of no tensor")
    refused(write(path, {}, b"x"), "followed by bytes of no tensor")


@pytest.mark.parametrize(
    "value", [5, [], {"dtype": "F32", "shape": [1]}, entry(0, 4) | {"scale": 2}]
)
def test_entries_of_another_form(path: Path, value: object) -> None:
    refused(write(path, {"w": value}, bytes(4)), "exactly the keys")


@pytest.mark.parametrize("metadata", [[], "x", {"format": 5}, {"format": None}])
def test_metadata_of_another_form(path: Path, metadata: object) -> None:
    refused(write(path, {"__metadata__": metadata}), "__metadata__")


@pytest.mark.parametrize("name", ["", "w" * 1025, "\ud800"])
def test_impossible_names(path: Path, name: str) -> None:
    refused(write(path, {name: entry(0, 4)}, bytes(4)), "tensor names")


def test_names_cannot_break_the_line(path: Path) -> None:
    refused(write(path, {"a\nb\x1b[31m": entry(0, 8)}, bytes(8)), r"a\\nb\\x1b")


@pytest.mark.parametrize("seed", range(8))
def test_any_flipped_byte_is_refused_or_harmless(path: Path, seed: int) -> None:
    """A damaged header never ends in anything but records inside the file, or the error."""
    rng = random.Random(seed)
    save_file({f"w{i}": torch.rand(3, i + 1) for i in range(4)}, path, metadata={"format": "pt"})
    sound = path.read_bytes()
    header_end = 8 + int.from_bytes(sound[:8], "little")
    for _ in range(200):
        damaged = bytearray(sound)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(header_end)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            records = read_safetensors_header(path)
        except CheckpointError:
            continue
        assert sum(r.nbytes for r in records) == len(sound) - min(r.offset for r in records)
