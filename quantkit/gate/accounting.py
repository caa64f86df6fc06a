"""Level ``structure`` without a plan: a folder by anyone, held to the source it came from.

Every parameter is stored once and under the source's name, unquantized ones in the
source's shape, the parts of quantized ones as their format has them, every float is finite,
and the config computes what the source's does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.checkpoint.reading import same_values
from quantkit.gate import templates
from quantkit.gate.beside import adapters, code, other_weights
from quantkit.gate.claims import claims
from quantkit.gate.declared import undeclared
from quantkit.gate.opened import Opened
from quantkit.gate.parts import check_parts
from quantkit.gate.report import Failure, Level, judged
from quantkit.gate.settings import (
    GENERATION,
    added_generation,
    config_failures,
    expected_generation,
    generation_failures,
)
from quantkit.gate.structure import nonfinite
from quantkit.methods import BnbMethod
from quantkit.prompts import CHAT_TEMPLATE
from quantkit.recipe import Recipe
from quantkit.types import FLOAT_DTYPES, TensorRecord

_THRESHOLD = "llm_int8_threshold"

#: transformers' threshold where a config names none.
_USUAL_THRESHOLD = 6.0

#: After these measures the models can still be opened and compared.
READABLE = ("renamed tensors", "config.json", GENERATION, CHAT_TEMPLATE, templates.MEASURE)


def check_accounts(
    saved: Opened,
    original: Opened,
    generation: Mapping[str, Any],
    recipe: Recipe | None = None,
    *,
    values: bool = True,
) -> Level:
    """Hold ``saved`` to ``original``.

    ``generation`` is the source's generation_config.json; what ``recipe`` would have written is as
    good as the source's own. ``values`` looks for NaN and infinities in every float.
    """
    renamed, name_remarks = _names(saved, original)
    wanted = expected_generation(generation, original.parsed)
    known = claims(saved.folder, recipe)
    other_templates, template_remarks = templates.compare_templates(
        saved.folder, original.folder, known
    )
    added, added_remarks = added_generation(saved.folder, wanted, original.config, known)
    parts = list(check_parts(saved))
    failures = [
        *_left_over(saved),
        *renamed,
        *_doubles(saved),
        *_ties(saved),
        *_shapes(saved),
        *adapters(saved),
        *templates.unfit_templates(saved.folder),
        *other_templates,
        *(parts or undeclared(saved)),
        *config_failures(saved.parsed, original.parsed),
        *generation_failures(saved.folder, wanted, known, required=bool(generation)),
        *added,
        *(nonfinite(saved.folder, saved.index) if values else ()),
    ]
    measures = {
        "tensors": len(saved.index.tensors),
        "bytes": sum(saved.index.file_bytes.values()),
        "remarks": [
            *name_remarks,
            *template_remarks,
            *added_remarks,
            *_threshold(saved, recipe),
            *_casts(saved, original),
            *other_weights(saved),
            *code(saved.folder, original.folder),
        ],
    }
    return judged("structure", measures, failures)


def models_readable(structure: Level) -> bool:
    """Whether what failed leaves the models readable."""
    return all(each.measure in READABLE for each in structure.failures)


def _left_over(saved: Opened) -> Iterator[Failure]:
    missing = saved.missing
    extra = [name for name in saved.unknown if name not in saved.architecture.ignored]
    if missing:
        yield Failure("structure", "missing tensors", str(len(missing)), "0", missing[0])
    if extra:
        yield Failure("structure", "tensors without a place", str(len(extra)), "0", extra[0])


def _names(saved: Opened, original: Opened) -> tuple[list[Failure], list[str]]:
    """Stored under other names than the source's: older loaders leave those weights random.

    A name that differs by the model's own prefix (GPT-2's ``transformer.``) is found by
    every loader: a remark.
    """
    prefix = f"{original.architecture.base_prefix}."
    failures, prefixed = [], 0
    for name, parts in sorted(saved.parts.items()):
        here, source = _stored_name(parts), _stored_name(original.parts.get(name, {}))
        others = [each.name for each in saved.twice.get(name, ())]
        if not source or source in (here, *others):
            continue
        if here.removeprefix(prefix) == source.removeprefix(prefix):
            prefixed += 1
            continue
        failures.append(Failure("structure", "renamed tensors", here, source, name))
    remark = f"{prefixed} names differ from the source's by the prefix {prefix!r}"
    return failures, [remark] if prefixed else []


def _stored_name(parts: Mapping[str, Any]) -> str:
    """The stored name of a parameter; a quantized one's as it would be unquantized."""
    if "" in parts:
        return str(parts[""].name)
    return next((f"{each.name.removesuffix(part)}weight" for part, each in parts.items()), "")


def _doubles(saved: Opened) -> Iterator[Failure]:
    """Two stored tensors for one parameter: which is loaded depends on who loads it."""
    for name, others in saved.twice.items():
        first = saved.parts[name].get("")
        for other in others:
            if first is None or not _same_bytes(saved, first, other):
                kept = first.name if first else name
                yield Failure("structure", "tensors for one weight", "unlike", kept, other.name)


def _ties(saved: Opened) -> Iterator[Failure]:
    """A tied weight stored twice: transformers 5 ties only what is equal, others tie it anyway."""
    for tied, own in saved.architecture.ties.items():
        one, other = saved.parts.get(own), saved.parts.get(tied)
        if not one or not other:
            continue
        first, second = (each.get("") if len(each) == 1 else None for each in (one, other))
        if not (first and second and _same_bytes(saved, first, second)):
            names = _stored_name(one), _stored_name(other)
            yield Failure("structure", "tensors for one weight", "unlike", names[0], names[1])


def _same_bytes(saved: Opened, one: TensorRecord, other: TensorRecord) -> bool:
    return one.dtype == other.dtype and same_values(saved.folder, one, other)


def _shapes(saved: Opened) -> Iterator[Failure]:
    for name, parts in saved.parts.items():
        shape, _ = saved.architecture.parameters[name]
        if saved.is_quantized(name):
            continue
        record = parts[""]
        if record.shape != tuple(shape):
            got = str(list(record.shape))
            yield Failure("structure", "shape", got, str(list(shape)), record.name)
        elif record.dtype not in FLOAT_DTYPES:
            yield Failure("structure", "data type", record.dtype, "a float's", record.name)


def _casts(saved: Opened, original: Opened) -> Iterator[str]:
    """Unquantized weights in another data type than the source's."""
    found: dict[tuple[str, str], int] = {}
    for name, parts in saved.parts.items():
        here, there = parts.get(""), original.parts.get(name, {}).get("")
        if here and there and not saved.is_quantized(name) and here.dtype != there.dtype:
            pair = (there.dtype, here.dtype)
            found[pair] = found.get(pair, 0) + 1
    for (source, stored), count in sorted(found.items()):
        yield f"{count} unquantized tensors are {source} in the source and {stored} here"


def _threshold(saved: Opened, recipe: Recipe | None) -> Iterator[str]:
    """Which activations int8 keeps in float16: no stored tensor shows it."""
    method = recipe.method if recipe else None
    usual = method.llm_int8_threshold if isinstance(method, BnbMethod) else _USUAL_THRESHOLD
    found = saved.settings.get(_THRESHOLD, _USUAL_THRESHOLD)
    if saved.method != "bitsandbytes" or found == usual:
        return
    eight = saved.settings.get("load_in_8bit")
    effect = "at 0.0 no outliers are kept in float16" if eight else "of no effect on 4-bit weights"
    yield f"quantization_config: {_THRESHOLD} {str(found)[:40]}, usual {usual} ({effect})"
