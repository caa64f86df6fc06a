"""Digests of an earlier run: taken over only where every byte is the same, else taken anew."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import write_source, write_state

import quantkit
from quantkit.checkpoint import open_checkpoint, stream
from quantkit.checkpoint.known import Known, find_known, keep_known
from quantkit.checkpoint.reading import stamp_of
from quantkit.digests import StreamDigest
from quantkit.errors import CheckpointError, WithdrawnError
from quantkit.types import Digested, TensorRecord

CONTAINERS = ("safetensors", "torch")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=CONTAINERS)
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """One weight file: two tensors and what its container puts around them."""
    made = tmp_path / "source"
    made.mkdir()
    numbers = torch.arange(96, dtype=torch.float16)
    write_state(made, {"a": numbers.reshape(8, 12), "b": numbers[40:45].clone()}, request.param)
    return made


def weights(folder: Path) -> Path:
    return next(each for each in folder.iterdir() if each.suffix in (".safetensors", ".bin"))


def digested(folder: Path, *, md5: bool = True, recall: bool = True) -> Digested:
    index = open_checkpoint(folder)
    return stream.stream_checkpoint(folder, index, md5=lambda *_: md5, recall=recall)


def held_to_hashlib(folder: Path, found: Digested) -> None:
    data = weights(folder).read_bytes()
    (file,) = found.files
    assert file.bytes == len(data)
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert file.md5 == hashlib.md5(data).hexdigest()


def forge(folder: Path, known: Known) -> None:
    """What the cache would say if a file's stamp were that of another content."""
    keep_known(stamp_of(weights(folder)), known)


def never_recalled(folder: Path) -> None:
    for _ in range(2):
        found = digested(folder)
        assert found.recalled == ()
        held_to_hashlib(folder, found)


def kept(folder: Path) -> Known:
    found = find_known(stamp_of(weights(folder)), md5=True)
    assert found is not None
    return found


def test_the_second_time_they_are_recalled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digested(folder)
    assert first.recalled == ()
    monkeypatch.setattr(stream, "StreamDigest", None)
    second = digested(folder)
    assert second.recalled == (weights(folder).name,)
    assert (second.files, second.fingerprint) == (first.files, first.fingerprint)
    held_to_hashlib(folder, second)


def test_any_other_byte_is_seen(folder: Path) -> None:
    """Of header, tensors, padding and what follows them, with a cache that says the old digests
    for the new stamp."""
    digested(folder)
    known, path = kept(folder), weights(folder)
    whole, changed = path.read_bytes(), 0
    for at in range(0, len(whole), 7 if path.suffix == ".bin" else 3):
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        forge(folder, known)
        try:
            index = open_checkpoint(folder)
        except CheckpointError:  # it is none any more
            continue
        found = stream.stream_checkpoint(folder, index, md5=lambda *_: True, recall=True)
        assert found.recalled == (), at
        held_to_hashlib(folder, found)
        changed += 1
    assert changed > 20, "of the tensors' bytes at least"
    path.write_bytes(whole)
    digested(folder)
    assert digested(folder).recalled != (), "and what was found is kept in its place"


def test_bytes_that_changed_places_are_seen(folder: Path) -> None:
    """Two tensors swapped, and their first numbers."""
    digested(folder)
    known, path = kept(folder), weights(folder)
    one, other = sorted(open_checkpoint(folder).tensors, key=lambda each: each.offset)
    whole = path.read_bytes()
    for cut in (2, other.nbytes):
        data = bytearray(whole)
        data[one.offset : one.offset + cut] = whole[other.offset : other.offset + cut]
        data[other.offset : other.offset + cut] = whole[one.offset : one.offset + cut]
        path.write_bytes(data)
        forge(folder, known)
        found = digested(folder)
        assert found.recalled == ()
        held_to_hashlib(folder, found)


def content_of(data: bytes, tensors: dict[str, tuple[int, int]]) -> str | None:
    """Of a file that holds ``data``, and by its header these tensors (offset, bytes)."""
    records = [
        TensorRecord(name, "uint8", (length,), "file", offset, length)
        for name, (offset, length) in tensors.items()
    ]
    digests = stream.TensorDigests(records)
    for each in stream.segments(records, len(data)):
        digests.feed(each.tensor, memoryview(data)[each.offset : each.offset + each.length])
    return digests.content(len(data))


def test_the_order_of_tensors_that_begin_alike_hides_no_byte() -> None:
    """What one order takes to be between tensors is a tensor's by the other."""
    tensors = {"a": (0, 10), "b": (0, 20), "c": (100, 10), "d": (100, 20)}
    same, middle = bytes(20), bytes(range(1, 71))
    one = same + middle + bytes(10) + same
    other = same + bytes(10) + middle + same
    orders = [{name: tensors[name] for name in order} for order in ("abdc", "bacd")]
    assert content_of(one, orders[0]) != content_of(other, orders[1])
    assert content_of(one, orders[0]) == content_of(one, orders[1])


def test_a_file_written_to_is_digested_again(folder: Path) -> None:
    """Even where its time is set back."""
    digested(folder)
    path = weights(folder)
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digested(folder).recalled == ()
    assert digested(folder).recalled == (path.name,)


def test_an_md5_that_nobody_took_is_taken(folder: Path) -> None:
    (file,) = digested(folder, md5=False).files
    assert file.md5 is None
    found = digested(folder)
    assert found.recalled == ()
    held_to_hashlib(folder, found)
    assert digested(folder, md5=False).files[0].md5 is None, "where nothing asks for it"


def test_without_a_cache_they_are_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE", "off")
    never_recalled(folder)


def test_a_strided_tensor_may_leave_bytes_out(tmp_path: Path) -> None:
    write_state(tmp_path, {"a": torch.arange(96.0).reshape(8, 12).T}, "torch")
    never_recalled(tmp_path)


def test_a_strided_tensor_is_no_known_file(tmp_path: Path) -> None:
    """Even where its stamp is that of a file that was known."""
    write_state(tmp_path, {"a": torch.arange(96.0).reshape(8, 12).T}, "torch")
    forge(tmp_path, Known("of something else", "0" * 64, "0" * 32))
    never_recalled(tmp_path)


def test_other_bytes_at_the_second_read_are_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digested(folder)
    forge(folder, Known("of something else", "0" * 64, "0" * 32))
    numbers = itertools.count()
    content = stream.TensorDigests.content
    monkeypatch.setattr(
        stream.TensorDigests, "content", lambda *given: f"{content(*given)}{next(numbers)}"
    )
    with pytest.raises(CheckpointError, match="two reads gave other bytes"):
        digested(folder)


def test_verify_believes_no_earlier_run(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    true = quantkit.verify(source)["files"][0]["sha256"]
    path = weights(source)
    known = find_known(stamp_of(path), md5=False)
    assert known is not None
    assert known.sha256 == true
    forge(source, replace(known, sha256="0" * 64))
    assert quantkit.verify(source)["files"][0]["sha256"] == true
    assert find_known(stamp_of(path), md5=False) == known, "and what was wrong is not kept"


def test_a_conversion_says_what_it_recalled(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", shards=2)
    made = [
        quantkit.convert(source, "bnb-nf4", tmp_path / each, no_gate=True)
        for each in ("one", "other")
    ]
    names = [each.name for each in sorted(source.glob("*.safetensors"))]
    assert [each["source"]["recalled"] for each in made] == [[], names]
    for key in ("files", "fingerprint", "status"):
        assert made[0]["source"][key] == made[1]["source"][key]
    for path in (tmp_path / "one").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


@pytest.mark.parametrize("by", ["sha256", "md5"])
def test_what_was_withdrawn_since_is_recognized(tmp_path: Path, by: str) -> None:
    source = write_source(tmp_path / "source", container="torch")
    quantkit.convert(source, "bnb-nf4", tmp_path / "out", no_gate=True)
    registry = tmp_path / "registry"
    registry.mkdir()
    digest = hashlib.new(by, weights(source).read_bytes()).hexdigest()
    (registry / "own.toml").write_text(
        'repository = "own/model"\n[[releases]]\ndate = "2023-07-31"\nstatus = "withdrawn"\n'
        'stated_at = "https://example.org/notice"\nreason = "licence"\nadvice = "the next"\n'
        f'[[releases.files]]\nname = "pytorch_model.bin"\n{by} = "{digest}"\n'
    )
    for _ in range(2):
        with pytest.raises(WithdrawnError):
            quantkit.convert(
                source, "bnb-nf4", tmp_path / "more", no_gate=True, checksums=[registry]
            )


@pytest.mark.parametrize("recipe", ["bnb-nf4", "gptq-4bit-g128"])
def test_what_an_earlier_run_took_wrongly_condemns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """The true digest is registered, and the source says that it is that model."""
    taken = []
    monkeypatch.setattr(
        stream, "StreamDigest", lambda **asked: taken.append(asked) or StreamDigest(**asked)
    )
    source = write_source(tmp_path / "source", container="torch")
    true, registry = quantkit.verify(source)["files"][0]["sha256"], tmp_path / "registry"
    path = weights(source)
    known = find_known(stamp_of(path), md5=False)
    assert known is not None
    registry.mkdir()
    (registry / "own.toml").write_text(
        'repository = "own/model"\n[[releases]]\ndate = "2023-07-31"\nstatus = "current"\n'
        'stated_at = "https://example.org/notice"\n'
        f'[[releases.files]]\nname = "pytorch_model.bin"\nsha256 = "{true}"\n'
    )
    asked = {"no_gate": True, "checksums": [registry], "set": ["source.repo=own/model"]}
    if recipe != "bnb-nf4":
        asked["set"] += ["method.group_size=16", "calibration.samples=2", "calibration.length=16"]
        asked["calibration"] = tmp_path / "ids.json"
        asked["calibration"].write_text(json.dumps([[*range(16)]] * 2))
    for wrong, recalled in (("0" * 64, []), (true, [path.name])):
        forge(source, replace(known, sha256=wrong))
        taken.clear()
        found = quantkit.convert(source, recipe, tmp_path / wrong[:4], **asked)["source"]
        assert (found["status"], found["recalled"]) == ("verified", recalled)
        assert true in [each["sha256"] for each in found["files"]]
        assert len(taken) == (not recalled), "anew once, and what was found is gone on with"
