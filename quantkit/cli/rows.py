"""Plans and manifests as rows of a table, or as the contract's JSON. Nothing here prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.types import ACTIONS

if TYPE_CHECKING:
    from quantkit.plans import Plan


def warnings(manifest: Mapping[str, Any]) -> list[str]:
    said = []
    status = manifest["source"]["status"]
    if status != "verified":
        known = "no registry knows these digests" if status == "unlisted" else "see the card"
        said.append(f"the source is {status}: {known}")
    if manifest["gate"]["status"] == "not_run":
        reasons = sorted(set(manifest["gate"]["reasons"].values()))
        said.append(f"the gate did not run: {'; '.join(reasons)}")
    lost = sum(manifest["conversion"]["underflows"].values())
    if lost:
        said.append(f"{lost:,} non-zero values became zero in the cast")
    return said


def converted_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    gate, sizes, seconds = manifest["gate"], manifest["sizes"], manifest["seconds"]
    ratio = sizes["output_bytes"] / sizes["source_bytes"]
    rows = [
        ("source", f"{manifest['source']['name']} ({manifest['source']['status']})"),
        ("recipe", f"{manifest['recipe']['name']} on {manifest['conversion']['device']}"),
        ("quantized", f"{manifest['plan']['quantized_share']:.1%} of the parameters"),
        ("weights", f"{sizes['source_bytes']:,} -> {sizes['output_bytes']:,} bytes ({ratio:.1%})"),
        ("gate", gate["status"]),
        ("levels", ", ".join(f"{name} {outcome}" for name, outcome in gate["levels"].items())),
    ]
    if gate["perplexity"]:
        found = gate["perplexity"]
        rows += [
            (
                "perplexity",
                f"{found['reference']:.4f} -> {found['quantized']:.4f} "
                f"(x {found['ratio']:.4f}, {found['tokens']:,} tokens of {found['text']})",
            ),
            ("KL divergence", f"{gate['kl_divergence']['mean']:.5f} nats"),
            ("top-1 agreement", f"{gate['top1_agreement']:.1%}"),
        ]
    if gate["generation"]:
        found = gate["generation"]
        rows.append(
            (
                "generation",
                f"{found['forced_agreement']:.1%} teacher-forced, {found['identical']} of "
                f"{found['prompts']} prompts identical",
            )
        )
    rows.append(
        (
            "time",
            ", ".join(f"{stage} {spent:.1f} s" for stage, spent in seconds.items())
            + f"; peak memory {manifest['peak_rss_bytes'] / 1e6:,.0f} MB",
        )
    )
    return rows


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    exact = "" if not plan.slack_bytes else f", at most; {plan.slack_bytes} fewer at least"
    return [
        ("model", f"{plan.class_name}, {plan.dtype}"),
        ("tensors", ", ".join(f"{action} {len(plan.with_action(action))}" for action in ACTIONS)),
        ("quantized", f"{plan.quantized_share:.1%} of the parameters"),
        ("reads", f"{plan.source_bytes:,} bytes of tensors"),
        ("writes", f"{plan.output_bytes:,} bytes{exact}"),
        ("memory", f"about {plan.memory_bytes / 1e6:,.0f} MB without the gate"),
        *((shard.name, f"{shard.nbytes:,} bytes") for shard in plan.shards),
    ]


def converted_json(given: str, out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The contract's object: a view of the manifest."""
    source = manifest["source"]
    gate = {key: manifest["gate"][key] for key in manifest["gate"]}
    if gate["generation"]:
        gate["generation"] = {k: v for k, v in gate["generation"].items() if k != "examples"}
    return {
        "out": str(out),
        "recipe": manifest["recipe"]["name"],
        "device": manifest["conversion"]["device"],
        "source": {
            "path": given,
            "revision": source["revision"],
            "status": source["status"],
            "files": [
                {key: each[key] for key in ("name", "bytes", "md5", "sha256")}
                for each in source["files"]
            ],
        },
        "sizes": manifest["sizes"],
        "seconds": manifest["seconds"],
        "peak_rss_bytes": manifest["peak_rss_bytes"],
        "gate": gate,
    }
