"""Several quantized folders of one source, measured in one pass over the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import SourceError, UsageError, explained, on_one_line
from quantkit.evaluation import Material
from quantkit.gate.accounting import READABLE, check_accounts
from quantkit.gate.case import make_case
from quantkit.gate.field import Field, fits, opened_field
from quantkit.gate.likelihood import likelihood_measures
from quantkit.gate.opened import Opened, open_original, open_saved
from quantkit.gate.protocol import protocol
from quantkit.gate.reload import weight_errors
from quantkit.gate.scoring import Candidate, score
from quantkit.quiet import quiet_libraries
from quantkit.recipe import Recipe
from quantkit.source import Source
from quantkit.types import Event, Listener, listening, silent


@dataclass(frozen=True)
class Measured:
    """Each folder's measures and protocol in the order given, and the noise floor's.

    The floor is of the first folder's ``floor_dtype``.
    """

    folders: tuple[Mapping[str, Any], ...]
    floor: Mapping[str, Any] | None
    floor_dtype: str
    protocols: tuple[Mapping[str, Any], ...]


def measure_folders(
    folders: Sequence[Path],
    source: Source,
    recipe: Recipe,
    material: Material,
    device: str = "cpu",
    listener: Listener = silent,
) -> Measured:
    """Score every folder on the same windows as the source; nothing is judged.

    The noise floor is of the first folder's data type.

    Raises:
        UsageError: there is no text that the source can encode.
        SourceError: a folder cannot be opened.
    """
    original = open_original(source)
    saved = [open_saved(each) for each in folders]
    for each in saved:
        _refuse_incomparable(each, original, source)
    case = make_case(original, saved[0], recipe, material, device, listener)
    if not case.windows:
        raise UsageError("the source has no tokenizer; give token ids (--text FILE.json)")
    whole = not recipe.evaluation.by_layer and fits(original, saved, device)
    total = len(case.windows)
    with (
        listening(listener) as tell,
        quiet_libraries(),
        explained(_unopened),
        opened_field(original, saved, case.windows, device, whole=whole) as field,
    ):
        worst = _walk(field, saved)
        candidates = [Candidate(each, range(total)) for each in field.saved]
        if field.floor is not None:
            candidates.append(Candidate(field.floor, field.floor_windows))
        scores = score(
            field.reference,
            candidates,
            case.windows,
            lambda done: tell(Event("perplexity", done, total, "windows")),
        )
        words = tuple(
            protocol(material.texts, total, case.length, each, field, device) for each in saved
        )
        dtype = field.floor_dtype
    measures = [likelihood_measures(each) for each in scores]  # the floor's last, if there is one
    found = [
        each | {"max_weight_error": error} for each, error in zip(measures, worst, strict=False)
    ]
    floor = measures[-1] if field.floor is not None else None
    return Measured(tuple(found), floor, dtype, words)


def _refuse_incomparable(saved: Opened, original: Opened, source: Source) -> None:
    """A loader would fill in what is missing, and the figures would be of that."""
    got, wanted = (each.parsed.get_text_config().vocab_size for each in (saved, original))
    if got != wanted:
        raise SourceError(
            f"{saved.folder}: a vocabulary of {got}, expected the source's {wanted}; is it made "
            f"from {source.given}?"
        )
    structure = check_accounts(saved, original, source.generation)
    unfit = [each for each in structure.failures if each.measure not in READABLE]
    if unfit:
        raise SourceError(
            f"{saved.folder}: not to be compared: {'; '.join(map(str, unfit[:3]))}; 'quantkit "
            "check DIR --against SOURCE' says all of it"
        )


def _unopened(error: Exception) -> SourceError:
    return SourceError(
        f"compare: the models cannot be opened and run: {on_one_line(error)}; 'quantkit check "
        "DIR --against SOURCE' says which"
    )


def _walk(field: Field, saved: Sequence[Opened]) -> list[float]:
    """Every runner to its end, in step; the largest error of each folder's weights."""
    runners = [field.reference, *field.saved, *([field.floor] if field.floor else [])]
    worst = [0.0 for _ in saved]
    for step in zip(*(each.pieces() for each in runners), strict=True):
        (prefix, wanted), *others = step
        for at, opened in enumerate(saved):
            errors = weight_errors(others[at][1], wanted, prefix, opened)
            worst[at] = max([worst[at], *(each.relative for each in errors)])
        del step, wanted, others
    return worst
