"""What is judged: one folder beside its source, and the windows of text it is judged by."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.evaluation import Material
from quantkit.gate.likelihood import Domain
from quantkit.gate.opened import Opened
from quantkit.gate.report import Level
from quantkit.recipe import Recipe
from quantkit.types import Listener


@dataclass(frozen=True)
class Case:
    """One folder to be judged, and by what. ``tokens`` is a level that was judged before."""

    original: Opened
    saved: Opened
    recipe: Recipe
    material: Material
    device: str
    listener: Listener
    length: int
    windows: tuple[tuple[int, ...], ...] = ()
    domains: tuple[Domain, ...] = ()
    tokens: Level | None = None


def make_case(
    original: Opened,
    saved: Opened,
    recipe: Recipe,
    material: Material,
    device: str,
    listener: Listener,
) -> Case:
    """Cut the texts into windows as the recipe and the model's positions allow."""
    length = recipe.evaluation.window
    length = min(length, original.architecture.max_positions or length)
    windows: list[tuple[int, ...]] = []
    domains = []
    for text in material.texts:
        start = len(windows)
        windows += text.windows(length, recipe.evaluation.max_windows)
        domains.append(Domain(text.name, text.sha256, range(start, len(windows))))
    return Case(
        original, saved, recipe, material, device, listener, length, tuple(windows), tuple(domains)
    )
