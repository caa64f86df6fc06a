"""The gate: reopen what was written, compare it with the source, and judge.

report.py      levels, failures, verdict
structure.py   names, shapes, sizes, finiteness of the staged files
models.py      the saved model and the reference, through the users' library
reload.py      the library's loading report, and every weight against the source
likelihood.py  perplexity, KL divergence, top-1 agreement
generation.py  greedy continuations
"""

from quantkit.gate.judging import gate
from quantkit.gate.report import GateReport, gate_not_run, report_json

__all__ = ["GateReport", "gate", "gate_not_run", "report_json"]
