"""quantkit called from somebody's own program."""

from __future__ import annotations

import errno
import importlib
import logging
import multiprocessing
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import Converted

import quantkit
from quantkit import errors
from quantkit.errors import UsageError, WithdrawnError
from quantkit.types import Event

QUICK = ("evaluation.window=64", "evaluation.max_windows=2", "evaluation.new_tokens=2")


def test_what_runs_only_once_is_not_used_up_before_it_counts(demo: Path, tmp_path: Path) -> None:
    quantkit.demo(tmp_path / "demo")
    with pytest.raises(WithdrawnError):
        quantkit.convert(
            demo, "bnb-nf4", tmp_path / "out", no_gate=True,
            checksums=(tmp_path / "demo").glob("registry"),
        )  # fmt: skip
    overrides = iter([*QUICK, "method.block_size=128"])
    made = quantkit.convert(
        demo, "bnb-nf4", tmp_path / "out", text=demo.glob("heldout.txt"),
        set=overrides,
    )  # fmt: skip
    assert made["recipe"]["method"]["block_size"] == 128
    assert made["gate"]["perplexity"]["text"] == "heldout.txt"
    one = quantkit.convert(
        demo, "bnb-nf4", tmp_path / "one", no_gate=True, set="method.block_size=128"
    )
    assert one["request"]["set"] == ["method.block_size=128"]
    assert one["recipe"]["method"]["block_size"] == 128


def test_a_folder_has_no_revision_to_be_told(demo: Path, tmp_path: Path) -> None:
    for call in (
        lambda: quantkit.convert(demo, "bnb-nf4", tmp_path / "o", revision="abc", no_gate=True),
        lambda: quantkit.plan(demo, "bnb-nf4", revision="abc"),
    ):
        with pytest.raises(UsageError, match="is of a Hub id, and this is a folder"):
            call()


class Cancelled(Exception):
    """Of the caller's own."""


@pytest.mark.parametrize("stage", ["walk", "perplexity", "generation"])
def test_what_a_listener_raises_is_its_callers(demo: Path, demo_nf4: Converted, stage: str) -> None:
    heard = []

    def stop(event: Event) -> None:
        heard.append(event.stage)
        if event.stage == stage:
            raise Cancelled(stage) from KeyError("why")

    more = ["evaluation.by_layer=true"] if stage == "walk" else []
    with pytest.raises(Cancelled, match=stage) as raised:
        quantkit.check(
            demo_nf4.folder, demo, text=demo_nf4.text, set=[*QUICK, *more], listener=stop
        )
    assert stage in heard
    assert isinstance(raised.value.__cause__, KeyError)
    if stage == "perplexity":
        with pytest.raises(Cancelled):
            quantkit.compare(demo_nf4.folder, demo, text=demo_nf4.text, set=QUICK, listener=stop)


def test_a_listeners_stop_iteration_is_its_callers_as_it_was_raised(demo: Path) -> None:
    """What leaves a generator of Python's may be anything else."""
    said = StopIteration("enough")

    def stop(event: Event) -> None:
        try:
            raise KeyError("why")
        except KeyError:
            raise said  # noqa: B904

    with pytest.raises(StopIteration) as raised:
        quantkit.verify(demo, listener=stop)
    assert raised.value is said
    assert isinstance(said.__context__, KeyError)


@pytest.mark.parametrize("stage", ["convert", "gate"])
def test_a_full_disk_of_a_listeners_own_is_not_the_outputs(
    demo: Path, tmp_path: Path, stage: str
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/var/log/progress")

    def log(event: Event) -> None:
        if event.stage == stage:
            raise full

    with pytest.raises(OSError, match="/var/log/progress") as raised:
        quantkit.convert(demo, "bnb-nf4", tmp_path / "out", set=QUICK, listener=log)
    assert raised.value is full
    with pytest.raises(OSError, match="/var/log/progress"):  # a verb within a verb
        quantkit.demo(tmp_path / "demo", listener=log)


class Place:
    """A path of somebody's own kind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


def test_every_kind_of_path_is_one(demo: Path, tmp_path: Path) -> None:
    source, out, text = Place(demo), Place(tmp_path / "out"), Place(demo / "heldout.txt")
    quantkit.plan(source, "bnb-nf4")
    made = quantkit.convert(source, "bnb-nf4", out, text=text, set=QUICK)
    assert made["request"]["out"] == "out"
    assert quantkit.verify(out)["status"] == "verified"
    plot = Place(tmp_path / "plot.png")
    assert quantkit.check(out, source, text=[text], set=QUICK)["gate"]["status"] == "passed"
    for folders in (out, [out]):
        quantkit.compare(folders, source, text=text, set=QUICK, plot=plot)


@pytest.mark.parametrize(
    "start",
    [
        "torch.set_default_dtype(torch.float64)",
        "torch.set_default_device('meta')",
        "torch.autocast('cpu', torch.bfloat16).__enter__()",
    ],
)
def test_what_a_program_has_set_in_torch_changes_nothing(
    demo: Path, demo_nf4: Converted, tmp_path: Path, start: str
) -> None:
    quantkit.convert(demo, "bnb-nf4-double", tmp_path / "usual", no_gate=True)
    code = f"""
import torch, quantkit
{start}
quantkit.convert({str(demo)!r}, "bnb-nf4-double", {str(tmp_path / "set")!r}, no_gate=True)
set = ["evaluation.max_windows=2", "evaluation.new_tokens=2"]
text, made = {str(demo_nf4.text)!r}, {str(demo_nf4.folder)!r}
print(quantkit.check(made, {str(demo)!r}, text=text, set=set)["gate"]["status"])
print(torch.ones(1).dtype, torch.get_default_device(), torch.is_autocast_enabled("cpu"))
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    status, left = done.stdout.splitlines()
    assert status == "passed"
    assert left in ("torch.float64 cpu False", "torch.float32 meta False", "torch.float32 cpu True")
    names = ("usual", "set")
    one, other = ((tmp_path / each / "model.safetensors").read_bytes() for each in names)
    assert one == other


@pytest.mark.parametrize("given", [None, 5, ["x"], b"x", {"a": 1}, True, quantkit.recipes()[0]])
def test_no_path_is_told_what_was_expected(tmp_path: Path, given: Any) -> None:
    calls = {
        "convert: source": lambda: quantkit.convert(given, "bnb-nf4", tmp_path / "out"),
        "convert: recipe": lambda: quantkit.convert(tmp_path, given, tmp_path / "out"),
        "convert: out": lambda: quantkit.convert(tmp_path, "bnb-nf4", given),
        "plan: source": lambda: quantkit.plan(given, "bnb-nf4"),
        "verify: path_or_repo": lambda: quantkit.verify(given),
        "check: against": lambda: quantkit.check(tmp_path, given),
        "check_tokenizer: path": lambda: quantkit.check_tokenizer(given),
        "publish: dir": lambda: quantkit.publish(given, "me/x"),
        "eval: dir": lambda: quantkit.eval(given, "jnli"),
        "load_recipe: name_or_path": lambda: quantkit.load_recipe(given),
        "demo: out": lambda: quantkit.demo(given),
    }
    for where, call in calls.items():
        with pytest.raises(UsageError, match=f"^{where}: expected a text or a path, got "):
            call()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"allow_withdrawn": "false"}, "allow_withdrawn: expected True or False, got str 'false'"),
        ({"no_gate": 1}, "no_gate: expected True or False, got int 1"),
        ({"revision": 5}, "revision: expected a text or None, got int 5"),
        (
            {"set": {"method.block_size": 128}},
            "set: expected a text or several in a list, got dict",
        ),
        ({"set": ["a=1", 2]}, "set: each of several: expected a text, got int 2"),
        ({"text": [None]}, "text: each of several: expected a text or a path, got None"),
        ({"checksums": 7}, "checksums: expected a text or a path or several in a list, got int 7"),
        ({"listener": None}, "listener: expected a function, got None"),
        ({"device": ["cpu"]}, r"device \['cpu'\]: expected one of auto, cpu, cuda"),
    ],
)
def test_no_option_is_told_what_was_expected(
    demo: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        quantkit.convert(demo, "bnb-nf4", tmp_path / "out", **options)
    assert not [*tmp_path.iterdir()]


def test_a_child_that_was_forked_meanwhile_does_not_hold_the_output(
    demo: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    end = context.Event()
    child = context.Process(target=end.wait, daemon=True)

    def stop(event: Event) -> None:
        if event.stage == "gate":
            child.start()
            raise Cancelled

    with pytest.raises(Cancelled):
        quantkit.convert(demo, "bnb-nf4", tmp_path / "out", set=QUICK, listener=stop)
    assert (tmp_path / "out.partial").is_dir()
    try:
        quantkit.convert(demo, "bnb-nf4", tmp_path / "out", no_gate=True)
    finally:
        end.set()
        child.join()


def test_every_error_comes_whole_out_of_another_process() -> None:
    for info in pkgutil.walk_packages(quantkit.__path__, "quantkit."):
        if "loops" not in info.name and not info.name.endswith(("__main__", "_cuda")):
            importlib.import_module(info.name)

    def below(kind: type[errors.QuantkitError]) -> Iterator[type[errors.QuantkitError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from below(each)

    for kind in below(errors.QuantkitError):
        error = kind("said", {"status": "failed"})
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (kind, "said", vars(error))


def test_gates_in_threads_take_turns(demo: Path, demo_nf4: Converted, demo_int8: Converted) -> None:
    loggers = [logging.getLogger(name) for name in ("transformers", "bitsandbytes", "accelerate")]
    before = sys.stdout, [each.level for each in loggers]
    found = []

    def work(folder: Path) -> None:
        found.append(quantkit.check(folder, demo, text=demo / "heldout.txt", set=QUICK)["gate"])

    threads = [Thread(target=work, args=(each.folder,)) for each in (demo_nf4, demo_int8) * 2]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [gate["status"] for gate in found] == ["passed"] * 4
    assert before == (sys.stdout, [each.level for each in loggers])


def test_home_is_found_and_a_name_that_begins_alike_is_a_name(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(quantkit.recipe.recipe_text("bnb-nf4"))
    assert quantkit.load_recipe("~/mine.toml").name == "bnb-nf4"
    quantkit.convert(demo, "~/mine.toml", "~nobody-of-that-name", no_gate=True)
    assert quantkit.verify("~nobody-of-that-name")["status"] == "verified"
    assert (tmp_path / "~nobody-of-that-name" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["a\0b", "x" * 250, "x" * 5000])
def test_names_that_none_can_have(demo: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no file can be called that"):
        quantkit.convert(demo, "bnb-nf4", tmp_path / name, no_gate=True)


def test_a_name_that_no_bytes_are_read_as(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        quantkit.plan(tmp_path / "\ud800", "bnb-nf4")


def test_what_there_is_can_be_found() -> None:
    assert {*quantkit.__all__, "errors"} <= {*dir(quantkit)}
    assert quantkit.errors is errors
    assert (Path(quantkit.__file__).parent / "py.typed").is_file()
