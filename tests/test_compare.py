"""``compare`` and ``check`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commanding import refused, succeeded
from conftest import Converted
from PIL import Image
from typer.testing import CliRunner

import quantkit
from quantkit.cli.app import app

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
