"""eval with the real lm-evaluation-harness, question for question a plain script's answers.

In an environment built here, or one that is there already (``QUANTKIT_LMEVAL_PYTHON``); where
the library is installed beside the tests, in theirs. ``QUANTKIT_EVAL_QUESTIONS`` says how many
of JCommonsenseQA's questions are asked; ``all`` takes some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from commanding import COMMAND, the_error
from oracle import environments
from oracle.plain_likelihoods import likelihoods, read, right
from test_eval import write_questions

import quantkit

pytestmark = pytest.mark.oracle

ROOT = Path(__file__).resolve().parents[2]
ASKED = os.environ.get("QUANTKIT_EVAL_QUESTIONS", "12")
NAME = "jcommonsenseqa-valid-v1.3.jsonl"

#: How far two log-likelihoods of one text may be apart, in nats: sums in float32 and in float64.
NEAR = {"source": 1e-3, "quantized": 1e-3}

RECIPES = {
    "nf4": ("rinna-3.6b-ppo-nf4", "source.repo="),
    "int8": ("rinna-3.6b-ppo-int8", "source.repo="),
    "plain": ("bnb-nf4",),
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("QUANTKIT_LMEVAL_PYTHON"):
        return Path(os.environ["QUANTKIT_LMEVAL_PYTHON"])
    if find_spec("lm_eval") is not None:
        return Path(sys.executable)
    python = environments.make(tmp_path_factory.mktemp("lm-eval"))
    environments.lend_all(python)
    environments.install(python, "--constraint", ROOT / "constraints.txt", f"{ROOT}[eval]")
    return python


def evaluate(python: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """``quantkit eval … --json`` in the environment that has the library."""
    command = [python, *COMMAND[1:], "eval", *words, "--device", "cpu", "--json"]
    return subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def succeeded(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def converted(source: Path, out: Path, kind: str) -> Path:
    recipe, *overrides = RECIPES[kind]
    quantkit.convert(source, recipe, out, no_gate=True, set=overrides)
    return out


def hold_to_the_plain_script(
    folder: Path, source: Path, questions: Path, found: dict[str, Any], *, form: bool,
    task: str = "jcommonsenseqa",
) -> None:  # fmt: skip
    """Every log-likelihood, every answer, and the figures with their errors."""
    rows = read(questions, task)
    (result,) = (each for each in found["benchmarks"] if each["task"] == task)
    (metric,) = result["metrics"]
    lines = (folder / "report" / f"eval-{task}.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [each["question"] for each in answers] == list(range(len(rows)))
    assert result["questions"] == result["of"] == len(rows)
    assert result["prompt_form"] is form
    assert (metric["name"], result["shots"], result["truncated"]) == ("acc", 0, 0)
    for side, model in (("source", source), ("quantized", folder)):
        scores = likelihoods(model, source / "spiece.model", rows, form)
        theirs = [each[side]["log_probabilities"] for each in answers]
        worst = max(abs(a - b) for one, other in zip(scores, theirs, strict=True)
                    for a, b in zip(one, other, strict=True))  # fmt: skip
        correct = right(rows, scores)
        differing = [at for at, each in enumerate(answers) if each[side]["acc"] != correct[at]]
        accuracy = sum(correct) / len(correct)
        print(f"{side}: {accuracy:.6f}, plain script; {metric[side]['value']:.6f}, lm-eval; "
              f"{len(differing)} questions differ; log-likelihoods within {worst:.2g}")  # fmt: skip
        assert differing == []
        assert metric[side]["value"] == pytest.approx(accuracy, abs=1e-12)
        error = sqrt(accuracy * (1 - accuracy) / (len(rows) - 1))
        assert metric[side]["stderr"] == pytest.approx(error, rel=1e-9)
        assert worst < NEAR[side]


@pytest.mark.parametrize("kind", RECIPES)
def test_jcommonsenseqa_on_mini_rinna(
    python: Path, mini_rinna: Path, shared: Path, tmp_path: Path, kind: str
) -> None:
    lines = (shared / "data" / "text" / NAME).read_text(encoding="utf-8").splitlines(keepends=True)
    questions = tmp_path / NAME
    questions.write_text("".join(lines if ASKED == "all" else lines[: int(ASKED)]))
    folder = converted(mini_rinna, tmp_path / kind, kind)
    found = succeeded(
        evaluate(
            python, folder, "--tasks", "jcommonsenseqa", "--source", mini_rinna,
            "--data", f"jcommonsenseqa={questions}",
        )
    )  # fmt: skip
    hold_to_the_plain_script(folder, mini_rinna, questions, found, form=kind != "plain")
    assert quantkit.verify(folder)["gate"] == "not_run"


#: In the form of JGLUE's files, but none of their sentences.
OTHERS: dict[str, list[dict[str, object]]] = {
    "jnli": [
        {"sentence1": "白い犬が浜辺を走っている。", "sentence2": "犬が動いている。",
         "label": "entailment"},
        {"sentence1": "女の子が本を読んでいる。", "sentence2": "女の子は眠っている。",
         "label": "contradiction"},
        {"sentence1": "男の人が自転車に乗っている。", "sentence2": "男の人は会社へ行く。",
         "label": "neutral"},
        {"sentence1": "机の上に赤いりんごがある。", "sentence2": "机の上に果物がある。",
         "label": "entailment"},
    ],
    "marc_ja": [
        {"sentence": "軽くて使いやすく、買ってよかったです。", "label": "positive"},
        {"sentence": "二日で壊れた。\nもう買わない。", "label": "negative"},
        {"sentence": "音がとても良い。", "label": "positive"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", RECIPES)
def test_the_other_tasks_on_mini_rinna(
    python: Path, mini_rinna: Path, tmp_path: Path, kind: str
) -> None:
    folder = converted(mini_rinna, tmp_path / kind, kind)
    files = {task: tmp_path / f"{task}.json" for task in OTHERS}
    for task, path in files.items():
        lines = (json.dumps(row, ensure_ascii=False) for row in OTHERS[task])
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = [word for task, path in files.items() for word in ("--data", f"{task}={path}")]
    done = evaluate(python, folder, "--tasks", ",".join(OTHERS), "--source", mini_rinna, *data)
    found = succeeded(done)
    for task, path in files.items():
        hold_to_the_plain_script(folder, mini_rinna, path, found, form=kind != "plain", task=task)


def test_the_demo_model_without_any_download(python: Path, demo: Path, tmp_path: Path) -> None:
    """The same on what ships with the project, for those who have no other material."""
    questions, folder = write_questions(tmp_path), converted(demo, tmp_path / "demo", "plain")
    words = (folder, "--tasks", "jcommonsenseqa", "--source", demo,
             "--data", f"jcommonsenseqa={questions}")  # fmt: skip
    hold_to_the_plain_script(
        folder, demo, questions, succeeded(evaluate(python, *words)), form=False
    )
    done = evaluate(python, *words, "--limit", "2", "--shots", "1", "--batch-size", "4")
    (trial,) = succeeded(done)["benchmarks"]
    assert (trial["questions"], trial["of"], trial["shots"]) == (2, 5, 1)
    assert done.stderr.count("\n") < 8, "its bars and advice are held back"


@pytest.mark.parametrize(
    ("task", "code", "said"),
    [
        ("arc_easy", 1, "task arc_easy: its data cannot be downloaded here"),
        ("arc_eazy", 2, "did you mean 'arc_easy'?"),
        ("humaneval", 1, "task humaneval: "),
    ],
)
def test_the_leaderboards_tasks_by_name(
    python: Path, demo: Path, tmp_path: Path, task: str, code: int, said: str
) -> None:
    folder = converted(demo, tmp_path / "demo", "plain")
    done = evaluate(python, folder, "--tasks", task, "--source", demo)
    assert done.returncode == code, done.stderr[-3000:]
    assert json.loads(done.stdout)["error"]["exit_code"] == code
    assert said in the_error(done.stderr)


#: A group of two tasks, answered at random by the library's own stand-in for a model.
GROUP = """
import json, sys
from lm_eval.api.group import Group
from lm_eval.config.group import GroupConfig
from lm_eval.models.dummy import DummyLM
from lm_eval.tasks import TaskManager
from quantkit import harness
from quantkit.outcomes import outcomes
from quantkit.tasks import read_tasks

class Manager(TaskManager):
    def load(self, specs):
        own = [super(Manager, self).load([{**task, "task": name}])["tasks"][name] for name in "ab"]
        weighted = {"metric": "acc", "weight_by_size": True, "aggregation": "mean"}
        group = Group.from_config(
            GroupConfig(group="g", task=["a", "b"], aggregate_metric_list=[weighted]))
        for each in own:
            group.add(each)
        return super().load([group])

wanted = read_tasks("jcommonsenseqa", ["jcommonsenseqa=" + sys.argv[1]])
task = harness._configuration(wanted.local["jcommonsenseqa"], form=False)
import lm_eval.tasks
lm_eval.tasks.TaskManager = Manager
harness._check_known = lambda name, known: None
harness.adapter = lambda *args: DummyLM()
DummyLM.truncated = 0
loaded = harness.load_tasks(read_tasks("g"), form=False)
both = [harness.ask(None, None, loaded, harness.QuestionSettings(shots=1)) for _ in range(2)]
(found,) = outcomes(loaded, *both)
parts = [each.results[name]["acc,none"] for each in both for name in "ab"]
print(json.dumps([loaded.parts, found, parts]))
"""


def test_a_groups_figure_is_of_all_its_tasks(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(python), "-c", GROUP, str(write_questions(tmp_path))],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    names, found, parts = json.loads(done.stdout.splitlines()[-1])
    assert names == {"g": ["a", "b"]}
    assert (found["task"], found["questions"], found["of"], found["shots"]) == ("g", 10, 10, 1)
    (metric,) = found["metrics"]
    assert metric["source"]["value"] == pytest.approx((parts[0] + parts[1]) / 2)
    assert metric["quantized"]["value"] == pytest.approx((parts[2] + parts[3]) / 2)
    assert metric["difference"] is None, "the tasks' questions are not in pairs here"
    assert found["version"] is None
