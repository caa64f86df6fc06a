"""eval without lm-evaluation-harness: what is made of its answers, and what becomes of the folder.

The library itself runs in tests/oracle/test_eval_harness.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commanding import refused, succeeded
from conftest import Converted
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

import quantkit
from quantkit import benchmarking, subject
from quantkit.amending import amend, staging_to_amend
from quantkit.card import render_card
from quantkit.cli import benchmarks
from quantkit.errors import GateError, MismatchError, StorageError, UsageError
from quantkit.frontmatter import read_card
from quantkit.harness import Answers, Loaded, QuestionSettings, _loaded
from quantkit.outcomes import answer_lines, outcomes
from quantkit.records import read_manifest, read_raw, write_manifest
from quantkit.tasks import local_names, read_tasks

QUESTIONS = [
    {"q_id": at, "question": f"「{at}」の次の数字は？", "choice0": "一", "choice1": "二",
     "choice2": "三", "choice3": "四", "choice4": "五", "label": at}
    for at in range(5)
]  # fmt: skip

#: Which choice each model takes, question by question: right are 4 of 5, and 2 of 5.
SOURCE, QUANTIZED = [0, 1, 2, 3, 0], [0, 1, 1, 2, 1]


def write_questions(folder: Path, rows: Sequence[object] = QUESTIONS) -> Path:
    path = folder / "questions.json"
    lines = (each if isinstance(each, str) else json.dumps(each) for each in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def answers(chosen: Sequence[int], *names: str) -> Answers:
    """What the library reports of a model that takes these choices of every task."""
    score = [float(at == label) for label, at in enumerate(chosen)]
    mean = sum(score) / len(score)
    error = sqrt(mean * (1 - mean) / (len(score) - 1))
    said = [[(-1.0 - (at != choice), False) for choice in range(5)] for at in chosen]
    samples = [
        {"doc_id": at, "filter": "none", "filtered_resps": each, "metrics": ["acc"],
         "acc": score[at], "doc": {"question": "何"}}
        for at, each in enumerate(said)
    ]  # fmt: skip
    figures = {"name": "x", "alias": "x", "sample_len": 5, "acc,none": mean,
               "acc_stderr,none": error}  # fmt: skip
    return Answers(
        results=dict.fromkeys(names, figures),
        samples=dict.fromkeys(names, samples),
        counts={name: {"original": 5, "effective": 5} for name in names},
        shots=dict.fromkeys(names, 0),
        versions=dict.fromkeys(names, 1.0),
        better={name: {"acc": True} for name in names},
        truncated=0,
    )


def loaded(*names: str) -> Loaded:
    config = SimpleNamespace(dataset_path="some/data", dataset_name="part")
    tasks = {name: SimpleNamespace(config=config, instances=[]) for name in names}
    return Loaded(tasks, {}, {name: (name,) for name in names})


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[QuestionSettings]:
    """lm-evaluation-harness played by the answers above; how it was asked, model by model."""
    asked: list[QuestionSettings] = []

    def ask(
        model: Any, tokenizer: Any, tasks: Loaded, asking: QuestionSettings, told: Any
    ) -> Answers:
        asked.append(asking)
        told(5, 5)
        return answers((SOURCE, QUANTIZED)[(len(asked) - 1) % 2], *tasks.tasks)

    monkeypatch.setattr(benchmarking, "require_harness", lambda: "lm-eval 0.0")
    monkeypatch.setattr(benchmarking, "load_tasks", lambda wanted, form: loaded(*wanted.names))
    monkeypatch.setattr(benchmarking, "ask", ask)
    # nobody asks them, so neither model is loaded
    monkeypatch.setattr(benchmarking, "load_plain", lambda opened, dtype, device: None)
    monkeypatch.setattr(
        benchmarking, "load_saved", lambda opened, device: SimpleNamespace(model=None)
    )
    return asked


@pytest.fixture
def folder(demo_nf4: Converted, tmp_path: Path) -> Path:
    return shutil.copytree(demo_nf4.folder, tmp_path / "demo-nf4")


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def run(folder: Path, demo: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    data = [f"jcommonsenseqa={write_questions(tmp_path)}"]
    return quantkit.eval(folder, "jcommonsenseqa", data=data, source=demo, **more)


# what is made of the answers


def test_figures_with_their_errors_and_the_paired_difference() -> None:
    (found,) = outcomes(loaded("x"), answers(SOURCE, "x"), answers(QUANTIZED, "x"))
    assert (found["task"], found["questions"], found["of"], found["shots"]) == ("x", 5, 5, 0)
    (metric,) = found["metrics"]
    assert metric["source"] == {"value": 0.8, "stderr": pytest.approx(0.2)}
    assert metric["quantized"]["value"] == 0.4
    assert metric["difference"]["value"] == pytest.approx(-0.4)
    # -1 twice and 0 thrice: variance (2 * 0.36 + 3 * 0.16) / 4
    assert metric["difference"]["stderr"] == pytest.approx(sqrt(0.3 / 5))
    assert found["same_answers"] == 2


def test_a_task_of_two_filters_has_each_question_once() -> None:
    """As gsm8k does: alike are the questions that are alike by both."""

    def filtered(chosen: Sequence[int]) -> Answers:
        ours = answers(chosen, "x")
        said = [
            {**each, "filter": name, "filtered_resps": [f"{chosen[at]}"[: name == "strict"]]}
            for name in ("strict", "loose") for at, each in enumerate(ours.samples["x"])
        ]  # fmt: skip
        figures = {"acc,strict": 0.5, "acc,loose": 0.25}
        return Answers(**{**vars(ours), "samples": {"x": said}, "results": {"x": figures}})

    (found,) = outcomes(loaded("x"), filtered(SOURCE), filtered(QUANTIZED))
    assert found["same_answers"] == 2
    shown = benchmarks._rows({"benchmarks": [found], "recorded": True})
    assert [name.strip() for name, _ in shown] == ["x", "acc (strict)", "acc (loose)"]


def test_a_figure_that_is_no_mean_has_no_difference() -> None:
    ours, theirs = answers(SOURCE, "x"), answers(QUANTIZED, "x")
    results = {"x": {**ours.results["x"], "acc,none": 0.7, "acc_stderr,none": "N/A"}}
    changed = Answers(**{**vars(ours), "results": results})
    (found,) = outcomes(loaded("x"), changed, theirs)
    assert found["metrics"][0]["difference"] is None
    assert found["metrics"][0]["source"] == {"value": 0.7, "stderr": None}


def test_an_infinite_figure_is_a_text() -> None:
    ours = answers(SOURCE, "x")
    results = {"x": {"perplexity,none": float("inf"), "perplexity_stderr,none": float("nan")}}
    (found,) = outcomes(loaded("x"), Answers(**{**vars(ours), "results": results}), ours)
    assert found["metrics"][0]["source"] == {"value": "inf", "stderr": "nan"}


def test_answers_hold_numbers_and_no_text() -> None:
    lines = answer_lines("x", answers(SOURCE, "x"), answers(QUANTIZED, "x")).decode()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [each["question"] for each in rows] == [0, 1, 2, 3, 4]
    assert rows[2]["source"] == {"log_probabilities": [-2.0, -2.0, -1.0, -2.0, -2.0], "acc": 1.0}
    assert rows[2]["quantized"]["acc"] == 0.0
    assert "何" not in lines


# the folder


def test_figures_go_into_manifest_and_card(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    before = read_manifest(folder)
    found = run(folder, demo, tmp_path)
    assert found["recorded"]
    manifest = read_manifest(folder)
    assert manifest["benchmarks"] == found["benchmarks"]
    same = ("source", "recipe", "gate", "plan", "conversion", "sizes", "created")
    assert all(manifest[each] == before[each] for each in same)
    card = (folder / "README.md").read_text()
    assert card == render_card(manifest)
    assert quantkit.verify(folder)["gate"] == "passed"
    (result,) = manifest["benchmarks"]
    assert result["data"]["name"] == "questions.json"
    assert len(result["data"]["sha256"]) == 64
    assert result["dtypes"] == {"source": "float32", "quantized": "float16"}
    assert not result["prompt_form"], "the demo model has none"
    assert [each.form for each in harness] == [False, False]


def test_every_figure_on_the_card_is_the_manifests(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    (result,) = run(folder, demo, tmp_path)["benchmarks"]
    (metric,) = result["metrics"]
    card = (folder / "README.md").read_text()
    (row,) = [each for each in card.splitlines() if each.startswith("| jcommonsenseqa |")]
    sides = (metric["source"], metric["quantized"], metric["difference"])
    figures = [each[key] for each in sides for key in ("value", "stderr")]
    shown = [float(each) for each in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", row)]
    assert shown == [*(float(f"{each:.4g}") for each in figures), result["questions"]]
    for said in (result["data"]["sha256"], "lm-eval 0.0", "same answer to 2 of 5",
                 "without a prompt form", "report/eval-jcommonsenseqa.jsonl"):  # fmt: skip
        assert said in card
    parsed = ModelCard(card)
    assert parsed.data.eval_results
    _, listed = model_index_to_eval_results(read_card(card).metadata["model-index"])
    assert {
        each.metric_name: each.metric_value
        for each in listed
        if each.dataset_name == "jcommonsenseqa"
    } == {
        "acc, source": metric["source"]["value"],
        "acc, source, standard error": metric["source"]["stderr"],
        "acc, quantized": metric["quantized"]["value"],
        "acc, quantized, standard error": metric["quantized"]["stderr"],
    }


def test_without_benchmarks_the_card_has_no_word_of_them(demo_nf4: Converted) -> None:
    assert "benchmarks" not in demo_nf4.manifest
    assert "## Benchmarks" not in render_card(demo_nf4.manifest)


def test_another_task_is_added_and_the_same_one_replaced(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    run(folder, demo, tmp_path)
    quantkit.eval(folder, ["arc_easy"], source=demo)
    first = read_manifest(folder)["benchmarks"]
    assert [each["task"] for each in first] == ["jcommonsenseqa", "arc_easy"]
    assert first[1]["data"] == {"name": "some/data", "config": "part", "sha256": None}
    run(folder, demo, tmp_path, batch_size=3)
    second = read_manifest(folder)
    assert [each["task"] for each in second["benchmarks"]] == ["arc_easy", "jcommonsenseqa"]
    assert [each["batch_size"] for each in second["benchmarks"]] == [1, 3]
    names = [each["name"] for each in second["output"]["files"]]
    assert len(names) == len(set(names))
    assert quantkit.verify(folder)["status"] == "verified"


def test_a_trial_leaves_the_folder_as_it_was(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    before = contents(folder)
    found = run(folder, demo, tmp_path, limit=2)
    assert (found["recorded"], found["limit"]) == (False, 2)
    assert found["benchmarks"]
    assert contents(folder) == before
    assert [each.name for each in tmp_path.glob("demo-nf4*")] == ["demo-nf4"]


def test_the_command_says_the_same(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    words = ("eval", folder, "--tasks", "jcommonsenseqa", "--source", demo,
             "--data", f"jcommonsenseqa={write_questions(tmp_path)}")  # fmt: skip
    said = json.loads(succeeded(*words, "--json"))
    assert said["kind"] == "eval"
    assert said["benchmarks"] == read_manifest(folder)["benchmarks"]
    shown = succeeded(*words, "--limit", "1")
    assert "source 0.8000 ± 0.2000, quantized 0.4000 ± 0.2449" in shown
    assert "nothing: a trial" in shown


def test_an_evaluated_folder_may_be_published(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings], hub: Any
) -> None:
    run(folder, demo, tmp_path)
    done = quantkit.publish(folder, "me/demo")
    assert done["status"] == "published"
    there = hub.repositories["me/demo"].files
    assert b"| jcommonsenseqa | acc |" in there["README.md"]
    assert there["report/eval-jcommonsenseqa.jsonl"].count(b"\n") == 5
    # and evaluated again, its card still names the repository
    run(folder, demo, tmp_path)
    assert read_manifest(folder)["publication"]["repo_id"] == "me/demo"
    assert 'name = "me/demo"' in (folder / "README.md").read_text()


def tamper_figure(folder: Path) -> None:
    text = (folder / "quantkit-manifest.json").read_text()
    (folder / "quantkit-manifest.json").write_text(text.replace('"value": 0.4', '"value": 0.9'))


def tamper_card(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("| 0.4 ±", "| 0.9 ±"))


def tamper_answers(folder: Path) -> None:
    path = folder / "report" / "eval-jcommonsenseqa.jsonl"
    path.write_text(path.read_text().replace('"acc": 0.0', '"acc": 1.0'))


@pytest.mark.parametrize("tamper", [tamper_figure, tamper_card, tamper_answers])
def test_a_changed_figure_is_noticed(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings],
    tamper: Callable[[Path], None],
) -> None:  # fmt: skip
    run(folder, demo, tmp_path)
    before = contents(folder)
    tamper(folder)
    assert contents(folder) != before
    with pytest.raises(MismatchError, match="has changed"):
        quantkit.verify(folder)
    with pytest.raises(MismatchError, match="has changed"):
        run(folder, demo, tmp_path)
    with pytest.raises(MismatchError, match="has changed"):
        quantkit.publish(folder, "me/demo", dry_run=True)


# whole or not at all


def amended(folder: Path) -> None:
    manifest = {**read_manifest(folder), "benchmarks": []}
    amend(staging_to_amend(folder), read_raw(folder), manifest, {"report/new.txt": b"new"})


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_disk_that_says_no_leaves_it_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The swap is of two renames; ``held`` writes its note with one before."""
    before, count, real = contents(folder), 0, os.rename

    def rename(*args: Any, **more: Any) -> None:
        nonlocal count
        count += 1
        if count == failing - 1:
            raise OSError(13, "Permission denied")
        real(*args, **more)

    monkeypatch.setattr(os, "rename", rename)
    if failing == 1:
        monkeypatch.setattr(shutil, "copytree", lambda *args, **more: rename("none", "nowhere"))
    with pytest.raises(StorageError, match="it is as it was"):
        amended(folder)
    monkeypatch.undo()
    assert contents(folder) == before
    assert [each.name for each in folder.parent.glob("demo-nf4*")] == ["demo-nf4"]


def test_a_run_killed_between_the_renames_is_made_good(folder: Path) -> None:
    before = contents(folder)
    folder.rename(folder.with_name(".demo-nf4.quantkit-replaced"))
    staging_to_amend(folder)
    assert contents(folder) == before


def test_what_a_killed_run_left_beside_is_taken_away(folder: Path) -> None:
    left = folder.with_name("demo-nf4.amended")
    left.mkdir()
    (left / "quantkit-staging.json").write_text("{}")
    (left / "half").write_text("half")
    amended(folder)
    assert not left.exists()
    assert (folder / "report" / "new.txt").read_bytes() == b"new"
    assert not (folder / "half").exists()


def test_what_waits_to_be_judged_again_is_left_alone(folder: Path) -> None:
    waiting = folder.with_name("demo-nf4.partial")
    waiting.mkdir()
    (waiting / "quantkit-staging.json").write_text("{}")
    amended(folder)
    assert [each.name for each in waiting.iterdir()] == ["quantkit-staging.json"]


def test_two_at_once_do_not_overwrite_each_other(folder: Path) -> None:
    raw = read_raw(folder)
    amended(folder)
    with pytest.raises(UsageError, match="by another command; run again"):
        amend(staging_to_amend(folder), raw, read_manifest(folder), {})
    assert [each.name for each in folder.parent.glob("demo-nf4*")] == ["demo-nf4"]


def test_the_weights_are_linked_and_not_copied(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_ino
    amended(folder)
    assert (folder / "model.safetensors").stat().st_ino == before


def test_from_inside_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match="run the command from outside it"):
        staging_to_amend(Path.cwd())


def test_a_signed_folder_is_signed_anew(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    pytest.importorskip("model_signing")
    from keys import make_key

    from quantkit.signing import open_signer

    private, public = make_key(tmp_path, "mine")
    open_signer(private).sign(folder)
    with pytest.raises(UsageError, match="--sign KEY"):
        run(folder, demo, tmp_path)
    run(folder, demo, tmp_path, sign=private)
    assert quantkit.verify(folder, public_key=public)["signature"] == "valid"


def test_anothers_signature_is_not_replaced(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    pytest.importorskip("model_signing")
    from keys import make_key

    from quantkit.signing import open_signer

    mine, other = (make_key(tmp_path, name)[0] for name in ("mine", "other"))
    open_signer(other).sign(folder)
    before = contents(folder)
    with pytest.raises(MismatchError, match=r"mine\.pem would replace it: .*remove model\.sig"):
        run(folder, demo, tmp_path, sign=mine)
    assert (contents(folder), harness) == (before, [])
    (folder / "model.sig").unlink()
    run(folder, demo, tmp_path, sign=mine)


def test_what_cannot_be_signed_is_seen_before_the_work(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    pytest.importorskip("model_signing")
    from keys import make_key

    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(UsageError, match=r"links in it \(config\.json\)"):
        run(folder, demo, tmp_path, sign=make_key(tmp_path, "mine")[0])
    assert not harness


def test_a_text_with_other_ids_is_shown_and_not_a_tie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = SimpleNamespace(route="sentencepiece", encode=lambda text: [0])
    report = SimpleNamespace(ties=1, first=[SimpleNamespace(text="the second")])
    monkeypatch.setattr(subject, "open_tokenizer", lambda *args, **more: judge)
    monkeypatch.setattr(subject, "sentencepiece_file", lambda folder: tmp_path)
    monkeypatch.setattr(subject, "compare", lambda *args: report)
    tokenizer = SimpleNamespace(encode=lambda text, **more: [1], decode=str)
    manifest = {"recipe": {"tokenizer": {"split_special_tokens": False}}}
    about = SimpleNamespace(manifest=manifest, folder=tmp_path)
    with pytest.raises(GateError, match=r"1 of 2 texts other ids .*'the second'"):
        subject.check_ids(about, SimpleNamespace(folder=tmp_path), tokenizer, ["a tie", "second"])


@pytest.mark.parametrize("missing", ["request", "recipe", "plan", "gate", "tool"])
def test_a_manifest_that_is_not_whole_is_seen_before_the_work(
    folder: Path, demo: Path, harness: list[QuestionSettings], missing: str
) -> None:
    manifest = read_manifest(folder)
    del manifest[missing]
    write_manifest(manifest, folder)
    said = refused(1, "eval", folder, "--tasks", "arc_easy", "--source", demo)
    assert "not a whole manifest" in said
    assert not harness


# what is refused


@pytest.fixture
def no_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)


def test_without_the_extra(folder: Path, no_harness: None) -> None:
    said = refused(2, "eval", folder, "--tasks", "arc_easy")
    assert "pip install '.[eval]' in a checkout" in said


def test_a_source_that_is_nowhere(
    folder: Path, tmp_path: Path, harness: list[QuestionSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(2, "eval", folder, "--tasks", "arc_easy")
    assert "its source 'demo-model' is not at hand" in said
    assert "--source FOLDER" in said
    assert not harness


def test_a_source_beside_the_folder_is_found(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    shutil.copytree(demo, tmp_path / "demo-model")
    found = quantkit.eval(folder, "arc_easy", limit=1)
    assert found["source"] == str(tmp_path / "demo-model")


def test_another_source_is_refused(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    other = shutil.copytree(demo, tmp_path / "other")
    raw = bytearray((other / "pytorch_model.bin").read_bytes())
    raw[len(raw) // 2] ^= 1
    (other / "pytorch_model.bin").write_bytes(raw)
    said = refused(3, "eval", folder, "--tasks", "arc_easy", "--source", other)
    assert "pytorch_model.bin has SHA-256" in said
    assert not harness


def test_a_folder_that_has_changed(
    folder: Path, demo: Path, harness: list[QuestionSettings]
) -> None:
    (folder / "config.json").write_text("{}")
    said = refused(3, "eval", folder, "--tasks", "arc_easy", "--source", demo)
    assert "config.json has changed" in said


def test_no_folder_of_ours(demo: Path, harness: list[QuestionSettings]) -> None:
    assert "'quantkit convert' made" in refused(2, "eval", demo, "--tasks", "arc_easy")


@pytest.mark.parametrize(
    ("option", "value"), [("--limit", "0"), ("--shots", "-1"), ("--batch-size", "0")]
)
def test_counts(folder: Path, harness: list[QuestionSettings], option: str, value: str) -> None:
    assert option in refused(2, "eval", folder, "--tasks", "arc_easy", option, value)


# the tasks


def test_the_shipped_tasks() -> None:
    assert local_names() == ("jcommonsenseqa", "jnli", "marc_ja")


def test_questions_are_read_whole(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    wanted = read_tasks("arc_easy, jcommonsenseqa", [f"jcommonsenseqa={path}"])
    assert wanted.names == ("arc_easy", "jcommonsenseqa")
    assert wanted.foreign == ("arc_easy",)
    rows = wanted.local["jcommonsenseqa"].rows
    assert rows[3]["label"] == 3
    assert "q_id" not in rows[3]


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("jnli", {"sentence1": "犬が走る", "sentence2": "犬が動く", "label": "entailment"}),
        ("marc_ja", {"sentence": "とてもよい", "label": "positive"}),
    ],
)
def test_other_files_of_jglue(tmp_path: Path, task: str, row: dict[str, str]) -> None:
    path = write_questions(tmp_path, [row, row])
    assert read_tasks([task], [f"{task}={path}"]).local[task].rows == (row, row)


@pytest.mark.parametrize(
    ("tasks", "data", "said"),
    [
        ("", [], "none is named"),
        ("arc_easy,arc_easy", [], "one is named twice"),
        ("jcommonsenseqa", [], "--data jcommonsenseqa=FILE"),
        ("arc_easy", ["jnli=x"], "no such task among --tasks"),
        ("arc_easy", ["arc_easy=x"], "fetches the data of arc_easy itself"),
        ("jnli", ["jnli"], "expected TASK=FILE"),
        ("jnli", ["jnli=/no/such/file"], "no such file"),
    ],
)
def test_a_request_that_is_wrong(tasks: str, data: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_tasks(tasks, data)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "got none"),
        (["not json"], "line 1: not JSON"),
        ([QUESTIONS[0], "[]"], "line 2: no 'question'"),
        ([{**QUESTIONS[0], "label": 5}], "expected one of 0, 1, 2, 3, 4, got '5'"),
        ([{**QUESTIONS[0], "label": True}], "got 'True'"),
        ([{**QUESTIONS[0], "choice2": " "}], "choice2: expected a text"),
        ([{key: value for key, value in QUESTIONS[0].items() if key != "choice4"}], "choice4"),
        (["[" * 100_000], "line 1: not JSON"),
        ([{**QUESTIONS[0], "label": 1.0}], "line 1: label: expected one of 0, 1, 2, 3, 4"),
        ([QUESTIONS[0], {**QUESTIONS[0], "question": None}], "line 2: question: expected a text"),
        ([{**QUESTIONS[0], "question": ["x"]}], "line 1: question: expected a text, got a list"),
        ([{**QUESTIONS[0], "choice1": {}}], "choice1: expected a text, got an object"),
        ([{**QUESTIONS[0], "choice1": "\u200b\ufeff"}], "choice1: expected a text, got nothing"),
        ([{**QUESTIONS[0], "choice1": "\ud800"}], "choice1: expected a text, got half"),
        ([{**QUESTIONS[0], "choice3": "一 "}], "choice3: the same as choice0"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_data_of_its_task(tmp_path: Path, rows: list[object], said: str) -> None:
    path = write_questions(tmp_path, rows)
    with pytest.raises(UsageError, match=re.escape(said)):
        read_tasks("jcommonsenseqa", [f"jcommonsenseqa={path}"])


def test_more_examples_than_there_are_are_refused_first(
    folder: Path, demo: Path, tmp_path: Path, harness: list[QuestionSettings]
) -> None:
    words = ("eval", folder, "--tasks", "jcommonsenseqa", "--source", demo, "--data")
    data = f"jcommonsenseqa={write_questions(tmp_path)}"
    assert "at most 4" in refused(2, *words, data, "--shots", "5")
    assert not harness
    succeeded(*words, data, "--shots", "4", "--limit", "1")


def test_what_the_library_does_not_take_of_a_local_file_is_no_download(tmp_path: Path) -> None:
    class Manager:
        def load(self, specs: object) -> object:
            raise ValueError("a feature of another type")

    with pytest.raises(UsageError, match=r"questions.*another type") as caught:
        _loaded(Manager(), "jnli", {}, local=True)
    assert "downloaded" not in str(caught.value)


def test_questions_with_a_byte_order_mark_and_out_of_a_pipe(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_tasks("jcommonsenseqa", [f"jcommonsenseqa={path}"]).local) == 1
    path.unlink()
    os.mkfifo(path)
    for odd in (path, "/dev/zero", tmp_path):
        with pytest.raises(UsageError, match=r"expected a regular file|folder"):
            read_tasks("jcommonsenseqa", [f"jcommonsenseqa={odd}"])


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        read_tasks("jcommonsenseqa", [f"jcommonsenseqa={path}"])


def test_a_group_has_no_shots_of_its_own() -> None:
    group = {"task": "mmlu", "questions": 4, "of": 4, "shots": None, "metrics": []}
    found = {"benchmarks": [group, {**group, "shots": 3}], "recorded": True}
    assert [said for _, said in benchmarks._rows(found)] == [
        "4 of 4 questions", "4 of 4 questions, 3 shots",
    ]  # fmt: skip
