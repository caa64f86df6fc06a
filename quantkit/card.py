"""manifest -> README.md. Every figure on the card comes from the manifest."""

from __future__ import annotations

import marshal
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from quantkit.cache import remembered_bytes
from quantkit.carddata import identity, metadata, method_words, needs, title
from quantkit.frontmatter import dump, read_card
from quantkit.snippet import snippet
from quantkit.sourcecard import SITE, folded

NAME = "README.md"

_TEMPLATE = "card.md.jinja"


def write_card(manifest: Mapping[str, Any], folder: Path) -> Path:
    """Render the card beside the manifest."""
    path = folder / NAME
    path.write_text(render_card(manifest), encoding="utf-8")
    return path


@cache
def _template() -> Template:
    """The template, compiled once and kept: compiling takes longer than all else on a card."""
    options: dict[str, Any] = {
        "trim_blocks": True,
        "lstrip_blocks": True,
        "keep_trailing_newline": True,
        "optimized": False,  # else what a filter makes may be compiled in, not a call of it
    }
    environment = Environment(
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, not HTML
        **options,
    )
    environment.filters["gigabytes"] = lambda count: f"{count / 1e9:.3f} GB"
    environment.filters["figure"] = _figure
    environment.filters["with_error"] = _with_error
    environment.filters["cell"] = _cell
    environment.filters["code"] = _code
    environment.filters["code_list"] = _code_list
    text = (files("quantkit") / "data" / _TEMPLATE).read_text("utf-8")
    compiled = remembered_bytes(
        "card",
        [text, options, version("jinja2"), MAGIC_NUMBER.hex()],
        lambda: marshal.dumps(environment.compile(text, _TEMPLATE, _TEMPLATE)),
    )
    return Template.from_code(environment, marshal.loads(compiled), environment.globals)


def render_card(manifest: Mapping[str, Any]) -> str:
    """The card's text. A value that the manifest lacks is an error, never a blank."""
    source, data = manifest["source"], metadata(manifest)
    own = read_card(source["card"])
    name = identity(manifest)
    languages = data.get("language", [])
    return _template().render(
        manifest,
        benchmarks=manifest.get("benchmarks", []),
        front_matter=dump(data),
        title=title(manifest),
        name=name or source["name"],
        known=name,
        method=method_words(manifest),
        needs=needs(manifest),
        # what a recipe says of a model holds for that model only
        notes=manifest["recipe"]["card"] if name == manifest["recipe"]["source"]["repo"] else None,
        snippet=snippet(manifest, languages),
        command=command(manifest["request"]),
        licence=(manifest["publication"] or source)["licence"],
        site=SITE,
        source_card=folded(own.body, name, source["revision"]),
        source_card_problem=own.problem,
    )


def command(request: Mapping[str, Any]) -> str:
    """The command line that makes the same folder."""
    words = ["quantkit", "convert", request["source"], "--recipe", request["recipe"]]
    if request["revision"]:
        words += ["--revision", request["revision"]]
    for each in request["set"]:
        words += ["--set", each]
    for each in request["texts"]:
        words += ["--text", each]
    if request["calibration"]:
        words += ["--calibration", request["calibration"]]
    for each in request.get("checksums", []):  # manifests of an earlier quantkit have none
        words += ["--checksums", each]
    if request.get("device", "auto") != "auto":
        words += ["--device", request["device"]]
    for flag in ("require_verified", "allow_withdrawn", "no_gate"):
        words += [f"--{flag.replace('_', '-')}"] if request[flag] else []
    return shlex.join([*words, "--out", request["out"]])


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _with_error(measured: Mapping[str, Any] | None) -> str:
    """A figure and its standard error, where there is one."""
    if measured is None:
        return ""
    error = measured["stderr"]
    return _figure(measured["value"]) + ("" if error is None else f" ± {_figure(error)}")


def _cell(text: str) -> str:
    """Text that must stay inside one table cell."""
    return re.sub(r"[\r\n]", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _code_list(texts: Sequence[str]) -> str:
    """Each inside backticks of its own."""
    return ", ".join(f"`{_code(each)}`" for each in texts)


def _code(text: str) -> str:
    """Text that must stay inside one pair of backticks."""
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("`", "'")
