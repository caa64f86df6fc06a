"""Headers + recipe -> Plan: every tensor's fate, before a byte of it is read.

Pure: the same headers and the same recipe give the same plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantkit.architecture import Architecture, Linear, read_architecture
from quantkit.checkpoint import shards
from quantkit.errors import SourceError
from quantkit.formats import Format, format_of
from quantkit.methods import BnbMethod, PlainMethod
from quantkit.plans import Plan, TensorPlan
from quantkit.prompts import chat_template
from quantkit.recipe import Recipe
from quantkit.source import Source
from quantkit.types import FLOAT_DTYPES, ITEM_BYTES, OutputTensor, TensorRecord

#: Output shards are cut at this size where the recipe does not say, in bytes.
MAX_SHARD_BYTES = 5_000_000_000


def make_plan(source: Source, recipe: Recipe) -> Plan:
    """Decide every tensor's fate from headers alone.

    Raises:
        UnsupportedModelError: the architecture is refused by name.
        SourceError: a tensor is left over, missing, or of another shape than the model's.
    """
    records = source.checkpoint.tensors
    architecture = read_architecture(
        source.folder,
        source.config,
        [record.name for record in records],
        recipe.method.dtype,
        _stored_dtype(records),
    )
    form = format_of(recipe.method)
    tensors = _fates(records, architecture, form, recipe)
    _refuse_incomplete(tensors, architecture)
    if form.quantizes() and not any(each.action == "quantize" for each in tensors):
        raise SourceError(
            f"{architecture.class_name}: no module would be quantized: none is a Linear that the "
            "format's library replaces, or the recipe ignores them all; use fp16 or bf16"
        )
    return Plan(
        model_type=architecture.model_type,
        class_name=architecture.class_name,
        dtype=architecture.dtype,
        method=recipe.method.model_dump(mode="json"),
        tensors=tensors,
        shards=shards.layout([each.outputs for each in tensors], _shard_limit(recipe)),
        config=_config(source, architecture, form, recipe, tensors),
        generation=_generation(source, recipe),
        chat_template=chat_template(recipe.prompt) if recipe.prompt else None,
        max_positions=architecture.max_positions,
        warnings=tuple(_warnings(source, architecture, recipe, tensors)),
    )


def _stored_dtype(records: Sequence[TensorRecord]) -> str:
    return next((each.dtype for each in records if each.dtype in FLOAT_DTYPES), "float32")


def _shard_limit(recipe: Recipe) -> int:
    method = recipe.method
    return method.max_shard_bytes if isinstance(method, PlainMethod) else MAX_SHARD_BYTES


def _fates(
    records: Sequence[TensorRecord], architecture: Architecture, form: Format, recipe: Recipe
) -> tuple[TensorPlan, ...]:
    in_memory = {
        memory: each.name
        for each in records
        if (memory := architecture.memory_names[each.name]) is not None
    }
    return tuple(_fate(each, architecture, form, recipe, in_memory) for each in records)


def _fate(
    record: TensorRecord,
    architecture: Architecture,
    form: Format,
    recipe: Recipe,
    in_memory: Mapping[str, str],
) -> TensorPlan:
    if reason := _drop_reason(record, architecture, recipe):
        return TensorPlan(record, "drop", reason, record.dtype)
    memory = architecture.memory_names[record.name]
    assert memory is not None  # a tensor without a place was dropped or refused above
    own = in_memory.get(architecture.ties.get(memory, ""))
    if own is not None and own != record.name:
        return TensorPlan(
            record, "drop", f"tied to {own}: the same weight twice", record.dtype, tied_to=own
        )
    shape, dtype = architecture.parameters[memory]
    if record.dtype == "float64":
        raise SourceError(f"{record.name}: float64 weights are not supported; cast them first")
    if record.shape != shape:
        raise SourceError(
            f"{record.name}: expected the shape {list(shape)} that config.json gives, got "
            f"{list(record.shape)}; config.json and the weights are of different models"
        )
    module, _, leaf = memory.rpartition(".")
    linear = architecture.linears.get(module) if leaf == "weight" else None
    if linear is not None and form.quantizes() and not _is_kept(module, architecture, recipe):
        return _quantized(record, linear, architecture.dtype, form)
    return _kept(record, dtype, _why_kept(linear, form))


def _drop_reason(record: TensorRecord, architecture: Architecture, recipe: Recipe) -> str | None:
    for pattern in recipe.source.drop:
        if re.search(pattern, record.name):
            return f"the recipe drops {pattern!r}"
    if architecture.memory_names[record.name] is not None:
        return None
    if record.name in architecture.ignored:
        return architecture.ignored[record.name]
    raise SourceError(
        f"{record.name}: {architecture.class_name} has no place for this tensor; if it may be "
        f"left out, name it in the recipe ([source] drop = [{re.escape(record.name)!r}])"
    )


def _is_kept(module: str, architecture: Architecture, recipe: Recipe) -> bool:
    ignore = recipe.method.ignore if isinstance(recipe.method, BnbMethod) else ()
    return architecture.is_kept(module, ignore)


def _why_kept(linear: Linear | None, form: Format) -> str:
    if linear is None:
        return "not the weight of a Linear module"
    return "left as it is: output head, tied, or ignored" if form.quantizes() else "plain"


def _kept(record: TensorRecord, dtype: str, reason: str) -> TensorPlan:
    nbytes = record.elements * ITEM_BYTES[dtype]
    output = OutputTensor(record.name, dtype, record.shape, nbytes)
    if dtype == record.dtype:
        return TensorPlan(record, "copy", reason, dtype, (output,))
    return TensorPlan(record, "cast", f"{record.dtype} to {dtype}; {reason}", dtype, (output,))


def _quantized(record: TensorRecord, linear: Linear, dtype: str, form: Format) -> TensorPlan:
    shape = (linear.out_features, linear.in_features)
    outputs = form.outputs(record.name, shape, dtype)
    return TensorPlan(
        record,
        "quantize",
        f"{linear.kind} {shape[0]} x {shape[1]}",
        dtype,
        outputs,
        shape,
        transposed=linear.kind == "Conv1D",
    )


def _refuse_incomplete(tensors: Sequence[TensorPlan], architecture: Architecture) -> None:
    """Every parameter of the model must come from the source, itself or through its tie."""
    present = {
        architecture.memory_names[each.source.name]
        for each in tensors
        if each.action != "drop" or each.tied_to
    }
    for tied, own in architecture.ties.items():
        if tied in present or own in present:
            present |= {tied, own}
    missing = sorted(set(architecture.parameters) - present)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(
            f"{missing[0]}{more}: {architecture.class_name} needs it and the checkpoint does not "
            "hold it; the checkpoint is incomplete or of another model"
        )


def _config(
    source: Source,
    architecture: Architecture,
    form: Format,
    recipe: Recipe,
    tensors: Sequence[TensorPlan],
) -> dict[str, Any]:
    """The source's config with the data type and the quantization written in."""
    # auto_map points at code in the source's repository, which is neither run nor carried on
    config = {key: value for key, value in source.config.items() if key != "auto_map"}
    for key in {"dtype", "torch_dtype"} & config.keys() or {"torch_dtype"}:
        config[key] = architecture.dtype
    quantization = form.quantization_config(_skipped(architecture, recipe, tensors))
    if quantization is not None:
        config["quantization_config"] = quantization
    return config


def _generation(source: Source, recipe: Recipe) -> dict[str, Any]:
    """The source's generation defaults, else its special ids; then the recipe's settings."""
    settings = dict(source.generation)
    if not settings:
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        settings = {key: source.config[key] for key in ids if source.config.get(key) is not None}
    if recipe.generation is not None:
        settings |= recipe.generation.model_dump(exclude_none=True)
    return settings


def _skipped(
    architecture: Architecture, recipe: Recipe, tensors: Sequence[TensorPlan]
) -> list[str] | None:
    """Modules to name as skipped; ``None`` when only those every loader finds by itself.

    Naming any replaces the loader's own list, so the kept ones must then be named too,
    and under the source's names as well, since older loaders use those.
    """
    ignore = recipe.method.ignore if isinstance(recipe.method, BnbMethod) else ()
    if not ignore:
        return None
    in_memory = {architecture.memory_names[each.source.name]: each.source.name for each in tensors}
    sources = {
        in_memory[f"{module}.weight"].removesuffix(".weight")
        for module in architecture.kept
        if f"{module}.weight" in in_memory
    }
    return sorted({*architecture.kept, *ignore, *sources})


def _warnings(
    source: Source, architecture: Architecture, recipe: Recipe, tensors: Sequence[TensorPlan]
) -> Iterator[str]:
    stored = _stored_dtype(source.checkpoint.tensors)
    if stored != architecture.dtype:
        yield (
            f"the weights are stored as {stored}; {architecture.dtype} is written "
            f"({'the recipe' if recipe.method.dtype != 'auto' else 'config.json'} says so)"
        )
    quantized = [each for each in tensors if each.action == "quantize"]
    if isinstance(recipe.method, BnbMethod) and recipe.method.quant_type != "int8":
        block = recipe.method.block_size
        odd = [each for each in quantized if _stock_cpu_cannot_run(each.shape, block)]
        if odd:
            yield (
                f"{len(odd)} modules, first {odd[0].source.name} {list(odd[0].shape or ())}: stock "
                "bitsandbytes cannot run such shapes on CPUs with AVX512-BF16 (rows in "
                f"multiples of 32, columns of {block}); other CPUs and CUDA can"
            )


def _stock_cpu_cannot_run(shape: tuple[int, int] | None, block_size: int) -> bool:
    return shape is not None and (shape[0] % 32 != 0 or shape[1] % block_size != 0)
