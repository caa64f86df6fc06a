"""Pickles without foreign code that lie about tensors, or want to exhaust the reader."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from pickle_builder import ORDERED, PROTO, read, refused, state, storage, tensor, text, write

from quantkit.checkpoint import pickle_machine
from quantkit.errors import CheckpointError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


def parameter(hooks: bytes) -> bytes:
    return state(b"ctorch._utils\n_rebuild_parameter\n" + tensor() + b"\x88" + hooks + b"\x87R")


@pytest.mark.parametrize(
    "data", [state(tensor(tail=b"\x89" + ORDERED + b"}")), parameter(ORDERED), parameter(b"]")]
)
def test_metadata_and_hooks_that_are_empty(path: Path, data: bytes) -> None:
    assert [record.name for record in read(write(path, data))] == ["w"]


@pytest.mark.parametrize(
    "data",
    [
        PROTO + b"ccollections\nOrderedDict\n]\x85R.",  # arguments for OrderedDict
        PROTO + b"ctorch\nFloatStorage\nK\x05\x85R.",  # a storage class called
        PROTO + b"ctorch\nFloatStorage\n)R.",
        PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        parameter(ORDERED + text("hook") + b"Ns"),
        parameter(b"]" + text("hook") + b"a"),
        state(tensor(source=storage().replace(b"ctorch\nFloatStorage", ORDERED[:-2]))),
        PROTO + b"ctorch._utils\n_rebuild_parameter\n}\x88" + ORDERED + b"\x87R.",
        PROTO + text("storage") + b"Q.",
        PROTO + storage(kind=b"FloatStorage").replace(text("storage"), text("module")) + b".",
        state(tensor(source=storage(numel=-6))),
        state(tensor(source=b"N")),
        state(tensor(offset=-1)),
        state(tensor(offset=2**63)),
        state(tensor(shape=(-2, -3))),
        state(tensor(shape=(2**62, 4), stride=(0, 0))),
        state(tensor(shape=(1,) * 65, stride=(1,) * 65)),
        state(tensor(stride=(-3, 1))),
        state(tensor(stride=(3,))),
        state(tensor(stride=(2**63, 1))),
        state(tensor(tail=b"\x89" + ORDERED + b"}" + text("neg") + b"\x88s")),
        state(tensor(tail=b"\x89]" + text("hook") + b"a")),
        state(tensor(tail=b"\x89")),
        state(tensor(tail=b"\x89" + ORDERED + b"}}")),
    ],
)
def test_calls_with_impossible_arguments(path: Path, data: bytes) -> None:
    refused(write(path, data), r"data\.pkl\): expected")


@pytest.mark.parametrize(
    ("value", "storage_bytes", "match"),
    [
        (tensor(offset=1), 24, "within its storage of 6, got 1 to 7"),
        (tensor(shape=(3, 3)), 24, "within its storage of 6, got 0 to 9"),
        (tensor(stride=(2**62, 1)), 24, "within its storage of 6"),
        (tensor(source=storage(numel=7)), 24, "expected 28 bytes .* the zip holds 24"),
        (tensor(), 23, "expected 24 bytes .* the zip holds 23"),
        (tensor(), 25, "expected 24 bytes .* the zip holds 25"),
        (tensor(source=storage(numel=2**62)), 24, "the zip holds 24"),
        (tensor(source=storage(key="1")), 24, "storage '1': expected it in the zip"),
        (tensor(source=storage(key="../data.pkl")), 24, "expected it in the zip"),
        (tensor(source=storage(key="x/byteorder")), 24, "expected it in the zip"),
        (tensor(shape=(2**40,), stride=(0,)), 24, "expanded view"),
    ],
)
def test_tensors_outside_their_storage(
    path: Path, value: bytes, storage_bytes: int, match: str
) -> None:
    refused(write(path, state(value), storage_bytes), match)


def test_one_storage_of_two_types(path: Path) -> None:
    both = b"}" + text("a") + tensor() + b"s" + text("b")
    both += tensor(source=storage(kind=b"IntStorage")) + b"s."
    refused(write(path, PROTO + both), "expected one dtype and size for all its views")


@pytest.mark.parametrize("setter", [b"s", b"su"])
def test_duplicate_names(path: Path, setter: bytes) -> None:
    pair = text("w") + tensor()
    data = PROTO + b"}" + pair + b"s" + pair + b"s."
    if setter == b"su":
        data = PROTO + b"}(" + pair + pair + b"u."
    refused(write(path, data), "each key once, got 'w' twice")


@pytest.mark.parametrize("name", ["", "x" * 2000, "\ud800"])
def test_impossible_names(path: Path, name: str) -> None:
    refused(write(path, state(tensor(), name)), "tensor names")


def test_doubling_structures_are_never_walked(path: Path) -> None:
    """2 ** 200 leaves in 1 kB: to print, hash, compare or copy it would never end."""
    bomb = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    started = time.monotonic()
    refused(write(path, state(bomb)), "key 'w', got a tuple")
    refused(write(path, PROTO + b"}" + bomb + b"Ns."), "names as keys, got a tuple")
    refused(write(path, PROTO + bomb + b"."), "a dict of tensors, got a tuple")
    refused(write(path, PROTO + bomb + b")R."), "a call of a tuple")
    refused(write(path, PROTO + bomb + b"Q."), "persistent ids")
    refused(write(path, state(tensor(tail=b"\x89" + bomb))), "without hooks")
    refused(write(path, PROTO + b"ccollections\nOrderedDict\n" + bomb + b"R."), "no call of")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "nest",
    [b")" + b"\x85" * 300_000, b"]" * 15_000 + b"a" * 14_999, b"(" * 50_000],
    ids=["tuples", "lists", "marks"],
)
def test_deep_nesting(path: Path, nest: bytes) -> None:
    refused(write(path, state(nest)), "got a tuple|got a list|open marks")


def test_dicts_that_hold_themselves(path: Path) -> None:
    refused(write(path, PROTO + b"}q\0" + text("w") + b"h\0s."), "key 'w', got a dict")


@pytest.mark.parametrize(
    ("limit", "value", "data"),
    [
        ("MAX_OPCODES", 50, b"NN\x86" * 50),
        ("MAX_MEMO", 50, b"N" + b"\x94" * 51),
        ("MAX_STACK", 50, b"N" * 51),
        ("MAX_MARKS", 50, b"(" * 51),
    ],
)
def test_limits(
    path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, data: bytes
) -> None:
    monkeypatch.setattr(pickle_machine, limit, value)
    refused(write(path, PROTO + data + b"."), "expected at most 50 ")


def test_real_stack_limit_and_the_farthest_memo_entry(path: Path) -> None:
    refused(write(path, PROTO + b"N" * 30_000), "on the pickle's stack")
    far = b"r\xff\xff\xff\xff" + b"0"
    refused(write(path, PROTO + b"N" + far + b"."), "got POP")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        PROTO,
        PROTO + b"}",
        PROTO + b"}}.",
        PROTO + b"(}.",
        PROTO + b"}.trailing",
        PROTO + b"t.",
        PROTO + b"h\x07.",
        PROTO + b"q\0.",
        PROTO + b"(\x85.",
        PROTO + b"}(Nu.",
        b"\x80\x09}.",
        b"\x80\x02X\xff\xff\xff\xffabc",
        b"\x80\x04\x8d" + b"\xff" * 8 + b"abc",
        b"\x80\x02\x8b\xff\xff\xff\x7f1",
        b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"\x80\x02\xff.",
        b"ctorch\n",
        b"c\xff\n\xff\n.",
    ],
)
def test_malformed(path: Path, data: bytes) -> None:
    refused(write(path, data), r"data\.pkl\): ")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"N(\x85t\x86.", "takes more values"),  # from below a mark
        (b"(N(\x85tt.", "takes more values"),  # from below the inner one
        (b"(0t.", "got POP"),
        (b"}(Nu.", "in pairs"),
        (b"}(" + text("w") + b"u.", "in pairs"),
        (b"\x8a\x09" + b"\xff" * 8 + b"\x80.", "at most 64 bits"),
        (b"\x8a\x09" + b"\0" * 7 + b"\x80\0.", "at most 64 bits"),
    ],
)
def test_what_is_malformed_is_told(path: Path, data: bytes, match: str) -> None:
    refused(write(path, PROTO + data), match)


def test_a_memo_entry_beyond_a_byte(path: Path) -> None:
    at = (300).to_bytes(4, "little")
    first = tensor(tail=b"\x89" + ORDERED + b"r" + at)
    both = text("a") + first + b"s" + text("b") + tensor(tail=b"\x89j" + at) + b"s."
    assert [record.name for record in read(write(path, PROTO + b"}" + both))] == ["a", "b"]


@pytest.mark.parametrize("version", range(7))
def test_protocols(path: Path, version: int) -> None:
    write(path, b"\x80" + bytes([version]) + state(tensor())[2:])
    if 2 <= version <= 5:
        assert [record.name for record in read(path)] == ["w"]
    else:
        refused(path, f"protocol 2 to 5, got {version}")


@pytest.mark.parametrize("seed", range(5))
def test_any_damage_ends_in_the_error_or_in_bounds(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    sound = state(tensor())
    for _ in range(300):
        damaged = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        size = write(path, bytes(damaged)).stat().st_size
        try:
            records = read(path)
        except CheckpointError:
            continue
        assert all(r.offset >= 0 and r.offset + r.nbytes <= size for r in records)
