"""``quantkit-manifest.json``: what was done, to what, with what, and how it was judged.

How it is read, written and sealed is :mod:`quantkit.records`' business. The card can
contain only what the manifest contains, and ``verify`` holds a folder to it.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from quantkit.calibration import Calibration
from quantkit.clock import Measured
from quantkit.execution import Job, Staged
from quantkit.gate import GateReport, report_json
from quantkit.plans import Plan
from quantkit.records import SCHEMA
from quantkit.types import ACTIONS
from quantkit.verification import VerifiedSource

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "numba", "numpy", "sentencepiece")


def build_manifest(
    job: Job, verified: VerifiedSource, staged: Staged, report: GateReport, measured: Measured
) -> dict[str, Any]:
    """Everything in one JSON object."""
    source, plan, recipe = verified.source, job.plan, job.recipe
    return {
        "schema": SCHEMA,
        "tool": {"name": "quantkit", "version": importlib.metadata.version("quantkit")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": {
            "name": source.repo_id or source.folder.resolve().name,
            "repo_id": source.repo_id,
            "revision": source.revision,
            "status": verified.verdict.status,
            "verdict": asdict(verified.verdict),
            "config": dict(source.config),
            "files": [asdict(each) for each in verified.files],
            "fingerprint": asdict(verified.fingerprint),
        },
        "recipe": recipe.model_dump(mode="json"),
        "plan": _plan_summary(plan),
        "conversion": {
            "device": job.device,
            "threads": torch.get_num_threads(),
            "tokenizer": staged.converted.tokenizer,
            "underflows": dict(staged.converted.underflows),
            "calibration": _calibration(job.calibration),
            "modules": list(staged.note.get("modules", [])),
        },
        "versions": _versions(),
        "sizes": {
            "source_bytes": source.weight_bytes,
            "output_bytes": sum(each.bytes for each in staged.outputs if each.is_weight),
            "expected_output_bytes": plan.output_bytes,
        },
        "seconds": dict(measured.seconds),
        "peak_rss_bytes": measured.peak_rss_bytes,
        "gate": report_json(report),
        "report": [],
        "output": {"files": [asdict(each) for each in staged.outputs]},
    }


def _calibration(used: Calibration | None) -> dict[str, Any] | None:
    """What GPTQ calibrated on; ``None`` for the formats that need nothing."""
    if used is None:
        return None
    return {
        "name": used.name,
        "sha256": used.sha256,
        "ids_sha256": used.ids_sha256,
        "route": used.route,
        "windows": len(used.windows),
        "available": used.available,
        "tokens": used.tokens,
    }


def _plan_summary(plan: Plan) -> dict[str, Any]:
    return {
        "digest": plan.digest,
        "class_name": plan.class_name,
        "dtype": plan.dtype,
        "quantized_share": plan.quantized_share,
        "tensors": {action: len(plan.with_action(action)) for action in ACTIONS},
        "dropped": {each.source.name: each.reason for each in plan.with_action("drop")},
        "warnings": list(plan.warnings),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in _LIBRARIES:
        found[name] = importlib.metadata.version(name)
    return found
