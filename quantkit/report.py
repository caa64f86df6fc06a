"""manifest -> report/: one page that carries its plots, and the plots as files for the card.

Everything on the page is in the manifest, or in the record that ``check`` puts beside it;
nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from quantkit.carddata import method_words
from quantkit.gate import HISTOGRAM
from quantkit.plots import depth_plot, divergence_plot, import_matplotlib, ratio_plot, size_plot

FOLDER = "report"
PAGE = "report.html"

#: What each plot shows, for readers of the page and for those who cannot see it.
CAPTIONS = {
    "perplexity.png": "Perplexity of the quantized model over the source's, with its interval",
    "divergence.png": "KL divergence token by token, beside what rounding alone costs",
    "modules.png": "Error of each module's weights along depth",
    "loss.png": "GPTQ's loss of each module along depth: weighted by its inputs, per output",
    "size.png": "Size of the weights before and after",
}


#: How many modules of the greatest loss the page lists.
_WORST = 5


def write_report(
    manifest: Mapping[str, Any], folder: Path, *, more: Mapping[str, bytes] | None = None
) -> list[str]:
    """Write ``folder/report``; returns the names of its files, relative to ``folder``.

    ``more`` are further files, by name. Plots of an earlier report that this one lacks are removed.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    import_matplotlib(place)
    plots = make_plots(manifest)
    page = render_report(manifest, plots)
    files = {PAGE: page.encode("utf-8"), **plots, **(more or {})}
    for stale in CAPTIONS.keys() - files.keys():
        (place / stale).unlink(missing_ok=True)
    for name, data in files.items():
        (place / name).write_bytes(data)
    return [f"{FOLDER}/{name}" for name in files]


def make_plots(manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG files by name; a level that did not run has no plot."""
    gate, sizes = manifest["gate"], manifest["sizes"]
    plots = {}
    if _is_number(gate["perplexity"] and gate["perplexity"]["ratio"]):
        rows = _ratio_rows(gate)
        plots["perplexity.png"] = ratio_plot(
            rows, manifest["recipe"]["gate"]["max_perplexity_ratio"]
        )
    if gate["kl_divergence"]:
        floor = gate["noise_floor"] and gate["noise_floor"]["histogram"]
        lowest, per_decade = HISTOGRAM
        plots["divergence.png"] = divergence_plot(
            gate["kl_divergence"]["histogram"], floor, lowest, per_decade
        )
    modules = [
        each for each in (gate["reload"] or {}).get("modules", ()) if _is_number(each["error"])
    ]
    if modules:
        errors = [(str(each["name"]), float(each["error"])) for each in modules]
        plots["modules.png"] = depth_plot(errors, "relative error of the weights")
    losses = [(str(each["module"]), float(each["loss"])) for each in _calibrated(manifest)]
    if losses:
        plots["loss.png"] = depth_plot(losses, "loss per output and token", log=True)
    plots["size.png"] = size_plot(
        [("source", sizes["source_bytes"]), ("quantized", sizes["output_bytes"])]
    )
    return plots


def _calibrated(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """GPTQ's account of each module; those without a finite loss left out."""
    return [each for each in manifest["conversion"]["modules"] if _is_number(each["loss"])]


def _ratio_rows(gate: Mapping[str, Any]) -> list[tuple[str, float, list[float] | None]]:
    """All texts, each text, and the noise floor."""
    several = [(each["text"], each) for each in gate["by_text"]]
    named = [("all", gate), *several]
    if gate["noise_floor"]:
        named.append(("noise floor", gate["noise_floor"]))
    return [
        (_plain(name), each["perplexity"]["ratio"], each["perplexity"]["ratio_interval"])
        for name, each in named
        if _is_number(each["perplexity"]["ratio"])
    ]


def _plain(name: str) -> str:
    """A text's name on one line, and short."""
    return " ".join(name.split())[:24]


def _is_number(value: object) -> bool:
    """What a plot can show: an infinity stands in the manifest as a text."""
    return isinstance(value, float)


def render_report(manifest: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """The page. A value that the manifest lacks is an error, never a blank."""
    environment = Environment(
        loader=PackageLoader("quantkit", "data"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["ratio"] = lambda value: f"{value:.4f}" if _is_number(value) else value
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["size"] = lambda count: f"{count / 1e6:,.1f} MB"
    images = [
        {"data": base64.b64encode(data).decode("ascii"), "caption": CAPTIONS[name], "name": name}
        for name, data in plots.items()
    ]
    template = environment.get_template("report.html.jinja")
    worst = sorted(_calibrated(manifest), key=lambda each: -each["loss"])[:_WORST]
    # what `check` judged was made by others, and is called by what its folder says
    made = method_words(manifest) if "plan" in manifest else manifest["recipe"]["summary"]
    return template.render(
        manifest, made=made, images=images, examples=_examples(manifest), worst=worst
    )


def _figure(value: float | str | None) -> str:
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _examples(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both continuations, cut where they part."""
    generation = manifest["gate"]["generation"] or {}
    return [
        {
            **each,
            "prompt": _text(each["prompt"]),
            "shared": _common(each),
            "reference_rest": _text(each["reference"])[len(_common(each)) :],
            "quantized_rest": _text(each["quantized"])[len(_common(each)) :],
        }
        for each in generation.get("examples", ())
    ]


def _text(value: str | list[int]) -> str:
    return value if isinstance(value, str) else " ".join(str(each) for each in value)


def _common(example: Mapping[str, Any]) -> str:
    """What both begin with, character by character: a token may end inside one."""
    one, other = _text(example["reference"]), _text(example["quantized"])
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]
