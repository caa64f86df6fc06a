"""quantkit called from somebody's own program."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from threading import Thread

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
            checksums=(tmp_path / "demo").glob("registry"),  # type: ignore[arg-type]
        )  # fmt: skip
    overrides = iter([*QUICK, "method.block_size=128"])
    made = quantkit.convert(
        demo, "bnb-nf4", tmp_path / "out", text=demo.glob("heldout.txt"),
        set=overrides,  # type: ignore[arg-type]
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
