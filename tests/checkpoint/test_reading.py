"""Bytes by position, and the project's own models read whole."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit.checkpoint import open_checkpoint, read_tensor, reading, stream
from quantkit.checkpoint.reading import read_range
from quantkit.digests import StreamDigest
from quantkit.errors import CheckpointError
from quantkit.types import ITEM_BYTES, TensorRecord

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models"


@pytest.fixture
def bytes_file(tmp_path: Path) -> Path:
    path = tmp_path / "w"
    path.write_bytes(bytes(range(100)))
    return path


def record(**changes: object) -> TensorRecord:
    return replace(TensorRecord("t", "uint8", (4, 5), "w", 10, 20), **changes)


def test_read_range_loops_over_short_reads(
    bytes_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.preadv

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return whole(fd, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", short)
    buffer = bytearray(50)
    with bytes_file.open("rb") as stream:
        read_range(stream.fileno(), 20, memoryview(buffer))
    assert buffer == bytes(range(20, 70))


def test_read_range_stops_at_the_end(bytes_file: Path) -> None:
    with (
        bytes_file.open("rb") as stream,
        pytest.raises(
            CheckpointError, match="expected 50 bytes from byte 60, the file ends after 4"
        ),
    ):
        read_range(stream.fileno(), 60, memoryview(bytearray(50)))


def test_read_range_tells_io_errors() -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(CheckpointError, match="failed: Is a directory"):
            read_range(fd, 0, memoryview(bytearray(1)))
    finally:
        os.close(fd)


def test_read_range_of_nothing(bytes_file: Path) -> None:
    with bytes_file.open("rb") as stream:
        read_range(stream.fileno(), 500, memoryview(b""))


def test_contiguous_and_strided(bytes_file: Path) -> None:
    plain = read_tensor(bytes_file.parent, record())
    assert plain.tolist() == [[10 + 5 * r + c for c in range(5)] for r in range(4)]
    turned = read_tensor(bytes_file.parent, record(shape=(5, 4), stride=(1, 5)))
    assert turned.tolist() == plain.t().tolist()
    assert turned.is_contiguous()


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_empty_and_scalar(bytes_file: Path, dtype: str) -> None:
    empty = read_tensor(bytes_file.parent, record(dtype=dtype, shape=(0, 5), nbytes=0))
    assert (empty.shape, empty.dtype) == ((0, 5), getattr(torch, dtype))
    scalar = record(dtype=dtype, shape=(), offset=0, nbytes=ITEM_BYTES[dtype])
    assert read_tensor(bytes_file.parent, scalar).shape == ()


def test_file_truncated_since_it_was_opened(bytes_file: Path) -> None:
    os.truncate(bytes_file, 15)
    with pytest.raises(CheckpointError, match="'t': expected 20 bytes from byte 10"):
        read_tensor(bytes_file.parent, record())


@pytest.mark.parametrize(
    "changes", [{"nbytes": 19}, {"nbytes": 21}, {"stride": (5, 2)}, {"dtype": "float8_e4m3fn"}]
)
def test_records_that_disagree_with_themselves(bytes_file: Path, changes: dict) -> None:
    with pytest.raises(CheckpointError, match=r"w: tensor 't': expected a"):
        read_tensor(bytes_file.parent, record(**changes))


def test_bools_are_zero_or_one(bytes_file: Path) -> None:
    assert read_tensor(
        bytes_file.parent, record(dtype="bool", shape=(2,), offset=0, nbytes=2)
    ).tolist() == [False, True]
    with pytest.raises(CheckpointError, match="bool bytes"):
        read_tensor(bytes_file.parent, record(dtype="bool"))


def test_special_floats_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    tensors = {"half": bits.view(torch.float16), "bf16": bits.clone().view(torch.bfloat16)}
    save_file(tensors, tmp_path / "model.safetensors")
    records = open_checkpoint(tmp_path).tensors
    assert {each.name for each in records} == tensors.keys()
    for found in records:
        assert torch.equal(read_tensor(tmp_path, found).view(torch.int16), bits)


def test_the_tensor_owns_its_memory(bytes_file: Path) -> None:
    tensor = read_tensor(bytes_file.parent, record())
    bytes_file.write_bytes(bytes(100))
    assert tensor[0, 0] == 10
    tensor += 1
    assert bytes_file.read_bytes() == bytes(100)


def shared_model(name: str) -> Path:
    folder = MODELS / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the shared models are not part of the repository")
    return folder


def assert_equals(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    found = {r.name: read_tensor(folder, r) for r in open_checkpoint(folder).tensors}
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_mini_rinna_equals_torch_load() -> None:
    folder = shared_model("mini-rinna")
    assert_equals(folder, torch.load(folder / "pytorch_model.bin", weights_only=True))


def test_stories260k_equals_safetensors() -> None:
    folder = shared_model("stories260k")
    assert_equals(folder, load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_values_are_told_a_piece_at_a_time(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_PIECE", 64)
    base = torch.randn(7, 31, dtype=torch.float32).to(dtype)
    base[0, 0] = 0.0
    zero, last, nan = base.clone(), base.clone(), base.clone()
    zero[0, 0] = -0.0
    last[-1, -1] += 1
    nan[3, 3] = float("nan")
    other = base.double()
    tensors = {"base": base, "copy": base.clone(), "zero": zero, "last": last, "nan": nan,
               "double": other, "flat": base.reshape(-1).clone()}  # fmt: skip
    save_file(tensors, tmp_path / "model.safetensors")
    records = {each.name: each for each in open_checkpoint(tmp_path).tensors}
    equal = {
        name for name in tensors if reading.same_values(tmp_path, records["base"], records[name])
    }
    assert equal == {"base", "copy", "zero", "double"}
    assert not reading.same_values(tmp_path, records["nan"], records["nan"])


def test_equal_values_of_another_layout(tmp_path: Path) -> None:
    weight = torch.randn(6, 5)
    torch.save({"a": weight, "b": weight.T.contiguous().T}, tmp_path / "pytorch_model.bin")
    one, other = open_checkpoint(tmp_path).tensors
    assert one.stride != other.stride
    assert reading.same_values(tmp_path, one, other)


def test_of_what_must_be_held_whole_one_piece_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SEGMENT_BYTES", 10)
    usual, held, done = stream.read_range, [], []

    def read(*arguments: object) -> None:
        usual(*arguments)
        held.append(len(held) + 1 - len(done))

    def consume(segment: stream.Segment, data: memoryview) -> None:
        time.sleep(0.02)
        done.append(segment)

    monkeypatch.setattr(stream, "read_range", read)
    (tmp_path / "w").write_bytes(bytes(1000))
    records = [record(name=f"{at}", shape=(100,), offset=100 * at, nbytes=100) for at in range(10)]
    whole = stream.segments(records, 1000, lambda record: record.nbytes)
    stream.stream_file(tmp_path / "w", whole, StreamDigest(md5=False), consume=consume)
    assert len(held) == len(done) == 10
    assert max(held) <= 2


def test_tensors_are_read_again_in_the_order_in_which_a_file_is_read(tmp_path: Path) -> None:
    """So that the output, which is laid out in that order, is digested as it is written."""
    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    index = open_checkpoint(tmp_path)
    (own,) = index.tensors
    doubles = [replace(own, name=name) for name in "ba"]
    first = [each.tensor for each in stream.segments(doubles, index.file_bytes[own.file])]
    again: list[str | None] = []
    stream.stream_tensors(
        tmp_path, index, doubles,
        unit=stream.element_or_whole, consume=lambda segment, _: again.append(segment.tensor),
    )  # fmt: skip
    assert again == [each for each in first if each is not None] == ["a", "b"]
