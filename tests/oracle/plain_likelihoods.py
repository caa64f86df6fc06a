"""JCommonsenseQA by plain log-likelihoods, without a line of quantkit or lm-evaluation-harness.

    python tests/oracle/plain_likelihoods.py MODEL SPIECE QUESTIONS [LIMIT [plain]]

Only transformers, torch, numpy and sentencepiece. Each choice is written behind the question
and scored by the sum of its tokens' log-probabilities, in float64: those of the whole text's
tokens that the question alone does not have. One text at a time, no cache, nothing padded.
A model that is not quantized computes in float32, a quantized one as it says itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM

ASKED = "与えられた選択肢の中から、最適な答えを選んでください。"


def question_of(row: dict[str, Any], form: bool) -> tuple[str, str]:
    """The text before the answer, and what stands between it and the answer.

    ``form`` is that of rinna's card: ``ユーザー: … <NL>システム: ``, line breaks as ``<NL>``.
    """
    lines = [ASKED, f"質問:{row['question']}", "選択肢:"]
    lines += [f"- {row[f'choice{at}']}" for at in range(5)]
    if form:
        return "ユーザー: " + "<NL>".join(lines) + "<NL>システム:", " "
    return "\n".join([*lines, "答え:"]), ""


def likelihoods(
    folder: Path, spiece: Path, rows: list[dict[str, Any]], form: bool = True
) -> list[list[float]]:
    """The log-likelihood of every choice, in nats, question by question."""
    model, pieces = opened(folder), SentencePieceProcessor(model_file=str(spiece))
    found = []
    for row in rows:
        text, between = question_of(row, form)
        start = len(pieces.encode(text))
        found.append(
            [
                likelihood(model, pieces.encode(f"{text}{between}{row[f'choice{at}']}"), start)
                for at in range(5)
            ]
        )
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


def read(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()][:limit]


def right(rows: list[dict[str, Any]], scores: list[list[float]]) -> list[bool]:
    """Whether the likeliest choice is the right one; of equals the first counts."""
    return [each.index(max(each)) == row["label"] for row, each in zip(rows, scores, strict=True)]


if __name__ == "__main__":
    model_, spiece_, questions, *more = sys.argv[1:]
    asked = read(Path(questions), int(more[0]) if more and more[0] != "all" else None)
    scored = likelihoods(Path(model_), Path(spiece_), asked, form="plain" not in more)
    answers = right(asked, scored)
    accuracy = sum(answers) / len(asked)
    found_ = {"questions": len(asked), "right": sum(answers), "accuracy": accuracy}
    print(json.dumps({**found_, "log_likelihoods": scored}))
