"""The gate: reopen what was written, compare it with the source, and judge.

report.py      levels, failures, verdict
structure.py   names, shapes, sizes, finiteness of the staged files, held to the plan
accounting.py  the same of any folder, held to the source
parts.py       what a quantized weight is stored as, by its format
stated.py      what a quantization_config may state at all
declared.py    what stays as it was, by what quantization_config says of it
settings.py    config and generation defaults
templates.py   chat templates
claims.py      what a recipe has a folder say beside the source's own words
beside.py      other files: weights that nothing read, adapters, code
opened.py      a checkpoint's tensors by the parameters of its model class
decoding.py    GPTQ and AWQ weights by their definition
library.py     bitsandbytes' own modules, filled with saved bytes
models.py      models whole in memory, through the users' library
runners.py     one model, whole or a layer at a time
field.py       the models of one judgement side by side
reload.py      the loading report, and every weight against the source
scoring.py     likelihoods, divergence and agreement, token by token
likelihood.py  what they come to, and what is allowed
tokens.py      the tokenizer's ids against sentencepiece's
around.py      what a default call puts around a text; whose fault other ids are
generation.py  greedy continuations
degeneration.py  loops, silence, special tokens alone
several.py     many folders in one pass over their source
protocol.py    what the numbers depend on, in words
case.py        what is judged, and by which windows
judging.py     the levels in order
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quantkit.gate.report import LOWEST, PER_DECADE, GateReport, gate_not_run, report_json
from quantkit.quiet import need_current_folder

if TYPE_CHECKING:
    from quantkit.gate.judging import gate, gate_folder
    from quantkit.gate.several import Measured, measure_folders

#: How histograms of the divergence begin, in decades of nats, and their bins a decade.
HISTOGRAM = (LOWEST, PER_DECADE)

#: Loaded on first use: they import torch, which a run without the gate does not need.
_HOME = {
    "gate": "judging",
    "gate_folder": "judging",
    "Measured": "several",
    "measure_folders": "several",
}

__all__ = [
    "HISTOGRAM",
    "GateReport",
    "Measured",
    "gate",
    "gate_folder",
    "gate_not_run",
    "measure_folders",
    "report_json",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'quantkit.gate' has no attribute {name!r}")
    need_current_folder()
    return getattr(import_module(f"quantkit.gate.{_HOME[name]}"), name)
