"""One sample of our own for each published class of attack on checkpoint readers.

Where an attack can be shown to work on what it was made against, it first is: the sentinel
appears. Then quantkit refuses the same bytes, in one line that names the file, and it does not.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pickle_builder import (
    ORDERED,
    PROTO,
    integer,
    read,
    refused,
    state,
    storage,
    tensor,
    text,
    write,
)

from quantkit.checkpoint.safetensors_header import read_safetensors_header
from quantkit.errors import CheckpointError, UnsafePickleError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "sentinel"


def system(sentinel: Path) -> bytes:
    return b"cposix\nsystem\n" + text(f"touch {sentinel}") + b"\x85R"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


# CVE-2025-32434: weights_only=True handed a TorchScript archive on


def test_a_torchscript_archive(path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    refused(path, "TorchScript program")


# CVE-2026-24747: items set on what is no dict, storages of other sizes than they state


@pytest.mark.parametrize("setter", [b"s.", b"(" + text("k") + b"Nu."])
def test_items_set_on_no_dict(path: Path, setter: bytes) -> None:
    target = tensor() if setter != b"s." else tensor() + text("k") + b"N"
    refused(write(path, PROTO + target + setter), "item assignment", UnsafePickleError)


@pytest.mark.parametrize("numel", [5, 7, 2**40, 2**63 - 1])
def test_a_storage_that_states_another_size(path: Path, numel: int) -> None:
    value = tensor(source=storage(numel=numel), shape=(2, 2), stride=(2, 1))
    refused(write(path, state(value)), "the zip holds 24")


# CVE-2025-1716, the GHSAs by submodule and by forgotten names: a deny-list is never whole


def globals_(sentinel: Path) -> dict[str, bytes]:
    line = text(f"__import__('os').system('touch {sentinel}')")
    return {
        "pip.main": call("pip", "main", b"]" + text("install") + b"a"),
        "pip._internal.main": call("pip._internal.cli.main", "main", b"]"),
        "timeit": call("timeit", "timeit", line, text("pass"), b"ctime\ntime\n", b"K\x01"),
        "runpy": call("runpy", "run_path", text("/nonexistent")),
        "code": call("code", "InteractiveInterpreter"),
        "bdb": call("bdb", "Bdb"),
        "resolve_name": call("pkgutil", "resolve_name", text("os:system")),
        "getattr chain": call("builtins", "getattr", b"cos\nsystem\n", text("__call__")),
        "importlib": call("importlib", "import_module", text("os")),
        "operator": call("operator", "attrgetter", text("system")),
        "functools.partial": call("functools", "partial", b"cos\nsystem\n"),
        "numpy.load": call("numpy", "load", text("x.npy")),
        "numpy submodule": call("numpy.testing._private.utils", "runstring", line, b"}"),
        "numpy f2py": call("numpy.f2py.crackfortran", "getlincoef", line, b"}"),
        "numpy scalar": call("numpy.core.multiarray", "scalar"),
        "joblib": call("joblib.numpy_pickle", "load", text("x")),
        "dill": call("dill._dill", "_create_code"),
        "dill loads": call("dill", "loads", b"C\x00"),
        "cloudpickle": call("cloudpickle.cloudpickle", "_make_function"),
        "torch.load": call("torch", "load", text("x")),
        "torch.hub": call("torch.hub", "load", text("owner/name"), text("x")),
        "torch submodule": call("torch._dynamo.guards.GuardBuilder", "get", line),
        "torch.storage": call("torch.storage", "_load_from_bytes", b"C\x00"),
        "torch distributed": call("torch.distributed.utils", "_pack_kwargs"),
        "torch jit": call("torch.jit.unsupported_tensor_ops", "execWrapper", line),
        "asyncio submodule": call("asyncio.unix_events", "_UnixSubprocessTransport._start"),
        "ensurepip": call("ensurepip", "_run_pip"),
        "cProfile": call("cProfile", "run", line),
        "ctypes": call("ctypes", "CDLL", text("libc.so.6")),
        "dotted name": b"\x80\x04" + text("os") + text("system.__call__") + b"\x93)R",
        "spaced name": b"\x80\x04" + text(" os") + text("system") + b"\x93)R",
    }


@pytest.mark.parametrize("name", globals_(Path("x")))
@pytest.mark.parametrize("shape", ["alone", "as a value", "dropped", "as a key", "in a hook"])
def test_globals_of_every_published_bypass(
    path: Path, sentinel: Path, name: str, shape: str
) -> None:
    """Also where the result is thrown away, which hid it from a decompiler."""
    payload = globals_(sentinel)[name]
    data = {
        "alone": payload + b".",
        "as a value": state(payload),
        "dropped": PROTO + payload + b"0" + state(tensor())[2:],
        "as a key": PROTO + b"}" + payload + b"Ns.",
        "in a hook": state(tensor(tail=b"\x89" + payload)),
    }[shape]
    refused(write(path, data), "nothing was run", UnsafePickleError)
    assert not sentinel.exists()


def test_a_chain_of_reduces(path: Path, sentinel: Path) -> None:
    """getattr(__import__('os'), 'system')(...): each step is innocent by itself."""
    chain = (
        b"cbuiltins\ngetattr\n(" + call("builtins", "__import__", text("os")) + text("system")
        + b"tR" + text(f"touch {sentinel}") + b"\x85R."
    )  # fmt: skip
    pickle.loads(chain)
    assert sentinel.exists(), "the attack itself does not work"
    sentinel.unlink()
    refused(write(path, chain), "nothing was run", UnsafePickleError)
    assert not sentinel.exists()


class _Reduces:
    """What a __reduce__ leaves in a pickle, of every protocol."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.sentinel,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_reduce_of_every_protocol(path: Path, sentinel: Path, protocol: int) -> None:
    data = pickle.dumps({"w": _Reduces(sentinel)}, protocol=protocol)
    pickle.loads(data)
    assert sentinel.exists(), "the attack itself does not work"
    sentinel.unlink()
    with pytest.raises(CheckpointError):  # protocols 0 and 1 are none of torch's
        read(write(path, data))
    assert not sentinel.exists()


# CVE-2025-1889: a second pickle under a name that a scanner does not look at


@pytest.mark.parametrize(
    "name", ["x/config.p", "x/data/config.pkl", "x/evil.py", "x/data/0.zip", "data.pkl", "y/data/1",
             "x/../../evil", "/etc/cron.d/evil", "x\\data.pkl", "x/data.pkl ", "x/code/m.py"],
)  # fmt: skip
def test_members_that_torch_never_writes(path: Path, name: str, sentinel: Path) -> None:
    write(path, state(tensor()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, system(sentinel) + b".")
    refused(path, "zip|torch.save writes none")
    assert not sentinel.exists()


# CVE-2025-1944, -1945, -10156: the parts of the zip disagree, and readers with them


def local_at(path: Path, name: bytes) -> int:
    return path.read_bytes().find(name) - 30


def central_at(path: Path, name: bytes) -> int:
    return path.read_bytes().rfind(name) - 46


def poke(path: Path, at: int, data: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(data)] = data
    path.write_bytes(raw)


@pytest.mark.parametrize("name", [b"x/data.pkl", b"x/data/0", b"x/byteorder"])
@pytest.mark.parametrize("bit", [0, 1, 2, 4, 5, 6, 7, 13, 14, 15])
@pytest.mark.parametrize("where", ["local", "central", "both"])
def test_flag_bits(path: Path, name: bytes, bit: int, where: str) -> None:
    write(path, state(tensor()))
    flag = struct.pack("<H", 1 << bit)
    if where in ("local", "both"):
        poke(path, local_at(path, name) + 6, flag)
    if where in ("central", "both"):
        poke(path, central_at(path, name) + 8, flag)
    refused(path, "flags|encrypted|readable zip|name")


@pytest.mark.parametrize(
    ("at", "data", "match"),
    [
        (8, struct.pack("<H", 8), "method 8"),  # deflated, says the local header
        (14, b"\xde\xad\xbe\xef", "CRC-32"),
        (6, struct.pack("<HHII", 8, 0, 0, 1), "CRC-32"),  # the same, though it follows the member
        (18, struct.pack("<I", 1), "sizes"),
        (22, struct.pack("<I", 2**31), "sizes"),
        (30, b"y", "local header of that name"),
    ],
)
def test_a_local_header_that_disagrees(path: Path, at: int, data: bytes, match: str) -> None:
    write(path, state(tensor()))
    poke(path, local_at(path, b"x/data.pkl") + at, data)
    refused(path, match)


def test_a_checksum_that_disagrees_everywhere(path: Path, sentinel: Path) -> None:
    """Scanners stop at it, torch reads on."""
    write(path, system(sentinel) + b".")
    poke(path, local_at(path, b"x/data.pkl") + 14, b"\xde\xad\xbe\xef")
    poke(path, central_at(path, b"x/data.pkl") + 16, b"\xde\xad\xbe\xef")
    refused(path, "CRC-32")
    assert not sentinel.exists()


# polyglots, wrong names, archives in archives


def hidden_between_members(path: Path, payload: bytes) -> None:
    write(path, state(tensor()))
    raw = path.read_bytes()
    start = raw.find(b"PK\x01\x02")
    moved = bytearray(raw[:start] + payload + raw[start:])
    end = moved.rfind(b"PK\x05\x06")
    moved[end + 16 : end + 20] = struct.pack("<I", start + len(payload))
    path.write_bytes(moved)


def pickle_before_a_zip(path: Path, payload: bytes) -> None:
    write(path, state(tensor()))
    path.write_bytes(payload + path.read_bytes())


def pickle_after_a_zip(path: Path, payload: bytes) -> None:
    write(path, state(tensor()))
    path.write_bytes(path.read_bytes() + payload)


def zip_in_a_comment(path: Path, payload: bytes) -> None:
    write(path, state(tensor()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = payload


def a_tar(path: Path, payload: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = len(payload)
        archive.addfile(info, io.BytesIO(payload))


def legacy(path: Path, payload: bytes) -> None:
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + payload)


def numpy_object(path: Path, payload: bytes) -> None:
    path.write_bytes(b"\x93NUMPY\x01\x00" + bytes(118) + payload)


def seven_zip(path: Path, payload: bytes) -> None:
    path.write_bytes(b"7z\xbc\xaf\x27\x1c" + payload)


def deflated(path: Path, payload: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(1 << 24))


@pytest.mark.parametrize(
    "make",
    [hidden_between_members, pickle_before_a_zip, pickle_after_a_zip, zip_in_a_comment, a_tar,
     legacy, numpy_object, seven_zip, deflated],
)  # fmt: skip
def test_polyglots_and_wrong_kinds(
    path: Path, sentinel: Path, make: Callable[[Path, bytes], None]
) -> None:
    make(path, system(sentinel) + b".")
    refused(path, "expected")
    assert not sentinel.exists()


def test_a_directory_of_millions_is_not_read(path: Path) -> None:
    entry = b"PK\x01\x02" + bytes(42)
    count = (17 << 20) // len(entry)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, count * 46, 4, 0)
    path.write_bytes(b"PK\x03\x04" + entry * count + end)
    refused(path, "zip directory of at most")
    # of 64 bits, which counts for readers, beside a harmless one
    long = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, count * 46, 4)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 4 + count * 46, 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 46, 4, 0)
    path.write_bytes(b"PK\x03\x04" + entry * count + long + locator + end)
    refused(path, "zip directory of at most")


@pytest.mark.parametrize(
    ("head", "hint"),
    [(b"PK\x03\x04", "a zip"), (b"\x80\x02}.", "a pickle"), (b"GGUF", "a GGUF file")],
)
def test_a_safetensors_that_is_none(tmp_path: Path, head: bytes, hint: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(head + b"\xff" * 100)
    with pytest.raises(CheckpointError, match=hint):
        read_safetensors_header(path)


def test_a_header_of_nothing_but_brackets_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for part in (b"[],", b"{},", b"1,"):
        raw = b'{"a":[' + part * (4_000_000 // len(part)) + b"1]}"
        path.write_bytes(len(raw).to_bytes(8, "little") + raw)
        with pytest.raises(CheckpointError, match=r"more than|nested|keys"):
            read_safetensors_header(path)


@pytest.mark.parametrize(
    "name", ["a b", "<script>", "a`rm -rf ~`", "$(id)", "a;b", "a|b", "a\u202eb", "a\nb", "[x](y)",
             "a'b", 'a"b', "a\\b", "a&b"],
)  # fmt: skip
def test_tensor_names_that_a_page_or_a_shell_would_act_on(path: Path, name: str) -> None:
    refused(write(path, state(tensor(), name)), "tensor names")


@pytest.mark.parametrize(
    "name", ["モデル.層.0.重み", "h.0.attn.c_attn.weight", "a/b:c-1_2@3+4=5,6"]
)
def test_tensor_names_that_are_odd_and_harmless(path: Path, name: str) -> None:
    (record,) = read(write(path, state(tensor(), name)))
    assert record.name == name


def test_integers_and_memo_beyond_all_bounds(path: Path) -> None:
    refused(write(path, PROTO + b"}" + text("w") + integer(2**200) + b"s."), "at most 64 bits")
    refused(write(path, PROTO + ORDERED + b"r\xff\xff\xff\xff0."), "POP")
