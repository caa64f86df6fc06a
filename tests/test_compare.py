"""``compare`` and ``check`` on the command line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commanding import refused, succeeded
from conftest import Converted
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import write_source
from typer.testing import CliRunner

import quantkit
from quantkit.cli.app import app
from quantkit.errors import SourceError
from quantkit.gate import several

FEW = ["evaluation.max_windows=3", "evaluation.new_tokens=4"]
QUICK = [each for pair in FEW for each in ("--set", pair)]


@pytest.fixture(scope="module")
def alone(demo_nf4: Converted, demo_int8: Converted) -> list[dict]:
    several = [*FEW, "evaluation.by_layer=true"]
    return [
        quantkit.check(made.folder, made.source, text=made.text, set=several)["gate"]
        for made in (demo_nf4, demo_int8)
    ]


@pytest.mark.parametrize("more", [[], ["--set", "evaluation.by_layer=true"]])
def test_one_pass_gives_what_check_gives_alone(
    demo_nf4: Converted, demo_int8: Converted, alone: list[dict], tmp_path: Path, more: list[str]
) -> None:
    plot = tmp_path / "plot.png"
    said = succeeded(
        "compare", demo_nf4.folder, demo_int8.folder, "--against", demo_nf4.source,
        "--text", demo_nf4.text, "--plot", plot, "--json", *QUICK, *more,
    )  # fmt: skip
    found = json.loads(said)
    assert [each["format"] for each in found["folders"]] == ["bnb nf4", "bnb int8"]
    for row, made, gate in zip(found["folders"], (demo_nf4, demo_int8), alone, strict=True):
        assert row["perplexity"]["ratio"] == gate["perplexity"]["ratio"]
        assert row["kl_divergence"]["p99"] == gate["kl_divergence"]["p99"]
        assert row["max_weight_error"] == gate["reload"]["max_weight_error"]
        assert row["bytes"] == (made.folder / "model.safetensors").stat().st_size
        assert found["noise_floor"]["kl_divergence"]["mean"] < row["kl_divergence"]["mean"]
    assert found["text_sha256"]
    with Image.open(plot) as image:
        assert image.size[0] > 400


def tampered(folder: Path, copy: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


NORM = "gpt_neox.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("embed_out.weight"), "missing tensors.*lm_head"),
        (lambda tensors: tensors.pop(NORM), "missing tensors.*input_layernorm"),
        (lambda tensors: tensors[NORM].fill_(float("nan")), "input_layernorm"),
        (lambda tensors: tensors.update({NORM: tensors[NORM].to(torch.int8)}), "data type.*int8"),
        (lambda tensors: tensors.pop(next(k for k in tensors if k.endswith("absmax"))), "absmax"),
    ],
)
def test_what_is_not_whole_is_not_measured(
    demo_nf4: Converted, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object],
    said: str,
) -> None:  # fmt: skip
    """transformers would fill in what is missing, and the figures be of that."""
    copy = tampered(demo_nf4.folder, tmp_path / "copy", change)
    with pytest.raises(SourceError, match=f"not to be compared: .*{said}"):
        quantkit.compare([copy], demo_nf4.source, set=FEW)
    assert quantkit.check(copy, demo_nf4.source, set=FEW)["gate"]["status"] == "failed"


def test_another_models_vocabulary_is_named(demo_nf4: Converted, tmp_path: Path) -> None:
    source = write_source(tmp_path / "other")
    quantkit.convert(source, "bnb-nf4", tmp_path / "other-nf4", no_gate=True)
    assert "a vocabulary of" in refused(
        1, "compare", tmp_path / "other-nf4", "--against", demo_nf4.source
    )


def test_what_a_models_code_raises_is_said_in_words(
    demo_nf4: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **named: object) -> None:
        raise RuntimeError("mat1 and mat2")

    monkeypatch.setattr(several, "score", broken)
    assert "cannot be opened and run: mat1" in refused(
        1, "compare", demo_nf4.folder, "--against", demo_nf4.source, *QUICK
    )


def test_other_weights_beside_are_told_of_and_not_counted(
    demo_nf4: Converted, tmp_path: Path
) -> None:
    copy = shutil.copytree(demo_nf4.folder, tmp_path / "copy")
    size = (copy / "model.safetensors").stat().st_size
    (copy / "training_args.bin").write_bytes(bytes(5000))
    found = quantkit.check(copy, demo_nf4.source, set=FEW)
    assert found["sizes"]["output_bytes"] == size
    assert found["gate"]["status"] == "passed"
    assert any("training_args.bin" in each for each in found["gate"]["structure"]["remarks"])
    (copy / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    found = quantkit.check(copy, demo_nf4.source, set=FEW)
    assert any("__class__" in each for each in found["gate"]["failures"])
    (copy / "adapter_config.json").write_text("{}")
    found = quantkit.check(copy, demo_nf4.source, set=FEW)
    assert any("adapter_config.json" in each for each in found["gate"]["failures"])


def test_the_table_has_a_row_a_folder(demo_nf4: Converted) -> None:
    said = succeeded(
        "compare", demo_nf4.folder, "--against", demo_nf4.source, "--text", demo_nf4.text,
        "--set", "evaluation.max_windows=1",
    )  # fmt: skip
    assert "bnb-nf4" in said
    assert "49.0%" in said
    assert "noise" in said


def test_check_says_what_failed_and_exits_with_4(demo_nf4: Converted) -> None:
    asked = ["check", demo_nf4.folder, "--against", demo_nf4.source, "--text", demo_nf4.text]
    asked += [*QUICK, "--set", "gate.max_kl_mean=1e-9"]
    result = CliRunner().invoke(app, [str(each) for each in asked])
    assert result.exit_code == 4
    assert "mean KL divergence" in result.stdout
    json_too = CliRunner().invoke(app, [str(each) for each in [*asked, "--json"]])
    assert json_too.exit_code == 4
    found = json.loads(json_too.stdout)
    assert found["gate"]["status"] == "failed"
    assert found["thresholds"]["max_kl_mean"] == 1e-9
    assert "examples" not in found["gate"]["generation"]


def test_check_writes_nothing(demo_nf4: Converted) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo_nf4.folder.rglob("*")}
    quantkit.check(demo_nf4.folder, demo_nf4.source, text=demo_nf4.text, set=FEW)
    assert before == {path: path.stat().st_mtime_ns for path in demo_nf4.folder.rglob("*")}


@pytest.mark.parametrize("verb", ["check", "compare"])
def test_bad_folders_are_one_line(demo: Path, tmp_path: Path, verb: str) -> None:
    assert "no config.json" in refused(2, verb, tmp_path, "--against", demo)
    assert "no such" in refused(2, verb, demo, "--against", tmp_path / "gone")
    assert "not UTF-8" in refused(2, verb, tmp_path / os.fsdecode(b"\xff"), "--against", demo)
    assert "no file can be called" in refused(2, verb, "x" * 256, "--against", demo)


def test_what_must_not_be_overwritten(demo_nf4: Converted, tmp_path: Path) -> None:
    """Before anything is measured."""
    taken = tmp_path / "taken.png"
    taken.write_text("no picture")
    weights = demo_nf4.folder / "model.safetensors"
    before = weights.stat()
    for plot in (weights, demo_nf4.folder / "new.png", tmp_path / "x.jpg", tmp_path, taken):
        refused(2, "compare", demo_nf4.folder, "--against", demo_nf4.source, "--plot", plot)
    assert weights.stat() == before
    assert taken.read_text() == "no picture"
    said = refused(2, "check", demo_nf4.folder, "--against", demo_nf4.source,
                   "--report", demo_nf4.folder)  # fmt: skip
    assert "a folder with a model" in said


def test_the_same_thing_twice(demo_nf4: Converted, tmp_path: Path) -> None:
    said = refused(2, "compare", demo_nf4.folder, demo_nf4.folder, "--against", demo_nf4.source)
    assert "twice" in said
    text = ("--text", demo_nf4.text)
    said = refused(2, "check", demo_nf4.folder, "--against", demo_nf4.source, *text, *text)
    assert "count twice" in said


@pytest.mark.parametrize(
    ("ids", "said"),
    [("[[99999]]", "fewer than two"), ("[[5, 99999]]", "vocab_size"), ("[[5, -1]]", "got -1"),
     ("[5, 1.5]", "got 1.5"), ('{"a": 3}', "whole numbers")],
)  # fmt: skip
def test_ids_of_another_model(demo_nf4: Converted, tmp_path: Path, ids: str, said: str) -> None:
    path = tmp_path / "ids.json"
    path.write_text(ids)
    asked = ("check", demo_nf4.folder, "--against", demo_nf4.source, "--text", path)
    assert said in refused(2, *asked)


@pytest.mark.parametrize("settings", ['"bnb"', "[1]", '{"quant_method": 5}'])
def test_settings_that_are_none(demo_nf4: Converted, tmp_path: Path, settings: str) -> None:
    copy = shutil.copytree(demo_nf4.folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = json.loads(settings)
    (copy / "config.json").write_text(json.dumps(config))
    said = refused(1, "check", copy, "--against", demo_nf4.source)
    assert "expected an object" in said


def test_a_handful_of_tokens_shows_nothing(demo_nf4: Converted, tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text("[[5, 6]]")
    found = quantkit.check(demo_nf4.folder, demo_nf4.source, text=path, set=FEW)["gate"]
    assert found["status"] == "not_run"
    assert "1 predicted tokens are too few" in found["reasons"]["perplexity"]
