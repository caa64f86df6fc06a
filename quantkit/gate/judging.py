"""The levels in order; a level that cannot run says why."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from quantkit.errors import first_line
from quantkit.evaluation import EvaluationText, Material, largest_id
from quantkit.gate.generation import check_generation
from quantkit.gate.likelihood import check_likelihood, score
from quantkit.gate.models import Reloaded, load_reference, load_saved
from quantkit.gate.reload import check_reload
from quantkit.gate.report import Failure, GateReport, Level, gate_not_run, judged, not_run
from quantkit.gate.structure import check_structure
from quantkit.gate.tokens import check_tokenizer_level
from quantkit.plans import Plan
from quantkit.quiet import quiet_libraries
from quantkit.recipe import Recipe
from quantkit.types import ITEM_BYTES, Event, Listener, silent
from quantkit.verification import VerifiedSource

#: What the two loaded models and the libraries need beside the weights, in bytes.
_WORKING_ROOM = 2 << 30


@dataclass(frozen=True)
class _Models:
    reference: Any
    saved: Reloaded
    dtype: str


def gate(
    folder: Path,
    verified: VerifiedSource,
    plan: Plan,
    recipe: Recipe,
    material: Material,
    device: str = "cpu",
    listener: Listener = silent,
) -> GateReport:
    """Judge the staged ``folder`` against its source."""
    structure = check_structure(folder, plan)
    if structure.outcome == "failed":
        return _only(structure, "the structure level failed")
    dtype = _reference_dtype(plan)
    if dtype is None:
        return _only(structure, "both models together do not fit in memory")
    listener(Event("gate", message="reopening the saved folder"))
    try:
        saved = load_saved(folder, plan.dtype, device)
    except Exception as error:  # any error at load is a verdict: users would meet it
        return _only(structure, "the saved folder cannot be opened", _unopened(error))
    models = _Models(load_reference(verified.source, plan, dtype, device), saved, dtype)
    reload = check_reload(saved, models.reference, recipe.gate)
    if reload.outcome == "failed":
        return _only(structure, "the reload level failed", reload)
    tokens = _tokenizer(folder, verified, recipe, material, listener)
    levels = [structure, tokens, reload]
    if unknown := _unknown_id(models, material):
        levels += [unknown, not_run("generation", "the perplexity level failed")]
        return GateReport(tuple(levels))
    runs: dict[str, Callable[[], Level]] = {
        "perplexity": lambda: _perplexity(models, plan, recipe, material.text, listener),
        "generation": lambda: _generation(models, recipe, material, listener),
    }
    with quiet_libraries():
        levels += [_attempt(name, run) for name, run in runs.items()]
    return GateReport(tuple(levels))


def _attempt(name: str, run: Callable[[], Level]) -> Level:
    """A model that cannot run is a verdict: users would meet the same error."""
    try:
        return run()
    except Exception as error:  # whatever a model's own code raises
        return judged(name, {}, [Failure(name, "the models", first_line(error), "run")])


def _unknown_id(models: _Models, material: Material) -> Level | None:
    """Ids beyond the vocabulary would stop the models, or worse, not stop them."""
    if material.text is None:
        return None
    vocabulary = models.reference.get_input_embeddings().weight.shape[0]
    largest = largest_id(material.text.sequences)
    if largest < vocabulary:
        return None
    where, below = material.text.name, f"below {vocabulary}"
    failure = Failure("perplexity", "largest token id", str(largest), below, where)
    return judged("perplexity", {}, [failure])


def _only(structure: Level, reason: str, reload: Level | None = None) -> GateReport:
    """A report of the levels that ran, the others not run for ``reason``."""
    ran = {"structure": structure} | ({"reload": reload} if reload else {})
    return GateReport(tuple(ran.get(each.name, each) for each in gate_not_run(reason).levels))


def _unopened(error: Exception) -> Level:
    failure = Failure("reload", "from_pretrained", first_line(error), "opens")
    return judged("reload", {}, [failure])


def _reference_dtype(plan: Plan) -> str | None:
    """float32 where it fits beside the saved model, else the source's own; ``None`` for neither."""
    parameters = sum(each.source.elements for each in plan.tensors if each.action != "drop")
    free = psutil.virtual_memory().available - _WORKING_ROOM - plan.output_bytes
    fits = (dtype for dtype in ("float32", plan.dtype) if parameters * ITEM_BYTES[dtype] < free)
    return next(fits, None)


def _tokenizer(
    folder: Path, verified: VerifiedSource, recipe: Recipe, material: Material, listener: Listener
) -> Level:
    return check_tokenizer_level(
        folder,
        verified.source.folder,
        material.strings,
        verified.source.config,
        allow_ties=recipe.gate.allow_tokenizer_ties,
        progress=_counter(listener, "tokenizer", len(material.strings)),
    )


def _perplexity(
    models: _Models,
    plan: Plan,
    recipe: Recipe,
    text: EvaluationText | None,
    listener: Listener,
) -> Level:
    if text is None:
        return not_run(
            "perplexity", "the source has no tokenizer; give token ids (--text FILE.json)"
        )
    length = recipe.evaluation.window
    if plan.max_positions is not None and plan.max_positions > 1:
        length = min(length, plan.max_positions)
    windows = text.windows(length, recipe.evaluation.max_windows)
    scores = score(
        models.reference,
        models.saved.model,
        windows,
        _counter(listener, "perplexity", len(windows)),
    )
    return check_likelihood(
        scores, recipe.gate, _protocol(models, plan, recipe, text, length, len(windows))
    )


def _protocol(
    models: _Models,
    plan: Plan,
    recipe: Recipe,
    text: EvaluationText,
    length: int,
    windows: int,
) -> dict[str, Any]:
    """Everything a number depends on, beside the two folders."""
    compute = dict(recipe.method).get("compute_dtype", plan.dtype)
    words = (
        f"{windows} non-overlapping windows of at most {length} tokens, the whole text encoded "
        f"once without special tokens ({text.route}), all predicted tokens, float32 log-softmax "
        f"(float64 for the divergence); "
        f"reference in {models.dtype}, quantized loaded in {plan.dtype} and computed in {compute}, "
        f"on {_device_name(models.reference.device)}"
    )
    return {"protocol": words, "text": text.name, "text_sha256": text.sha256}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _generation(
    models: _Models,
    recipe: Recipe,
    material: Material,
    listener: Listener,
) -> Level:
    if not material.prompts:
        return not_run(
            "generation", "no prompts: the source has no tokenizer and no ids were given"
        )
    return check_generation(
        models.reference,
        models.saved.model,
        material.prompts,
        recipe,
        material.tokenizer,
        _counter(listener, "generation", len(material.prompts)),
    )


def _counter(listener: Listener, stage: str, total: int) -> Callable[[int], None]:
    unit = {"perplexity": "windows", "tokenizer": "texts"}.get(stage, "prompts")
    return lambda done: listener(Event(stage, done, total, unit))
