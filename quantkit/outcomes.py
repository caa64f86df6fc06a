"""What two models answered, side by side: figures for the manifest, answers for a file.

A figure is recorded with its standard error and with the difference of the two models. As both
answered the same questions, the difference's standard error is that of the pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isclose, isfinite, sqrt
from typing import Any

from quantkit.harness import Answers, Loaded

Sample = Mapping[str, Any]


def outcomes(loaded: Loaded, source: Answers, quantized: Answers) -> list[dict[str, Any]]:
    """Each task's figures of both models; what is about the run is the caller's to add.

    ``same_answers`` counts the questions that both answered alike, right or wrong; ``None``
    for a group, and where answers cannot be told apart.
    """
    found = []
    for name, leaves in loaded.parts.items():
        counts = [source.counts[leaf] for leaf in leaves]
        found.append(
            {
                "task": name,
                "version": _version(source.versions.get(name)),
                "shots": source.shots.get(name),
                "questions": sum(each["effective"] for each in counts),
                "of": sum(each["original"] for each in counts),
                "metrics": list(_metrics(name, leaves, source, quantized)),
                "same_answers": _same_answers(leaves, source, quantized),
            }
        )
    return found


def _version(stated: object) -> str | None:
    """A task's or group's version; the library writes ``N/A`` where none is stated."""
    return None if stated in (None, "N/A") else str(stated)


def _metrics(
    name: str, leaves: Sequence[str], source: Answers, quantized: Answers
) -> Iterator[dict[str, Any]]:
    source_figures, figures = source.results[name], quantized.results[name]
    for key, value in source_figures.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or _number(value) is None:
            continue
        error = f"{metric}_stderr,{filter_name}"
        yield {
            "name": metric,
            "filter": filter_name,
            "higher_is_better": source.better.get(name, {}).get(metric),
            "source": {"value": _number(value), "stderr": _number(source_figures.get(error))},
            "quantized": {
                "value": _number(figures.get(key)), "stderr": _number(figures.get(error)),
            },
            "difference": _difference(leaves, metric, filter_name, (source, quantized), value),
        }  # fmt: skip


def _number(value: object) -> float | str | None:
    """A figure as JSON holds it: infinity as a text; no figure is ``None``."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    number = float(value)
    return number if isfinite(number) else str(number)


def _difference(
    leaves: Sequence[str],
    metric: str,
    filter_name: str,
    models: tuple[Answers, Answers],
    value: float,
) -> dict[str, float] | None:
    """Quantized less source, question by question; ``None`` where the figure is no plain mean."""
    if len(leaves) > 1:
        return None
    values = [_by_question(each.samples[leaves[0]], metric, filter_name) for each in models]
    reference = values[0]
    if len(reference) < 2 or reference.keys() != values[1].keys():
        return None
    if not isclose(sum(reference.values()) / len(reference), value, abs_tol=1e-9):
        return None
    pairs = [values[1][question] - score for question, score in reference.items()]
    mean = sum(pairs) / len(pairs)
    variance = sum((each - mean) ** 2 for each in pairs) / (len(pairs) - 1)
    return {"value": mean, "stderr": sqrt(variance / len(pairs))}


def _by_question(samples: Sequence[Sample], metric: str, filter_name: str) -> dict[int, float]:
    return {
        each["doc_id"]: float(each[metric])
        for each in samples
        if each["filter"] == filter_name and isinstance(each.get(metric), int | float)
    }


def _same_answers(leaves: Sequence[str], source: Answers, quantized: Answers) -> int | None:
    if len(leaves) > 1:
        return None
    before, after = (_answers(each.samples[leaves[0]]) for each in (source, quantized))
    if not before or before.keys() != after.keys():
        return None
    other = {key[0] for key, answer in before.items() if answer != after[key]}
    return len({question for question, _ in before} - other)


def _answers(samples: Sequence[Sample]) -> dict[tuple[int, str], object]:
    """Each question's answer by each filter: the likeliest choice, or what was written."""
    found: dict[tuple[int, str], object] = {}
    for each in samples:
        likelihoods = _likelihoods(each)
        said = each["filtered_resps"]
        if likelihoods is None or len(likelihoods) > 1:
            found[each["doc_id"], each["filter"]] = (
                said if likelihoods is None else likelihoods.index(max(likelihoods))
            )
    return found


def _likelihoods(sample: Sample) -> list[float] | None:
    """Log-probabilities of a question's choices, in nats; ``None`` where it was no choice."""
    said = sample["filtered_resps"]
    pairs = all(isinstance(each, tuple | list) and len(each) == 2 for each in said)
    if not pairs or any(isinstance(each[0], str) for each in said):
        return None
    return [float(each[0]) for each in said]


def answer_lines(task: str, source: Answers, quantized: Answers) -> bytes:
    """A JSON object a question: both models' log-probabilities and scores, and no text of
    the task's, whose licence is not ours to pass on."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for side, answers in (("source", source), ("quantized", quantized)):
        for each in answers.samples[task]:
            row = rows.setdefault(
                (each["doc_id"], each["filter"]),
                {"question": each["doc_id"], "filter": each["filter"]},
            )
            row[side] = {"log_probabilities": _likelihoods(each), **_scores(each)}
    lines = (json.dumps(rows[key], ensure_ascii=False) for key in sorted(rows))
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def _scores(sample: Sample) -> dict[str, float | str | None]:
    return {
        name: _number(sample[name])
        for name in sample["metrics"]
        if _number(sample[name]) is not None
    }
