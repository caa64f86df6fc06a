"""What a recipe makes a folder say beside what its source says.

``convert`` writes a recipe's prompt form as the chat template, and its generation settings. A
folder's own manifest names the recipe; that is a claim like any other, and is said as one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quantkit.errors import SourceError
from quantkit.prompts import chat_template
from quantkit.recipe import Generation, Prompt, Recipe
from quantkit.records import read_manifest
from quantkit.staging import MANIFEST


@dataclass(frozen=True)
class Claim:
    """One recipe's chat template and generation defaults. ``by`` says which recipe's, and is empty
    for the one that the folder is judged by."""

    by: str
    template: str | None
    generation: Mapping[str, Any]


def claims(folder: Path, recipe: Recipe | None) -> tuple[Claim, ...]:
    """Those of the ``recipe`` that was asked for, and of the one that the manifest names."""
    found = [_claim("", recipe.prompt, recipe.generation)] if recipe else []
    return (*found, *_of_manifest(folder))


def claimed_by(key: str, value: Any, known: Sequence[Claim]) -> str | None:
    """Who claims a generation default of that value; ``None`` where nobody does."""
    found = (each.by for each in known if key in each.generation and each.generation[key] == value)
    return next(found, None)


def _of_manifest(folder: Path) -> list[Claim]:
    if not os.path.lexists(folder / MANIFEST):
        return []
    try:
        recipe = read_manifest(folder).get("recipe")
        said = recipe if isinstance(recipe, Mapping) else {}
        prompt, generation = said.get("prompt"), said.get("generation")
        return [
            _claim(
                f"the recipe that its {MANIFEST} names",
                Prompt.model_validate(prompt) if prompt else None,
                Generation.model_validate(generation) if generation else None,
            )
        ]
    except (SourceError, ValidationError):
        return []  # one that cannot be read explains nothing


def _claim(by: str, prompt: Prompt | None, generation: Generation | None) -> Claim:
    return Claim(
        by,
        chat_template(prompt) if prompt else None,
        generation.model_dump(exclude_none=True) if generation else {},
    )
