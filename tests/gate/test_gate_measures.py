"""The gate's figures are those of an independent script, to four significant digits."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import independent_measures
import pytest
import torch
from conftest import Converted
from independent_measures import measure

import quantkit
from quantkit.gate.likelihood import check_likelihood
from quantkit.gate.models import LoadingReport
from quantkit.gate.reload import WeightError, check_reload
from quantkit.gate.scoring import Scores
from quantkit.recipe import load_recipe


def figures(found: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The gate's measures, or a part's of them, under the script's names."""
    perplexity, divergence = found["perplexity"], found["kl_divergence"]
    low, high = perplexity["ratio_interval"]
    named = {
        "reference": perplexity["reference"],
        "quantized": perplexity["quantized"],
        "ratio": perplexity["ratio"],
        "ratio_low": low,
        "ratio_high": high,
        "top1": found["top1_agreement"],
        "change_rms": found["probability_change_rms"],
        "tokens": perplexity["tokens"],
        **{f"kl_{name}": divergence[name] for name in ("mean", "median", "p90", "p99", "max")},
    }
    return {f"{prefix}{name}": value for name, value in named.items()}


def assert_same(manifest: dict[str, Any], independent: dict[str, float]) -> None:
    """Every figure equal to four significant digits, the noise floor's too."""
    gate = manifest["gate"]
    found = figures(gate)
    if gate["noise_floor"]:
        found |= figures(gate["noise_floor"], "floor_")
    assert found.keys() == independent.keys()
    for name, value in found.items():
        # half a unit of the fourth digit, at least
        assert value == pytest.approx(independent[name], rel=5e-5), name


def test_the_script_is_independent() -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(independent_measures.__file__).read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
    assert "transformers" in names
    assert not any(name.startswith(("quantkit", "safetensors")) for name in names)


def test_the_demo_model_in_nf4(demo_nf4: Converted) -> None:
    assert_same(demo_nf4.manifest, measure(demo_nf4.source, demo_nf4.folder, demo_nf4.text))


def test_the_demo_model_in_int8(demo_int8: Converted) -> None:
    assert_same(demo_int8.manifest, measure(demo_int8.source, demo_int8.folder, demo_int8.text))


def test_mini_rinna_with_sentencepieces_ids(mini_rinna: Path, tmp_path: Path) -> None:
    text = mini_rinna / "heldout.txt"
    short = "evaluation.window=256"
    manifest = converted(mini_rinna, "bnb-nf4", tmp_path / "out", text, 3, short)
    assert_same(manifest, measure(mini_rinna, tmp_path / "out", text, window=256, max_windows=3))


@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-int8", "fp16"])
def test_stories260k_on_its_token_ids(stories260k: Path, tmp_path: Path, recipe: str) -> None:
    ids = stories260k / "token_ids.json"
    manifest = converted(stories260k, recipe, tmp_path / "out", ids, 8)
    assert_same(manifest, measure(stories260k, tmp_path / "out", ids, max_windows=8))


def test_each_text_alone_and_all_together(demo_nf4: Converted, tmp_path: Path) -> None:
    """Two texts: the figures of each are those it has when it is the only one."""
    whole = demo_nf4.text.read_text()
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for path, part in zip(texts, (whole[:4000], whole[4000:7000]), strict=True):
        path.write_text(part)
    found = quantkit.check(demo_nf4.folder, demo_nf4.source, text=texts)["gate"]
    assert [each["text"] for each in found["by_text"]] == ["one.txt", "two.txt"]
    for each, path in zip(found["by_text"], texts, strict=True):
        alone = measure(demo_nf4.source, demo_nf4.folder, path)
        for name, value in figures(each).items():
            assert value == pytest.approx(alone[name], rel=5e-5), name
    tokens = [each["perplexity"]["tokens"] for each in found["by_text"]]
    assert found["perplexity"]["tokens"] == sum(tokens)


def converted(
    source: Path, recipe: str, out: Path, text: Path, windows: int, *more: str
) -> dict[str, Any]:
    """With thresholds out of the way: figures are compared here, not judged."""
    overrides = [
        f"evaluation.max_windows={windows}",
        "evaluation.new_tokens=1",
        "gate.max_perplexity_ratio=9.0",
        "gate.max_kl_mean=9.0",
        "gate.min_top1_agreement=0.0",
        "gate.min_generation_agreement=0.0",
        'evaluation.prompts=["a"]',
        *more,
    ]
    return quantkit.convert(source, recipe, out, text=text, set=overrides)


# judging figures


def scores(nll: float, quantized: float, kl: float, same: float) -> Scores:
    means = (nll, quantized, kl, same, 0.0)
    made = (torch.full((10,), each, dtype=torch.float64) for each in means)
    return Scores(*made, torch.zeros(10, dtype=torch.int64))


def judged(*values: float) -> list[str]:
    level = check_likelihood(scores(*values), load_recipe("bnb-nf4").gate, {})
    assert (level.outcome == "failed") == bool(level.failures)
    return [each.measure for each in level.failures]


def test_thresholds_are_held() -> None:
    assert judged(3.0, 3.1, 0.1, 0.9) == []
    assert judged(3.0, 3.2, 0.1, 0.9) == ["perplexity ratio"]
    assert judged(3.0, 3.1, 0.2, 0.9) == ["mean KL divergence"]
    assert judged(3.0, 3.1, 0.1, 0.7) == ["top-1 agreement"]


def test_no_number_is_a_failure() -> None:
    nan = float("nan")
    assert "perplexity ratio" in judged(3.0, nan, 0.1, 0.9)
    assert "perplexity ratio" in judged(nan, 3.0, 0.1, 0.9)
    assert "mean KL divergence" in judged(3.0, 3.1, nan, 0.9)


LIMIT = load_recipe("bnb-nf4").gate.max_weight_error


@pytest.mark.parametrize(
    ("error", "measure"),
    [
        (WeightError("w", LIMIT, 1.0), ""),
        (WeightError("w", equal=True), ""),
        (WeightError("w", LIMIT * 1.001, 0.5), "weight error"),
        (WeightError("w", LIMIT / 2, 1.001), "block error, of its bound"),
        (WeightError("w", LIMIT / 2, 0.5, table=False), "quant_map"),
        (WeightError("w", equal=False), "weight"),
    ],
)
def test_every_limit_on_a_weight_is_held_alone(error: WeightError, measure: str) -> None:
    """Whichever weight it is: one that is better comes before it, and one after it."""
    better = WeightError("better", LIMIT / 4, 0.1)
    level = check_reload(LoadingReport(), [better, error, better], load_recipe("bnb-nf4").gate)
    found = [(each.measure, each.where) for each in level.failures]
    assert found == ([(measure, "w")] if measure else [])
    assert level.outcome == ("failed" if measure else "passed")
    # the recipe's own limit does not end the walk: every weight is measured before it speaks
    assert error.fits == (measure in ("", "weight error"))


def test_a_folder_without_a_quantized_weight_has_no_worst_one() -> None:
    kept = [WeightError("norm", equal=True)]
    level = check_reload(LoadingReport(), kept, load_recipe("fp16").gate)
    assert level.outcome == "passed"
    assert level.measures["modules_compared"] == 1
    assert level.measures["worst_module"] == ""
    assert level.measures["min_snr_db"] is None


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("nll", [800.0, float("inf")])
def test_absurd_likelihoods_are_a_verdict_not_a_crash(nll: float) -> None:
    assert "perplexity ratio" in judged(3.0, nll, nll, 0.0)


@pytest.mark.parametrize("recipe", ["bnb-nf4-double", "bnb-fp4"])
def test_good_conversions_of_stories260k_reload(
    stories260k: Path, tmp_path: Path, recipe: str
) -> None:
    """Small blocks beside large ones: a quantized absmax is at its worst here."""
    text = stories260k / "token_ids.json"
    few = ["evaluation.max_windows=2", "evaluation.new_tokens=2", "gate.max_kl_mean=9.0"]
    few += ["gate.max_perplexity_ratio=9.0", "gate.min_top1_agreement=0.0"]
    few += ["gate.min_generation_agreement=0.0"]
    manifest = quantkit.convert(stories260k, recipe, tmp_path / "out", text=text, set=few)
    assert manifest["gate"]["levels"]["reload"] == "passed"
