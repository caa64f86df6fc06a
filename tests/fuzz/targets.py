"""What is fuzzed: bytes of a stranger's into each reader, and what must hold afterwards.

A target takes bytes and returns whether they were accepted. Refusing with a
:class:`QuantkitError` is right, accepting is right where what came out is sound; any other
exception is a finding. Nothing may run: :data:`heard` must stay empty.
"""

from __future__ import annotations

import atexit
import io
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from quantkit.checkpoint import open_checkpoint
from quantkit.checkpoint.safetensors_header import read_safetensors_header
from quantkit.checkpoint.torch_pickle import read_torch_index
from quantkit.errors import QuantkitError
from quantkit.source import open_source
from quantkit.types import TensorRecord

Target = Callable[[bytes], bool]

#: Audit events that mean "code of the file's choosing ran or was about to".
ALARMS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
heard: list[str] = []

#: A hook cannot be taken away again: other tests of this process are not listened to.
_ears: set[str] = set()


def _listen(event: str, given: tuple[object, ...]) -> None:
    # a chat template is rendered by a process of our own, which is no file's choosing
    ours = event == "subprocess.Popen" and "rendering.py" in str(given[1])
    if event in _ears and not ours:
        heard.append(event)


def listen() -> None:
    """Begin with nothing heard."""
    heard.clear()
    _ears.update(ALARMS)


sys.addaudithook(_listen)

_HOME = Path(
    tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

#: A pickle in the corpora makes this file, where it runs.
CANARY = _HOME / "canary"


def stop_listening() -> None:
    _ears.clear()


def _sound(records: list[TensorRecord], size: int) -> None:
    names = [each.name for each in records]
    assert len(set(names)) == len(names)
    assert all(each.offset >= 0 and each.offset + each.nbytes <= size for each in records)


def safetensors(data: bytes) -> bool:
    """The whole file: length, header, data."""
    path = _HOME / "model.safetensors"
    path.write_bytes(data)
    try:
        records = read_safetensors_header(path)
    except QuantkitError as error:
        return _refused(error)
    _sound(records, len(data))
    return True


def pickles(data: bytes) -> bool:
    """A pickle in a sound zip; or, where the bytes begin like a zip, all of the file."""
    path = _HOME / "pytorch_model.bin"
    path.write_bytes(data if data.startswith(b"PK") else in_zip(data))
    try:
        records = read_torch_index(path)
    except QuantkitError as error:
        return _refused(error)
    _sound(records, path.stat().st_size)
    return True


def in_zip(pickle: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("x/data.pkl", pickle)
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", bytes(24))
    return made.getvalue()


def index(data: bytes) -> bool:
    """``model.safetensors.index.json`` beside two sound shards."""
    folder = _HOME / "sharded"
    if not folder.is_dir():
        folder.mkdir()
        for name, tensor in (("model-1.safetensors", "a"), ("model-2.safetensors", "b")):
            (folder / name).write_bytes(one_tensor(tensor))
    (folder / "model.safetensors.index.json").write_bytes(data)
    try:
        found = open_checkpoint(folder)
    except QuantkitError as error:
        return _refused(error)
    assert {each.file for each in found.tensors} <= {"model-1.safetensors", "model-2.safetensors"}
    return True


def one_tensor(name: str) -> bytes:
    header = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def config(data: bytes) -> bool:
    """``config.json``, or ``tokenizer_config.json`` where the bytes begin with a blank."""
    folder = _HOME / "model"
    if not folder.is_dir():
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(one_tensor("w"))
    tokenizer = data.startswith(b" ")
    (folder / "config.json").write_bytes(b'{"model_type": "llama"}' if tokenizer else data)
    (folder / "tokenizer_config.json").write_bytes(data if tokenizer else b"{}")
    try:
        source = open_source(folder)
    except QuantkitError as error:
        return _refused(error)
    json.dumps([dict(source.config), dict(source.generation)], allow_nan=False).encode()
    return True


def plan(data: bytes) -> bool:
    """``config.json`` all the way through transformers' own class, on the meta device."""
    from quantkit.planning import make_plan
    from quantkit.recipe import load_recipe

    folder = _HOME / "model"
    config(b"{}")
    (folder / "config.json").write_bytes(data)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    try:
        make_plan(open_source(folder), load_recipe("bnb-nf4", ()))
    except QuantkitError as error:
        return _refused(error)
    return True


def _refused(error: QuantkitError) -> bool:
    """A refusal is one line, names a place, and is not endless."""
    said = str(error)
    assert "\n" not in said, said
    assert said.isprintable(), ascii(said)
    assert len(said) < 2000, len(said)
    return False


TARGETS: dict[str, Target] = {
    "safetensors": safetensors,
    "pickle": pickles,
    "index": index,
    "config": config,
    "plan": plan,
}
