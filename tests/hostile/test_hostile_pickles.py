"""Pickles made to attack: nothing is imported, called or built, whatever they say.

Where an attack can be shown to work on pickle itself, it first is: the sentinel
file appears. Then the same bytes are read by quantkit and it does not.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
from pickle_builder import ORDERED, PROTO, read, refused, state, tensor, text, write

from quantkit.errors import CheckpointError, UnsafePickleError


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
        "as-hooks": state(tensor(tail=b"\x89cos\nsystem\n" + text(command) + b"\x85R")),
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
        PROTO + b"NNNs.",  # an item of None
        PROTO + b"NNa.",  # an append to None
        PROTO + ORDERED + b"N}\x86b.",  # BUILD with slots
        PROTO + ORDERED + b"]b.",  # BUILD with a list
        PROTO + b"ccollections\nOrderedDict\n]R.",  # a call with a list
        b"\x80\x04NN\x93.",  # STACK_GLOBAL without text
        b"\x80\x04" + text("collections") + b"]\x93.",
        b"\x80\x04]" + text("OrderedDict") + b"\x93.",
    ],
)
def test_other_ways_to_build_objects(path: Path, data: bytes) -> None:
    refused(write(path, data), "nothing was run|takes more values", CheckpointError)
