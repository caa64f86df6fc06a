"""The gate's figures are those of an independent script, to four significant digits."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import independent_measures
import numpy as np
import pytest
import torch
from conftest import Converted
from independent_measures import measure

import quantkit
from quantkit.gate.likelihood import (
    Domain,
    blocks,
    check_likelihood,
    histogram,
    likelihood_measures,
    ratio_interval,
)
from quantkit.gate.models import LoadingReport
from quantkit.gate.reload import WeightError, check_reload
from quantkit.gate.scoring import Candidate, Scores, score
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
    manifest = converted(mini_rinna, "bnb-nf4", tmp_path / "out", text, 2, short)
    assert_same(manifest, measure(mini_rinna, tmp_path / "out", text, window=256, max_windows=2))


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
    assert "perplexity ratio" in judged(800.0, 3.0, 0.1, 0.9), "better than nothing at all"
    assert "mean KL divergence" in judged(3.0, 3.1, nan, 0.9)


@dataclass(frozen=True)
class Given:
    """A runner of logits that are given, for windows of its own."""

    logits_of: list[torch.Tensor]

    def logits(self, window: int) -> torch.Tensor:
        return self.logits_of[window]


def test_scores_are_those_of_each_token_and_window() -> None:
    """Windows longer than what is compared at a time; a candidate that knows only some."""
    drawn = torch.Generator().manual_seed(0)
    windows = [torch.randint(0, 9, (n,), generator=drawn).tolist() for n in (150, 2, 70)]
    source, saved = (
        [torch.randn(len(each), 9, generator=drawn) for each in windows] for _ in range(2)
    )
    done: list[int] = []
    candidates = [Candidate(Given(saved), range(3)), Candidate(Given(saved[2:]), (2,))]
    whole, some = score(Given(source), candidates, windows, done.append)  # type: ignore[arg-type]
    assert done == [1, 2, 3]
    assert whole.window.tolist() == [0] * 149 + [1] + [2] * 69
    rows = [
        independent_measures.compare(p[:-1].double().numpy(), q[:-1].double().numpy(), ids[1:])
        for p, q, ids in zip(source, saved, windows, strict=True)
    ]
    wanted = [np.concatenate(each) for each in zip(*rows, strict=True)]
    names = ("reference", "quantized", "kl", "same_top", "change")
    for name, values in zip(names, wanted, strict=True):
        assert getattr(whole, name).numpy() == pytest.approx(values.astype(float)), name
        assert torch.equal(getattr(some, name), getattr(whole.of([2]), name)), name
    assert some.window.tolist() == [2] * 69
    low, high = independent_measures.interval([row[1] - row[0] for row in rows])
    assert ratio_interval(whole) == pytest.approx([low, high])
    assert ratio_interval(whole.of([1])) is None, "one block has no spread"


def test_the_interval_needs_numbers_and_two_blocks() -> None:
    means = [torch.linspace(0, 1, 128, dtype=torch.float64) ** each for each in range(5)]
    two, one = (Scores(*means, torch.arange(128) // each) for each in (127, 128))
    assert blocks(two).tolist() == [0] * 64 + [1] * 63 + [2]
    assert blocks(one).tolist() == [0] * 64 + [1] * 64
    assert ratio_interval(one) is not None
    one.quantized[5] = torch.inf
    assert ratio_interval(one) is None


def test_the_histogram_counts_every_token_once() -> None:
    """Four bins a decade from 1e-9 to 100 nats; what lies beyond is in the first or last."""
    found = scores(3.0, 3.0, 0.0, 1.0)
    kl = [0.0, 1e-12, 1.1e-9, 2e-9, 0.11, 0.2, 90.0, 1e9, float("inf"), float("nan")]
    found.kl[:] = torch.tensor(kl, dtype=torch.float64)
    counts = histogram(found)
    assert len(counts) == 44
    assert {at: each for at, each in enumerate(counts) if each} == {0: 3, 1: 1, 32: 1, 33: 1, 43: 4}


def test_the_level_tells_of_each_text_and_of_the_floor() -> None:
    found, floor = scores(3.0, 3.1, 0.1, 0.9), scores(3.0, 3.0, 0.01, 1.0)
    found.window[6:] = 1
    found.quantized[6:] = 3.3
    floor.window[3:] = 8
    limits = load_recipe("bnb-nf4").gate
    texts = [Domain("a", "aa", range(1)), Domain("b", "bb", range(1, 2))]
    measures = check_likelihood(found, limits, {"protocol": "so"}, texts, floor).measures
    assert measures["perplexity"]["protocol"] == "so"
    assert measures["kl_divergence"]["histogram"] == histogram(found)
    assert measures["noise_floor"]["histogram"] == histogram(floor)
    assert measures["noise_floor"]["windows"] == 2
    assert measures["noise_floor"]["kl_divergence"]["mean"] == pytest.approx(0.01)
    ratios = [exp(0.1), exp(0.3)]
    told = [(each["text"], each["sha256"], each["perplexity"]) for each in measures["by_text"]]
    assert [each[:2] for each in told] == [("a", "aa"), ("b", "bb")]
    assert [each[2]["ratio"] for each in told] == pytest.approx(ratios)
    assert [each[2]["tokens"] for each in told] == [6, 4]
    alone = check_likelihood(found, limits, {}).measures
    assert (alone["noise_floor"], alone["by_text"]) == (None, [])


@pytest.mark.parametrize("bound", ["max_perplexity_ratio", "max_kl_mean", "min_top1_agreement"])
def test_a_measure_may_be_what_its_limit_is(bound: str) -> None:
    found = scores(3.0, 3.125, 0.125, 0.75)
    measures = likelihood_measures(found)
    exact = {
        "max_perplexity_ratio": measures["perplexity"]["ratio"],
        "max_kl_mean": 0.125,
        "min_top1_agreement": 0.75,
    }
    limits = load_recipe("bnb-nf4").gate.model_copy(update=exact)
    assert check_likelihood(found, limits, {}).failures == ()
    stricter = exact[bound] * (1.001 if bound.startswith("min") else 0.999)
    failed = check_likelihood(found, limits.model_copy(update={bound: stricter}), {}).failures
    assert len(failed) == 1


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


def test_the_worst_weights_are_told_in_decibels() -> None:
    errors = [WeightError("a", 0.01, 0.1), WeightError("b", 0.1, 0.2), WeightError("c")]
    measures = check_reload(LoadingReport(), errors, load_recipe("bnb-nf4").gate).measures
    assert (measures["max_weight_error"], measures["worst_module"]) == (0.1, "b")
    assert measures["min_snr_db"] == pytest.approx(20.0)
    told = [(each["name"], each["error"], each["snr_db"]) for each in measures["modules"]]
    assert told == [("a", 0.01, pytest.approx(40.0)), ("b", 0.1, pytest.approx(20.0)),
                    ("c", 0.0, float("inf"))]  # fmt: skip


@pytest.mark.parametrize("kind", ["missing", "unexpected", "mismatched"])
def test_whatever_the_loading_report_names_is_a_failure(kind: str) -> None:
    report = LoadingReport(**{kind: ("head.weight", "norm.weight")})
    level = check_reload(report, [WeightError("w", equal=True)], load_recipe("fp16").gate)
    assert level.outcome == "failed"
    assert [str(each) for each in level.failures] == [
        f"reload: {kind} weights: 2 at head.weight, expected 0"
    ]


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
