"""manifest -> the metadata on top of the card, in the keys that the Hub understands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.frontmatter import read_card
from quantkit.sourcecard import SITE
from quantkit.statedresults import stated_results

#: What is carried on from the source's own metadata.
_CARRIED = ("language", "datasets")

#: bitsandbytes' own, which goes without saying.
_USUAL_BLOCK = 64

#: Measures of the gate as a model-index names them: type, name, where in the gate.
_METRICS = (
    ("perplexity", "perplexity, quantized", ("perplexity", "quantized")),
    ("perplexity", "perplexity, source", ("perplexity", "reference")),
    ("perplexity_ratio", "perplexity, quantized / source", ("perplexity", "ratio")),
    ("kl_divergence", "KL divergence from the source, mean, nats", ("kl_divergence", "mean")),
    ("top1_agreement", "top-1 agreement with the source", ("top1_agreement",)),
)


def identity(manifest: Mapping[str, Any]) -> str | None:
    """The repository that the source is: proven by its digests, or where it was fetched.

    Once published, by the digests that a registry knew on that day.
    """
    source, publication = manifest["source"], manifest["publication"] or {}
    status = publication.get("source_status", source["status"])
    # an earlier quantkit's publication names no repository
    proven = publication.get("source_repository", source["verdict"]["repository"])
    if status in ("verified", "superseded", "withdrawn") and proven:
        return str(proven)
    return str(source["repo_id"]) if source["repo_id"] else None


def title(manifest: Mapping[str, Any]) -> str:
    return f"{identity(manifest) or manifest['source']['name']}, {method_words(manifest)}"


def method_words(manifest: Mapping[str, Any]) -> str:
    """What was done to the weights, e.g. ``4-bit NF4 (bitsandbytes)``."""
    method = manifest["recipe"]["method"]
    if method["format"] == "gptq":
        size = method["group_size"]
        words = [f"{method['bits']}-bit GPTQ"]
        words.append("one group a row" if size == -1 else f"groups of {size}")
        words += ["act-order"] * method["desc_act"] + ["asymmetric"] * (not method["sym"])
    elif method["format"] == "bnb" and method["quant_type"] == "int8":
        words = ["8-bit LLM.int8 (bitsandbytes)"]
    elif method["format"] == "bnb":
        size = method["block_size"]
        words = [f"4-bit {method['quant_type'].upper()} (bitsandbytes)"]
        words += [f"blocks of {size}"] * (size != _USUAL_BLOCK)
        words += ["double quantization"] * method["double_quant"]
    else:
        plain = method["format"] == "plain"
        return str(manifest["plan"]["dtype"] if plain else method["format"])
    if method["ignore"]:  # else two repositories would look alike
        words.append(f"without {', '.join(method['ignore'])}")
    return ", ".join(words)


def needs(manifest: Mapping[str, Any]) -> str:
    """What is installed to open the folder."""
    more = {"bnb": " bitsandbytes", "gptq": " optimum gptqmodel"}
    return f"transformers accelerate{more.get(manifest['recipe']['method']['format'], '')}"


def metadata(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The front matter as a mapping."""
    source, publication = manifest["source"], manifest["publication"]
    stated = read_card(source["card"]).metadata
    found: dict[str, Any] = {}
    licence = (publication and publication["licence"]) or source["licence"]
    if licence["id"]:
        found["license"] = licence["id"]
        if licence["id"] == "other":
            found["license_name"] = licence["name"] or "source-licence"
        if link := _absolute(licence["link"], source):
            found["license_link"] = link
    for key in _CARRIED:
        if values := _names(stated.get(key)):
            found[key] = values
    base = identity(manifest)
    own = manifest["recipe"]["card"]["languages"]
    if "language" not in found and own and base == manifest["recipe"]["source"]["repo"]:
        found["language"] = list(own)
    if base:
        found |= {"base_model": base, "base_model_relation": "quantized"}
    found |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    found["tags"] = _tags(manifest, stated.get("tags"))
    if publication:
        found["quantized_by"] = publication["repo_id"].partition("/")[0]
    index = stated_results(stated, base)
    if results := [*_results(manifest), *_benchmarks(manifest)]:
        index = [{"name": title(manifest), "results": results}, *index]
    if index:
        found["model-index"] = index
    return found


def _absolute(link: str, source: Mapping[str, Any]) -> str:
    """A licence's link; one inside the source's repository leads there. Empty if nowhere."""
    if not link:
        return ""
    if link.startswith(("https://", "http://")):
        return link
    if ":" in link:  # another scheme runs something
        return ""
    if not source["repo_id"]:  # the file itself is carried on
        return link
    at = f"blob/{source['revision'] or 'main'}"
    return f"{SITE}/{source['repo_id']}/{at}/{link.removeprefix('./')}"


def _names(value: object) -> list[str]:
    """One name or several; anything else is nothing."""
    given = value if isinstance(value, list) else [value]
    return [each for each in given if isinstance(each, str) and each.strip()]


def _tags(manifest: Mapping[str, Any], stated: object) -> list[str]:
    method = manifest["recipe"]["method"]
    ours = ["quantkit"]
    if method["format"] == "bnb":
        bits = 8 if method["quant_type"] == "int8" else 4
        ours += ["bitsandbytes", method["quant_type"], f"{bits}-bit"]
    elif method["format"] == "gptq":
        ours += ["gptq", f"{method['bits']}-bit"]
    elif method["format"] != "plain":
        ours.append(method["format"])
    return list(dict.fromkeys([*ours, *_names(stated)]))


def _results(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the gate measured, as a model-index has it."""
    gate = manifest["gate"]
    if not gate["perplexity"]:
        return []
    metrics: list[dict[str, Any]] = []
    for kind, name, path in _METRICS:
        value: Any = gate
        for key in path:
            value = value[key]
        _add(metrics, kind, name, value)
    if not metrics:
        return []
    text = str(gate["perplexity"]["text"])
    found: dict[str, Any] = {
        "task": {"type": "text-generation"},
        "dataset": {"type": text, "name": text},
        "metrics": metrics,
    }
    if manifest["publication"] and manifest["report"]:  # the Hub takes whole addresses only
        where = manifest["publication"]
        branch = where.get("branch", "main")  # an earlier quantkit named none
        page = f"{SITE}/{where['repo_id']}/blob/{branch}/report/report.html"
        said = f"quantkit {manifest['tool']['version']}, the saved files reopened"
        found["source"] = {"name": said, "url": page}
    return [found]


def _benchmarks(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``eval`` measured, of the source and of the quantized model, with standard errors."""
    found: list[dict[str, Any]] = []
    for each in manifest.get("benchmarks", []):
        metrics: list[dict[str, Any]] = []
        for metric in each["metrics"]:
            filtered = "" if metric["filter"] == "none" else f" ({metric['filter']})"
            for side in ("quantized", "source"):
                name = f"{metric['name']}{filtered}, {side}"
                _add(metrics, metric["name"], name, metric[side]["value"])
                said = f"{name}, standard error"
                _add(metrics, f"{metric['name']}_stderr", said, metric[side]["stderr"])
        dataset = {"type": each["data"]["name"], "name": each["task"]}
        if each["data"]["config"]:
            dataset["config"] = each["data"]["config"]
        asked = {**dataset, "args": {"num_few_shot": each["shots"]}}
        if metrics:
            task = {"type": "text-generation"}
            found.append({"task": task, "dataset": asked, "metrics": metrics})
    return found


def _add(metrics: list[dict[str, Any]], kind: str, name: str, value: object) -> None:
    """One metric of a model-index; an infinity, or no figure, is none."""
    if isinstance(value, float):
        metrics.append({"type": kind, "name": name, "value": value})
