"""Level ``structure`` without a plan: a folder by anyone, held to the source it came from.

Every parameter is stored once and under the source's name, unquantized ones in the
source's shape, the parts of quantized ones as their format has them, every float is finite,
and the config computes what the source's does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint.folder import CANDIDATES
from quantkit.checkpoint.reading import same_values
from quantkit.errors import SourceError
from quantkit.gate.opened import Opened
from quantkit.gate.parts import check_parts
from quantkit.gate.report import Failure, Level, judged
from quantkit.gate.settings import config_failures, expected_generation, generation_failures
from quantkit.gate.structure import nonfinite
from quantkit.scrutiny import check_template, check_tokenizer_config
from quantkit.source import read_object
from quantkit.types import FLOAT_DTYPES, TensorRecord

_ADAPTER = "adapter_config.json"
_MOST_TEMPLATES = 16
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")

#: After these measures the models can still be opened and compared.
READABLE = ("renamed tensors", "config.json", "generation_config.json", "chat_template.jinja")


def check_accounts(saved: Opened, original: Opened, generation: Mapping[str, Any]) -> Level:
    """``generation`` is the source's generation_config.json."""
    renamed, remarks = _names(saved, original)
    wanted = expected_generation(generation, original.parsed)
    failures = [
        *_left_over(saved),
        *renamed,
        *_doubles(saved),
        *_shapes(saved),
        *_adapters(saved),
        *_template(saved),
        *check_parts(saved),
        *config_failures(saved.parsed, original.parsed),
        *generation_failures(saved.folder, wanted, required=bool(generation)),
        *nonfinite(saved.folder, saved.index),
    ]
    measures = {
        "tensors": len(saved.index.tensors),
        "bytes": sum(saved.index.file_bytes.values()),
        "remarks": [*remarks, *_casts(saved, original), *_others(saved)],
    }
    return judged("structure", measures, failures)


def goes_on(structure: Level) -> bool:
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
    """The stored name of a parameter, a quantized one's as if it were not."""
    for part, record in parts.items():
        if not part:
            return str(record.name)
    for part, record in parts.items():
        return f"{record.name.removesuffix(part)}weight"
    return ""


def _doubles(saved: Opened) -> Iterator[Failure]:
    """Two stored tensors for one parameter: which is loaded depends on who loads it."""
    for name, others in saved.twice.items():
        first = saved.parts[name].get("")
        for other in others:
            if first is None or not _same_bytes(saved, first, other):
                kept = first.name if first else name
                yield Failure("structure", "tensors for one weight", "unlike", kept, other.name)


def _same_bytes(saved: Opened, one: TensorRecord, other: TensorRecord) -> bool:
    return one.dtype == other.dtype and same_values(saved.folder, one, other)


def _shapes(saved: Opened) -> Iterator[Failure]:
    for name, parts in saved.parts.items():
        shape, _ = saved.architecture.parameters[name]
        record = parts.get("")
        if record is None or saved.is_quantized(name):
            continue
        if record.shape != tuple(shape):
            got = str(list(record.shape))
            yield Failure("structure", "shape", got, str(list(shape)), record.name)
        elif record.dtype not in FLOAT_DTYPES:
            yield Failure("structure", "data type", record.dtype, "a float's", record.name)


def _adapters(saved: Opened) -> Iterator[Failure]:
    """transformers, where peft is installed, would load it over the model, or another model."""
    if (saved.folder / _ADAPTER).exists():
        yield Failure("structure", _ADAPTER, "there", "no adapter")


def _template(saved: Opened) -> Iterator[Failure]:
    """Chat templates that no library should render, and a tokenizer that needs code."""
    found = [saved.folder / "chat_template.jinja", *_further_templates(saved.folder)]
    for path in filter(Path.is_file, found):
        try:
            check_template(path.read_text(encoding="utf-8", errors="replace"), path.name)
        except SourceError as error:
            yield Failure("structure", path.name, str(error), "a template")
    name = "tokenizer_config.json"
    try:
        check_tokenizer_config(read_object(saved.folder / name), name)
    except SourceError as error:
        yield Failure("structure", name, str(error), "templates and no code")


def _further_templates(folder: Path) -> list[Path]:
    return sorted((folder / "additional_chat_templates").glob("*.jinja"))[:_MOST_TEMPLATES]


def _others(saved: Opened) -> Iterator[str]:
    """Weight files that nothing here has read; another loader may prefer them."""
    known = {*saved.index.files}
    found = sorted(
        each.name
        for each in saved.folder.iterdir()
        if each.suffix in _WEIGHTS and each.name not in known
    )
    indices = [
        name
        for name, _ in CANDIDATES
        if name.endswith(".json") and (saved.folder / name).exists() and len(known) == 1
    ]
    if others := [*found, *indices]:
        yield f"not judged, as nothing here reads it: {', '.join(others[:5])}"


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
