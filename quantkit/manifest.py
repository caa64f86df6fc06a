"""``quantkit-manifest.json``: what was done, to what, with what, and how it was judged.

How it is read, written and sealed is :mod:`quantkit.records`' business. The card can
contain only what the manifest contains, and ``verify`` holds a folder to it.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from quantkit.calibration import Calibration
from quantkit.checkpoint.fingerprint import FORM
from quantkit.clock import Measured
from quantkit.execution import Job, Staged, library_versions
from quantkit.frontmatter import read_card
from quantkit.gate import GateReport, report_json
from quantkit.licences import licence_json, licence_of
from quantkit.plans import Plan
from quantkit.records import SCHEMA
from quantkit.source import read_text
from quantkit.types import ACTIONS, ITEM_BYTES
from quantkit.verification import VerifiedSource


def build_manifest(
    job: Job,
    verified: VerifiedSource,
    staged: Staged,
    report: GateReport,
    measured: Measured,
    request: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything in one JSON object. ``request`` is what the user asked for, as names."""
    source, plan, recipe = verified.source, job.plan, job.recipe
    return {
        "schema": SCHEMA,
        "tool": {"name": "quantkit", "version": importlib.metadata.version("quantkit")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": {
            "name": source.repo_id or source.folder.resolve().name,
            "repo_id": source.repo_id,
            "revision": source.revision,
            "config": dict(source.config),
            "files": [asdict(each) for each in verified.files],
            "fingerprint": asdict(verified.digested.fingerprint),
            "fingerprint_form": FORM,
            "recalled": list(verified.digested.recalled),
            **_standing(job, verified),
        },
        "request": {**request, "revision": source.revision or request["revision"]},
        "recipe": recipe.model_dump(mode="json"),
        "plan": _plan_summary(plan),
        "conversion": {
            "device": job.device,
            "threads": staged.note.get("threads"),
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
            "kv_cache_bytes_per_token": _cache_bytes(plan),
        },
        "seconds": dict(measured.seconds),
        "peak_rss_bytes": measured.peak_rss_bytes,
        "gate": report_json(report),
        "report": [],
        "publication": None,
        "output": {"files": [asdict(each) for each in staged.outputs]},
    }


def _standing(job: Job, verified: VerifiedSource) -> dict[str, Any]:
    """What the registry and the source's own card say of it, and which of its releases were
    withdrawn."""
    source, verdict = verified.source, verified.verdict
    card = read_text(source.folder / "README.md")
    proven = verdict.status in ("verified", "superseded", "withdrawn")
    entries = [
        each for each in job.registry.entries if proven and each.named(str(verdict.repository))
    ]
    registered = next((each.licence for each in entries if each.licence), None)
    return {
        "status": verdict.status,
        "verdict": asdict(verdict),
        "card": card,
        "licence": licence_json(licence_of(read_card(card).metadata, registered)),
        "withdrawn": [
            {
                "repository": entry.repository,
                "release": each.label,
                "reason": each.reason,
                "stated_at": each.stated_at,
            }
            for entry in entries
            for each in entry.releases
            if each.status == "withdrawn" and each.label != verdict.release
        ],
    }


def _cache_bytes(plan: Plan) -> int | None:
    """Bytes of keys and values for each token of context, where the config says how many."""

    def stated(name: str) -> int:
        """A positive number, else 0: transformers has not checked keys that its class lacks."""
        found = plan.config.get(name)
        return found if isinstance(found, int) and found > 0 else 0

    layers, heads, hidden = map(stated, ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    if not layers * heads * hidden:
        return None
    width = stated("head_dim") or hidden // heads
    held = stated("num_key_value_heads") or heads
    return 2 * layers * held * width * ITEM_BYTES[plan.dtype]


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
    return {**found, **library_versions()}
