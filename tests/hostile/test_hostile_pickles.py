"""Pickles made to attack: nothing is imported, called or built, whatever they say.

Where an attack can be shown to work on pickle itself, it first is: the sentinel
file appears. Then the same bytes are read by quantkit and it does not.
"""

from __future__ import annotations

import pickle
import random
import struct
import sys
import time
import zipfile
from pathlib import Path

import pytest

from quantkit.checkpoint import pickle_machine
from quantkit.checkpoint.torch_pickle import read_torch_index
from quantkit.errors import CheckpointError, UnsafePickleError

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


def read(path: Path) -> list[object]:
    """The records, after making sure that no alarm was heard."""
    global _heard
    _heard = []
    try:
        return list(read_torch_index(path))
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "sentinel"


def test_the_builder_builds_a_readable_file(path: Path) -> None:
    (record,) = read(write(path, state(tensor())))
    assert (record.name, record.shape, record.nbytes) == ("w", (2, 3), 24)


def attacks(command: str) -> dict[str, bytes]:
    stacked = b"\x80\x04" + text("posix") + text("system") + b"\x93"
    return {
        "global-reduce": b"cposix\nsystem\n" + text(command) + b"\x85R.",
        "os-system": b"cos\nsystem\n" + text(command) + b"\x85R.",
        "stack-global": stacked + text(command) + b"\x85R.",
        "inst": b"(" + text(command) + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + text(command) + b"o.",
        "eval": b"cbuiltins\neval\n" + text(f"__import__('os').system('{command}')") + b"\x85R.",
        "build-setstate": PROTO
        + (ORDERED + b"}" + text("__setstate__") + b"cos\nsystem\nsb")
        + (text(command) + b"b."),
        "as-a-tensor": state(b"cos\nsystem\n" + text(command) + b"\x85R"),
        "as-hooks": state(
            tensor(tail=b"\x89cos\nsystem\n" + text(command) + b"\x85R").replace(b"Q", b"", 1)
        ),
        "before-a-clean-dict": b"cos\nsystem\n" + text(command) + b"\x85R0" + state(b"N")[2:],
    }


@pytest.mark.parametrize("name", attacks(""))
def test_attacks_do_not_run(path: Path, sentinel: Path, name: str) -> None:
    data = attacks(f"touch {sentinel}")[name]
    if name != "as-hooks":  # needs torch's own persistent ids
        pickle.loads(data)
        assert sentinel.exists(), "the attack itself does not work"
        sentinel.unlink()
    refused(write(path, data), "(os|posix|builtins).*(system|eval)", UnsafePickleError)
    assert not sentinel.exists()


def test_naming_a_module_does_not_import_it(
    path: Path, sentinel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "armed_module.py").write_text(f"open({str(sentinel)!r}, 'w')\nx = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    refused(write(path, b"carmed_module\nx\n."), r"armed_module\.x", UnsafePickleError)
    assert "armed_module" not in sys.modules
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "load"),
        ("torch", "FloatTensor"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils _rebuild_tensor_v2", ""),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "OrderedDict.__reduce__"),
        ("collections", "Counter"),
        ("Collections", "OrderedDict"),
        ("builtins", "getattr"),
        ("numpy.core.multiarray", "scalar"),
        ("x" * 100_000, "y"),
        ("new\nline", "\x1b[31m\ud800"),
    ],
)
def test_only_exact_names_are_allowed(path: Path, module: str, name: str) -> None:
    stacked = b"\x80\x04" + text(module) + text(name) + b"\x93."
    refused(write(path, stacked), "the global ", UnsafePickleError)


@pytest.mark.parametrize(
    "data",
    [
        b"ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x04ccollections\nOrderedDict\n)}\x92.",  # NEWOBJ_EX
        b"(icollections\nOrderedDict\n.",  # INST, even of an allowed name
        b"(ccollections\nOrderedDict\no.",  # OBJ
        b"\x82\x01.",  # EXT1
        b"Psome-id\n.",  # PERSID
        PROTO + text("os.system") + b")R.",  # a call of text
        PROTO + ORDERED + b")R.",  # a call of a value
        PROTO + tensor() + b"}b.",  # BUILD on a tensor
        PROTO + b"}}b.",  # BUILD on a plain dict
        PROTO + ORDERED + b"}" + text("__class__") + b"Nsb.",  # BUILD of another attribute
        PROTO + ORDERED + b"}\x86b.",  # BUILD with slots
        PROTO + b"NNNs.",  # an item of None
        PROTO + b"NNa.",  # an append to None
        b"\x80\x04NN\x93.",  # STACK_GLOBAL without text
    ],
)
def test_other_ways_to_build_objects(path: Path, data: bytes) -> None:
    refused(write(path, data), "nothing was run|takes more values", CheckpointError)


@pytest.mark.parametrize(
    "data",
    [
        PROTO + b"ccollections\nOrderedDict\n]\x85R.",  # arguments for OrderedDict
        PROTO + b"ctorch\nFloatStorage\nK\x05\x85R.",  # a storage class called
        PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
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
