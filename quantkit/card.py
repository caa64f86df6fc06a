"""manifest -> README.md. Every figure on the card comes from the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

NAME = "README.md"


def write_card(manifest: Mapping[str, Any], folder: Path) -> Path:
    """Render the card beside the manifest."""
    path = folder / NAME
    path.write_text(render_card(manifest), encoding="utf-8")
    return path


def render_card(manifest: Mapping[str, Any]) -> str:
    """The card's text. A value that the manifest lacks is an error, never a blank."""
    environment = Environment(
        loader=PackageLoader("quantkit", "data"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters["gigabytes"] = lambda count: f"{count / 1e9:.3f} GB"
    environment.filters["figure"] = lambda value: f"{value:.4g}"
    environment.filters["cell"] = _cell
    return environment.get_template("card.md.jinja").render(manifest)


def _cell(text: str) -> str:
    """Text that must stay inside one table cell."""
    return text.replace("|", "\\|").replace("\n", " ")
