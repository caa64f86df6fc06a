"""Plans and manifests as rows of a table, or as the contract's JSON. Nothing here prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import printable
from quantkit.types import ACTIONS

if TYPE_CHECKING:
    from quantkit.plans import Plan
    from quantkit.releases import Release

COMPARED = ("folder", "format", "MB", "of source", "ppl ratio", "KL mean", "KL p99", "top-1")

_QUANTILES = ("median", "p90", "p99", "max")


def warnings(manifest: Mapping[str, Any]) -> list[str]:
    """What the user should know of a conversion that went through."""
    said = []
    status = manifest["source"]["status"]
    if status != "verified":
        known = "see the card"
        if status == "unlisted":
            known = manifest["source"]["verdict"]["reason"] or "no registry knows these digests"
        said.append(f"the source is {status}: {known}")
    if manifest["gate"]["status"] == "not_run":
        reasons = sorted(set(manifest["gate"]["reasons"].values()))
        said.append(f"the gate did not run: {'; '.join(reasons)}")
    lost = sum(manifest["conversion"]["underflows"].values())
    if lost:
        said.append(f"{lost:,} non-zero values became zero in the cast")
    return said


def converted_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    spent = ", ".join(f"{stage} {each:.1f} s" for stage, each in manifest["seconds"].items())
    return [
        ("source", f"{manifest['source']['name']} ({manifest['source']['status']})"),
        ("recipe", f"{manifest['recipe']['name']} on {manifest['conversion']['device']}"),
        ("quantized", f"{manifest['plan']['quantized_share']:.1%} of the parameters"),
        _weights_row(manifest["sizes"]),
        *gate_rows(manifest["gate"]),
        ("time", f"{spent}; peak memory {manifest['peak_rss_bytes'] / 1e6:,.0f} MB"),
    ]


def gate_rows(gate: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The gate's verdict, its measures beside the noise floor, and what failed."""
    rows = [
        ("gate", gate["status"]),
        ("levels", ", ".join(f"{name} {outcome}" for name, outcome in gate["levels"].items())),
    ]
    if gate["perplexity"]:
        rows += _measure_rows(gate)
    if found := gate["generation"]:
        rows.append(
            (
                "generation",
                f"{found['forced_agreement']:.1%} teacher-forced, {found['identical']} of "
                f"{found['prompts']} prompts identical, alike for "
                f"{found['first_divergence']:.1f} of {found['new_tokens']} tokens on average",
            )
        )
    rows += [("not run", f"{name}: {why}") for name, why in gate["reasons"].items()]
    rows += [("remark", each) for each in (gate["structure"] or {}).get("remarks", ())]
    return rows + [("failed", each) for each in gate["failures"]]


def _measure_rows(gate: Mapping[str, Any]) -> list[tuple[str, str]]:
    found, divergence, floor = gate["perplexity"], gate["kl_divergence"], gate["noise_floor"]
    inside = found["ratio_interval"]
    between = f" [{figure(inside[0])}, {figure(inside[1])}]" if inside else ""
    noise = f" (noise floor {figure(floor['kl_divergence']['mean'])})" if floor else ""
    rows = [
        (
            "perplexity",
            f"{figure(found['reference'])} -> {figure(found['quantized'])} (x "
            f"{figure(found['ratio'])}{between}, {found['tokens']:,} tokens of {found['text']})",
        ),
        (
            "KL divergence",
            f"mean {figure(divergence['mean'])}{noise}, "
            + ", ".join(f"{name} {figure(divergence[name])}" for name in _QUANTILES)
            + " nats",
        ),
        ("top-1 agreement", f"{gate['top1_agreement']:.1%}"),
        ("true token", f"probability changes by {figure(gate['probability_change_rms'])} RMS"),
    ]
    return rows + [
        (
            f"  {each['text']}",
            f"x {figure(each['perplexity']['ratio'])}, KL {figure(each['kl_divergence']['mean'])},"
            f" top-1 {each['top1_agreement']:.1%}",
        )
        for each in gate["by_text"]
    ]


def figure(value: float | str) -> str:
    """Five significant digits; what is no number is a text already."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def check_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("against", str(found["against"])),
        ("format", f"{found['format']}, thresholds of {found['recipe']}"),
        _weights_row(found["sizes"]),
        *gate_rows(found["gate"]),
    ]


def _weights_row(sizes: Mapping[str, int]) -> tuple[str, str]:
    before, after = sizes["source_bytes"], sizes["output_bytes"]
    return "weights", f"{before:,} -> {after:,} bytes ({after / before:.1%})"


def compare_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a folder under ``COMPARED``, and one for the noise floor."""
    rows = [
        (
            Path(each["path"]).name,
            each["format"],
            f"{each['bytes'] / 1e6:,.1f}",
            f"{each['bytes'] / found['source_bytes']:.1%}",
            *_compared(each),
        )
        for each in found["folders"]
    ]
    if found["noise_floor"]:
        rows.append(
            (
                f"noise floor in {found['noise_floor_dtype']}",
                "",
                "",
                "",
                *_compared(found["noise_floor"]),
            )
        )
    return rows


def _compared(measures: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        figure(measures["perplexity"]["ratio"]),
        figure(measures["kl_divergence"]["mean"]),
        figure(measures["kl_divergence"]["p99"]),
        f"{measures['top1_agreement']:.1%}",
    )


def without_examples(gate: Mapping[str, Any]) -> dict[str, Any]:
    """The gate as one reads it: no texts, no list of every module."""
    shown = dict(gate)
    for level, long in (("generation", "examples"), ("reload", "modules")):
        if shown[level]:
            shown[level] = {key: each for key, each in shown[level].items() if key != long}
    return shown


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    from quantkit.plans import memory_forecast

    exact = "" if not plan.slack_bytes else f" at most, or up to {plan.slack_bytes:,} fewer"
    return [
        ("model", f"{plan.class_name}, {plan.dtype}"),
        ("tensors", ", ".join(f"{action} {len(plan.with_action(action))}" for action in ACTIONS)),
        ("quantized", f"{plan.quantized_share:.1%} of the parameters"),
        ("reads", f"{plan.source_bytes:,} bytes of tensors"),
        ("writes", f"{plan.output_bytes:,} bytes{exact}"),
        ("memory", f"{memory_forecast(plan)} without the gate"),
        *((shard.name, f"{shard.nbytes:,} bytes") for shard in plan.shards),
    ]


def converted_json(given: str, out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The contract's object: a view of the manifest."""
    source = manifest["source"]
    gate = without_examples(manifest["gate"])
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


def standing(release: Release) -> str:
    """A release's status, of what kind, and why."""
    kind = f" ({release.kind})" if release.kind else ""
    return f"{release.status}{kind}. {release.reason}"


def checked_json(found: Mapping[str, Any]) -> dict[str, Any]:
    """What ``check`` prints: all but the examples, which the report has."""
    return {**found, "gate": without_examples(found["gate"])}


def error_json(message: str, kind: str, exit_code: int) -> dict[str, Any]:
    """An error as an object, its message on one line."""
    said = printable(" ".join(message.split()))
    return {"error": {"kind": kind, "message": said, "exit_code": exit_code}}


def summary_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What an output says that it is."""
    source = found["source"]
    revision = f" at {source['revision']}" if source["revision"] else ""
    yield "made from", f"{source['repo_id'] or source['name']}{revision}"
    yield "recipe", str(found["recipe"])
    yield "by", f"{found['tool']['name']} {found['tool']['version']}"
    if found["published_as"]:
        yield "published as", str(found["published_as"])
