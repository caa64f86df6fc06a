"""Output files: laid out as they are made, digested and taken by the disk while they grow."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import threading
import time
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CONFIGS, source_state, write_source

import quantkit
from quantkit import execution
from quantkit.checkpoint import shards, writing
from quantkit.checkpoint.safetensors_header import read_safetensors_header
from quantkit.checkpoint.shards import ShardWriter, layout
from quantkit.checkpoint.writing import WriteQueue
from quantkit.digests import RunningDigest, digest_file
from quantkit.errors import StorageError
from quantkit.types import ITEM_BYTES, OutputTensor


def parts(size: int, draw: random.Random) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        length = min(draw.choice([1, 7, 100, 1000]), size - at)
        yield at, length
        at += length


# a digest that runs along


@pytest.mark.parametrize("seed", range(20))
def test_parts_in_any_order_give_the_files_digest(seed: int) -> None:
    draw = random.Random(seed)
    data = draw.randbytes(10_000)
    first = draw.choice([0, 1, 333])
    pieces = list(parts(len(data) - first, draw))
    draw.shuffle(pieces)
    digest = RunningDigest(data[:first])
    for at, length in pieces:
        digest.feed(first + at, memoryview(data)[first + at : first + at + length])
        digest.feed(first + at, memoryview(b""))  # a tensor of no elements lies at the next one's
    assert digest.result(len(data)) == hashlib.sha256(data).hexdigest()


def test_what_waits_is_bounded_and_its_room_comes_back() -> None:
    data = bytes(range(200))
    digest = RunningDigest(b"", waiting=50)
    for start in range(0, 200, 100):  # the latter half of each before the former
        digest.feed(start + 50, memoryview(data)[start + 50 : start + 100])
        digest.feed(start, memoryview(data)[start : start + 50])
    assert digest.result(200) == hashlib.sha256(data).hexdigest()
    digest = RunningDigest(b"", waiting=49)
    digest.feed(50, memoryview(data)[50:100])
    digest.feed(0, memoryview(data)[:50])
    digest.feed(50, memoryview(data)[50:100])
    assert digest.result(100) is None


def test_what_waited_is_let_go_when_the_digest_is_lost() -> None:
    digest, part = RunningDigest(b"", waiting=50), np.zeros(50, np.uint8)
    digest.feed(50, part.data)
    gone = weakref.ref(part)
    del part
    assert gone() is not None
    digest.feed(100, memoryview(bytes(1)))  # no room
    assert gone() is None


@pytest.mark.parametrize(
    "fed",
    [
        [(0, 10), (20, 10)],  # a gap
        [(0, 10), (0, 10), (10, 20)],  # written again when it was digested
        [(10, 10), (10, 10), (0, 10), (20, 10)],  # and while it waits
        [(10, 20), (15, 5), (0, 10)],  # one over the other
        [(0, 10), (10, 10)],  # too short
        [(0, 10), (10, 20), (30, 1)],  # too long
        [],
    ],
)
def test_without_each_byte_once_there_is_no_digest(fed: list[tuple[int, int]]) -> None:
    digest = RunningDigest(b"")
    for offset, length in fed:
        digest.feed(offset, memoryview(bytes(length)))
    assert digest.result(30) is None


# one file


def tensors(draw: random.Random, count: int, *, even: bool) -> list[OutputTensor]:
    found = []
    for at in range(count):
        dtype = draw.choice(["float32", "float16", "bfloat16", "int8", "uint8"])
        length = 8 * draw.randrange(1, 40) if even else draw.randrange(40)
        found.append(OutputTensor(f"t{at}", dtype, (length,), length * ITEM_BYTES[dtype]))
    return found


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_every_tensor_is_aligned_and_the_digest_is_the_files(
    seed: int, even: bool, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    made = tensors(draw, 30, even=even)
    (shard,) = layout([[each] for each in made], 1 << 40)
    if even:  # as they are made, so that nothing waits
        assert [each.name for each in shard.tensors] == [each.name for each in made]
    writer = ShardWriter(tmp_path, shard)
    wanted = {}
    for each in made:
        wanted[each.name] = draw.randbytes(each.nbytes)
        for give in (writer.write, writer.digest):
            give(each.name, 0, np.frombuffer(wanted[each.name], np.uint8))
    found = writer.finish()
    writer.close()
    path = tmp_path / shard.name
    assert found == digest_file(path).sha256
    whole = path.read_bytes()
    for record in read_safetensors_header(path):
        assert record.offset % ITEM_BYTES[record.dtype] == 0
        assert whole[record.offset : record.offset + record.nbytes] == wanted[record.name]


def test_a_shard_may_be_as_large_as_the_limit_and_two_have_an_index(tmp_path: Path) -> None:
    a, b, c = (OutputTensor(each, "float32", (8,), 32) for each in "abc")
    assert [len(each.tensors) for each in layout([[a], [b], [c]], 96)] == [3]
    assert [len(each.tensors) for each in layout([[a], [b], [c]], 95)] == [2, 1]
    assert [len(each.tensors) for each in layout([[a], [b, c]], 64)] == [1, 2]
    assert [len(each.tensors) for each in layout([[a, b], [], [c]], 1)] == [2, 1]
    both = layout([[a, b], [c]], 64)
    for shard in both:
        with closing(ShardWriter(tmp_path, shard)) as writer:
            for each in shard.tensors:
                writer.write(each.name, 0, np.zeros(8, np.float32))
            writer.finish()
        assert (tmp_path / shard.name).stat().st_size == shard.nbytes
    shards.write_index(tmp_path, both)
    index = json.loads((tmp_path / shards.INDEX).read_text())
    first, second = (each.name for each in both)
    assert index["metadata"] == {"total_size": 96}
    assert index["weight_map"] == {"a": first, "b": first, "c": second}
    (tmp_path / shards.INDEX).unlink()
    shards.write_index(tmp_path, layout([[a]], 64))
    assert not (tmp_path / shards.INDEX).exists()


def test_how_much_smaller_a_file_with_texts_may_be() -> None:
    text = OutputTensor("state", "uint8", (4,), 20, variable=True)
    (shard,) = layout([[text, OutputTensor("w", "float32", (8,), 32)]], 1 << 40)
    assert shard.slack == 16


def test_a_text_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note.json"
    shards.put_whole(path, "old")

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "flush", full)
    with pytest.raises(OSError, match="No space"):
        shards.put_whole(path, "new")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


def test_a_file_with_texts_has_no_digest_before_it_is_read(tmp_path: Path) -> None:
    text = OutputTensor("state", "uint8", (4,), 20, variable=True)
    (shard,) = layout([[text]], 1 << 40)
    writer = ShardWriter(tmp_path, shard)
    writer.write("state", 0, np.frombuffer(b"{}", np.uint8))
    assert writer.finish() is None
    writer.close()


# whole conversions


def converted(
    source: Path, recipe: str, out: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> tuple[set[str], set[str]]:
    """The weight files, and which of them were read for their digests.

    Each digest in the manifest is held to what lies on the disk.
    """
    read: set[str] = set()

    def digest(path: Path, name: str | None = None, *, is_weight: bool = False) -> object:
        read.add(path.name)
        return digest_file(path, name, is_weight=is_weight)

    monkeypatch.setattr(execution, "digest_file", digest)
    manifest = quantkit.convert(source, recipe, out, no_gate=True, set=list(overrides))
    files = manifest["output"]["files"]
    found = {each["name"]: each["sha256"] for each in files if each["is_weight"]}
    assert found == {path.name: digest_file(path).sha256 for path in out.glob("*.safetensors")}
    return set(found), read & set(found)


@pytest.mark.parametrize("model", ["gpt_neox", "gpt2", "llama", "opt"])
@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-nf4-double", "bnb-int8", "fp16"])
def test_the_manifest_has_the_digests_of_what_lies_on_the_disk(
    recipe: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_source(tmp_path / "source", model), tmp_path / "out"
    overrides = ["method.max_shard_bytes=30000"] if recipe == "fp16" else []
    files, read = converted(source, recipe, out, monkeypatch, *overrides)
    assert (len(files) > 1) == (recipe == "fp16")
    # the double quantization's texts come last and stand in the header, which comes first
    assert read == (files if recipe == "bnb-nf4-double" else set())


def test_a_bin_whose_storages_lie_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the text of their numbers (0, 1, 10, 11, ..., 2): neither by name nor as in the model."""
    source = write_source(tmp_path / "source", container="torch")
    path = source / "pytorch_model.bin"
    with zipfile.ZipFile(path) as old:
        entries = {each.filename: old.read(each) for each in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in sorted(entries, key=lambda each: ("/data/" in each, each)):
            new.writestr(name, entries[name])
    monkeypatch.setattr(RunningDigest.__init__, "__defaults__", (100,))  # little may wait
    _, read = converted(source, "bnb-int8", tmp_path / "out", monkeypatch)
    assert not read


def test_two_names_of_one_storage_lie_in_the_order_in_which_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever the file names first: else a whole embedding would wait for a whole head."""
    monkeypatch.setitem(CONFIGS, "llama", CONFIGS["llama"] | {"tie_word_embeddings": False})
    source, out = write_source(tmp_path / "source", "llama", container="torch"), tmp_path / "out"
    state = source_state("llama", torch.float16)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    torch.save(dict(sorted(state.items(), reverse=True)), source / "pytorch_model.bin")
    monkeypatch.setattr(RunningDigest.__init__, "__defaults__", (2000,))  # less than either
    _, read = converted(source, "fp16", out, monkeypatch)
    assert not read


def test_where_too_much_would_wait_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    monkeypatch.setattr(RunningDigest.__init__, "__defaults__", (0,))
    _, read = converted(source, "bnb-int8", out, monkeypatch)
    assert read == {"model.safetensors"}


def test_a_bit_that_flips_on_its_way_to_the_disk_is_not_vouched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    usual, done = shards.write_all, []

    def flipping(fd: int, data: memoryview, offset: int) -> None:
        if len(data) == 8192 and not done:
            done.append(offset)
            data = memoryview(bytes([data[0] ^ 1, *data[1:]]))
        usual(fd, data, offset)

    monkeypatch.setattr(shards, "write_all", flipping)
    quantkit.convert(source, "bnb-int8", out, no_gate=True)
    assert done
    with pytest.raises(quantkit.QuantkitError, match=r"model\.safetensors"):
        quantkit.verify(out)


# the disk


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_a_flush_meets_while_writing_stops_the_run(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of a fault once: a later flush that finds nothing must not hide it."""
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    usual, met = os.fsync, []

    def failing(fd: int) -> None:
        if not met and Path(f"/proc/self/fd/{fd}").readlink().name == "model.safetensors":
            met.append(fd)
            raise OSError(code, os.strerror(code))
        usual(fd)

    monkeypatch.setattr(writing, "_FLUSH_BYTES", 1)
    monkeypatch.setattr(shards.os, "fsync", failing)
    with pytest.raises(OSError if code == errno.EIO else StorageError, match=r"model|full"):
        quantkit.convert(source, "bnb-int8", out, no_gate=True)
    assert met
    assert not out.exists()


def one_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ShardWriter, WriteQueue]:
    """A queue whose disk is asked to take each write."""
    monkeypatch.setattr(writing, "_FLUSH_BYTES", 1)
    (shard,) = layout([[OutputTensor("only", "uint8", (8,), 8)]], 1 << 40)
    writer = ShardWriter(folder, shard)
    queue = WriteQueue([writer])
    queue.put("only", 0, np.arange(8, dtype=np.uint8))
    return writer, queue


def test_what_the_last_flush_meets_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int) -> None:
        time.sleep(0.2)  # when all is written and digested
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(shards.os, "fsync", failing)
    writer, queue = one_written(tmp_path, monkeypatch)
    with closing(writer), closing(queue), pytest.raises(OSError, match=r"model\.safetensors"):
        queue.drain()


def test_a_queue_that_is_closed_uses_no_file_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, done = threading.Event(), []

    def slow(fd: int) -> None:
        begun.set()
        time.sleep(0.2)
        done.append(fd)

    monkeypatch.setattr(shards.os, "fsync", slow)
    writer, queue = one_written(tmp_path, monkeypatch)
    with closing(writer):
        assert begun.wait(10)
        queue.close()
        assert len(done) == 1


def test_what_the_digest_meets_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: RunningDigest, offset: int, data: memoryview) -> None:
        raise MemoryError

    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    monkeypatch.setattr(RunningDigest, "feed", failing)
    with pytest.raises(MemoryError):
        quantkit.convert(source, "bnb-int8", out, no_gate=True)
    assert not out.exists()
