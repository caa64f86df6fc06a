"""JGLUE's tasks by plain log-likelihoods, without a line of quantkit or lm-evaluation-harness.

    python tests/oracle/plain_likelihoods.py MODEL SPIECE QUESTIONS [LIMIT [plain]]

asks JCommonsenseQA's.
Only transformers, torch, numpy and sentencepiece. Each choice is written behind the question
and scored by the sum of its tokens' log-probabilities, in float64: those of the whole text's
tokens that the question alone does not have. One text at a time, no cache, nothing padded.
A model that is not quantized computes in float32, a quantized one as it says itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Question:
    """Lines to be read, what an answer is announced by, the answers, and which is right."""

    lines: tuple[str, ...]
    ending: str
    choices: tuple[str, ...]
    label: int

    def text(self, form: bool) -> tuple[str, str]:
        """The text before the answer, and what stands between it and the answer.

        ``form`` is that of rinna's card: ``ユーザー: … <NL>システム: ``, line breaks as ``<NL>``.
        """
        if form:
            said = "\n".join(self.lines).replace("\n", "<NL>")
            return f"ユーザー: {said}<NL>システム:", " "
        return "\n".join([*self.lines, self.ending]), ""


def jcommonsenseqa(row: dict[str, Any]) -> Question:
    choices = tuple(row[f"choice{at}"] for at in range(5))
    asked = "与えられた選択肢の中から、最適な答えを選んでください。"
    listed = (f"- {each}" for each in choices)
    lines = (asked, f"質問:{row['question']}", "選択肢:", *listed)
    return Question(lines, "答え:", choices, row["label"])


def jnli(row: dict[str, Any]) -> Question:
    asked = "前提と仮説の関係を含意、矛盾、中立の中から選んでください。"
    lines = (asked, f"前提:{row['sentence1']}", f"仮説:{row['sentence2']}")
    known = {"entailment": 0, "contradiction": 1, "neutral": 2}
    return Question(lines, "関係:", ("含意", "矛盾", "中立"), known[row["label"]])


def marc_ja(row: dict[str, Any]) -> Question:
    asked = "製品レビューをポジティブかネガティブのいずれかの感情に分類してください。"
    lines = (asked, f"レビュー:{row['sentence']}")
    known = {"positive": 0, "negative": 1}
    return Question(lines, "極性:", ("ポジティブ", "ネガティブ"), known[row["label"]])


TASKS = {each.__name__: each for each in (jcommonsenseqa, jnli, marc_ja)}


def likelihoods(
    folder: Path, spiece: Path, questions: Sequence[Question], form: bool = True
) -> list[list[float]]:
    """The log-likelihood of every choice, in nats, question by question."""
    model, pieces = opened(folder), SentencePieceProcessor(model_file=str(spiece))
    found = []
    for each in questions:
        text, between = each.text(form)
        start = len(pieces.encode(text))
        answered = [pieces.encode(f"{text}{between}{choice}") for choice in each.choices]
        found.append([likelihood(model, ids, start) for ids in answered])
    return found


def likelihood(model: Any, ids: list[int], start: int) -> float:
    """log p of ``ids[start:]`` after ``ids[:start]``."""
    count = len(ids) - start
    with torch.no_grad():
        said = model(torch.tensor([ids[:-1]]), logits_to_keep=count).logits[0]
    logits = said[-count:].double().numpy()
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(logs[np.arange(len(logs)), ids[start:]].sum())


def opened(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text())
    if "quantization_config" not in config:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    dtype = getattr(torch, config.get("dtype") or config["torch_dtype"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu").eval()
    for module in model.modules():  # on some processors bitsandbytes computes in another type
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def read(path: Path, task: str = "jcommonsenseqa", limit: int | None = None) -> list[Question]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [TASKS[task](json.loads(line)) for line in lines if line.strip()][:limit]


def right(questions: Sequence[Question], scores: list[list[float]]) -> list[bool]:
    """Whether the likeliest choice is the right one; of equals the first counts."""
    pairs = zip(questions, scores, strict=True)
    return [found.index(max(found)) == each.label for each, found in pairs]


if __name__ == "__main__":
    model_, spiece_, file_, *more = sys.argv[1:]
    limit_ = int(more[0]) if more and more[0] != "all" else None
    asked_ = read(Path(file_), limit=limit_)
    scored = likelihoods(Path(model_), Path(spiece_), asked_, form="plain" not in more)
    answers = right(asked_, scored)
    accuracy = sum(answers) / len(asked_)
    found_ = {"questions": len(asked_), "right": sum(answers), "accuracy": accuracy}
    print(json.dumps({**found_, "log_likelihoods": scored}))
