"""Headers + recipe -> Plan: every tensor's fate, before a byte of it is read.

Pure: the same headers and the same recipe give the same plan.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantkit.architecture import Architecture, Linear, read_architecture
from quantkit.cautions import cautions, stored_dtype
from quantkit.checkpoint import shards
from quantkit.errors import SourceError
from quantkit.formats import Format, format_of
from quantkit.formats.gptq import AUTOGPTQ_OPENS
from quantkit.methods import GptqMethod, PlainMethod
from quantkit.plans import Plan, TensorPlan
from quantkit.prompts import chat_template
from quantkit.recipe import Recipe
from quantkit.settings import generation_defaults, output_config
from quantkit.source import Source, read_object
from quantkit.tokenization import check_hidden
from quantkit.tokenizer import sentencepiece_file
from quantkit.types import FLOAT_DTYPES, ITEM_BYTES, OutputTensor, TensorRecord

#: Output shards are cut at this size where the recipe does not say, in bytes.
MAX_SHARD_BYTES = 5_000_000_000


def make_plan(source: Source, recipe: Recipe) -> Plan:
    """Decide every tensor's fate from headers alone.

    Raises:
        UnsupportedModelError: the architecture is refused by name.
        SourceError: a tensor is left over, missing, there under two names, of another shape than
            the model's, or does not go with the recipe's values; or the tokenizer would take added
            tokens apart.
    """
    records = source.checkpoint.tensors
    architecture = read_architecture(
        source.folder,
        source.config,
        [record.name for record in records],
        recipe.method.dtype,
        stored_dtype(records),
    )
    form = format_of(recipe.method)
    tensors = _fates(records, architecture, form, recipe)
    _refuse_doubles(tensors, architecture)
    _refuse_incomplete(tensors, architecture)
    _refuse_mostly_skipped(tensors, architecture, recipe)
    plain = isinstance(recipe.method, PlainMethod)
    if not plain and not any(each.action == "quantize" for each in tensors):
        raise SourceError(
            f"{architecture.class_name}: no module would be quantized: none is a Linear that the "
            "format's library replaces, or the recipe ignores them all; use fp16 or bf16"
        )
    _refuse_hidden_tokens(source, recipe)
    return Plan(
        model_type=architecture.model_type,
        class_name=architecture.class_name,
        dtype=architecture.dtype,
        method=recipe.method.model_dump(mode="json"),
        tensors=tensors,
        shards=shards.layout(_as_made(source, tensors), _shard_limit(recipe)),
        config=output_config(source, architecture, form, tensors),
        generation=generation_defaults(source, recipe),
        chat_template=chat_template(recipe.prompt) if recipe.prompt else None,
        split_special_tokens=recipe.tokenizer.split_special_tokens,
        max_positions=architecture.max_positions,
        warnings=tuple(cautions(source, architecture, recipe, tensors)),
    )


def _refuse_hidden_tokens(source: Source, recipe: Recipe) -> None:
    path = sentencepiece_file(source.folder)
    if path is not None and recipe.tokenizer.split_special_tokens:
        check_hidden(path, read_object(source.folder / "tokenizer_config.json"))


def _as_made(source: Source, tensors: Sequence[TensorPlan]) -> list[Sequence[OutputTensor]]:
    """What stands for each tensor, in the order in which a conversion reads the source.

    It is the order of :func:`quantkit.checkpoint.stream.segments`: by name where two begin alike.
    What a calibration makes is written after all that is read.
    """
    order = {name: at for at, name in enumerate(source.checkpoint.files)}

    def place(item: TensorPlan) -> tuple[int, int, str]:
        record = item.source
        return order[record.file], record.offset, record.name

    return [each.outputs for each in sorted(tensors, key=place)]


def _shard_limit(recipe: Recipe) -> int:
    method = recipe.method
    return method.max_shard_bytes if isinstance(method, PlainMethod) else MAX_SHARD_BYTES


def _fates(
    records: Sequence[TensorRecord], architecture: Architecture, form: Format, recipe: Recipe
) -> tuple[TensorPlan, ...]:
    # of two tensors for one weight the last stays, for others to be tied to: one that is kept
    by_memory = {
        memory: each.name
        for each in sorted(records, key=lambda each: _left_out_by(each, recipe) is None)
        if (memory := architecture.memory_names[each.name]) is not None
    }
    return tuple(_fate(each, architecture, form, recipe, by_memory) for each in records)


def _fate(
    record: TensorRecord,
    architecture: Architecture,
    form: Format,
    recipe: Recipe,
    by_memory: Mapping[str, str],
) -> TensorPlan:
    if reason := _drop_reason(record, architecture, recipe):
        return TensorPlan(record, "drop", reason, record.dtype)
    memory = architecture.memory_names[record.name]
    assert memory is not None  # a tensor without a place was dropped or refused above
    own = by_memory.get(architecture.ties.get(memory, ""))
    if own is not None and own != record.name:
        return TensorPlan(
            record, "drop", f"tied to {own}: the same weight twice", record.dtype, tied_to=own
        )
    shape, dtype = architecture.parameters[memory]
    _refuse_unlike(record, shape, dtype)
    module, _, leaf = memory.rpartition(".")
    linear = architecture.linears.get(module) if leaf == "weight" else None
    reason, unfit = _why_kept(module, linear, architecture, form, recipe), None
    if linear is not None and reason is None:
        out_in = linear.out_features, linear.in_features
        if not all(out_in):
            raise SourceError(
                f"{record.name}: {out_in[0]} x {out_in[1]}: there is nothing to quantize; leave it "
                f"out in the recipe ([method] ignore = {json.dumps([module])})"
            )
        unfit = form.unfit(record.name, out_in, linear.kind)
        if unfit is None:
            return _quantized(record, linear, architecture.dtype, form, memory)
        reason = f"does not fit the format: {unfit}"
    names = {record.name, *_head_names(memory, module, architecture, recipe)}
    return replace(_kept(record, dtype, reason or "", memory, sorted(names)), unfit=unfit)


def _refuse_unlike(record: TensorRecord, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse a tensor that is not as the model's parameter is."""
    if record.dtype == "float64":
        raise SourceError(f"{record.name}: float64 weights are not supported; cast them first")
    if dtype in FLOAT_DTYPES and record.dtype not in FLOAT_DTYPES:
        raise SourceError(
            f"{record.name}: stored as {record.dtype}, expected a float's type: it is damaged, or "
            "quantized already; give the unquantized checkpoint"
        )
    if record.shape != shape:
        raise SourceError(
            f"{record.name}: expected the shape {list(shape)} that config.json gives, got "
            f"{list(record.shape)}; config.json and the weights are of different models"
        )


def _left_out_by(record: TensorRecord, recipe: Recipe) -> str | None:
    return next((each for each in recipe.source.drop if re.search(each, record.name)), None)


def _drop_reason(record: TensorRecord, architecture: Architecture, recipe: Recipe) -> str | None:
    if (pattern := _left_out_by(record, recipe)) is not None:
        return f"the recipe drops {pattern!r}"
    if architecture.memory_names[record.name] is not None:
        return None
    if record.name in architecture.ignored:
        return architecture.ignored[record.name]
    raise SourceError(
        f"{record.name}: {architecture.class_name} has no place for this tensor; if it may be "
        f"left out, name it in the recipe ([source] drop = {json.dumps([re.escape(record.name)])})"
    )


def _why_kept(
    module: str,
    linear: Linear | None,
    architecture: Architecture,
    form: Format,
    recipe: Recipe,
) -> str | None:
    """Why a tensor is not to be quantized; ``None`` when it is, if it fits the format."""
    if linear is None:
        return "not the weight of a Linear module"
    if isinstance(recipe.method, PlainMethod):
        return "plain"
    if architecture.is_kept(module, recipe.method.ignore):
        return "left as it is: output head, tied, or ignored"
    if form.calibrated and not architecture.in_layer(module):
        return "left as it is: outside the decoder layers"
    return None


def _head_names(
    memory: str, module: str, architecture: Architecture, recipe: Recipe
) -> tuple[str, ...]:
    """Under which other names GPTQ's loaders look for the output head.

    They fill it with zeros where they do not find it. GPTQModel looks under transformers' name,
    AutoGPTQ under the checkpoint's, and for a tied head beside its embedding; others tie it.
    """
    method = recipe.method
    if not (isinstance(method, GptqMethod) and method.both_head_names):
        return ()
    if module in architecture.kept_modules:
        return (memory,)
    ties = architecture.ties if architecture.model_type in AUTOGPTQ_OPENS else {}
    return tuple(tied for tied, own in ties.items() if own == memory)


def _kept(
    record: TensorRecord, dtype: str, reason: str, memory: str, names: Sequence[str]
) -> TensorPlan:
    nbytes = record.elements * ITEM_BYTES[dtype]
    if others := [each for each in names if each != record.name]:
        reason = f"{reason}; also written as {', '.join(others)}, where some loaders look for it"
    outputs = tuple(OutputTensor(name, dtype, record.shape, nbytes) for name in names)
    if dtype == record.dtype:
        return TensorPlan(record, "copy", reason, dtype, outputs, memory=memory)
    reason = f"{record.dtype} to {dtype}; {reason}"
    return TensorPlan(record, "cast", reason, dtype, outputs, memory=memory)


def _quantized(
    record: TensorRecord, linear: Linear, dtype: str, form: Format, memory: str
) -> TensorPlan:
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
        memory=memory,
    )


def _refuse_mostly_skipped(
    tensors: Sequence[TensorPlan], architecture: Architecture, recipe: Recipe
) -> None:
    """Modules that fit no loader may stay as they are, but not most of a model."""
    method = recipe.method
    if not isinstance(method, GptqMethod):
        return
    unfit = [(each.source.name, each.unfit) for each in tensors if each.unfit]
    meant = len(unfit) + sum(each.action == "quantize" for each in tensors)
    if len(unfit) > method.max_skipped_share * meant:
        # shown is one whose reason tells what to do, if there is one
        name, why = next((each for each in unfit if "would fit" in each[1]), unfit[0])
        raise SourceError(
            f"{architecture.class_name}: {len(unfit)} of {meant} modules cannot be quantized, more "
            f"than the {method.max_skipped_share:.0%} that the recipe lets pass; among them "
            f"{name}, which does not fit the format: {why} (--set method.group_size=N or "
            "method.max_skipped_share=SHARE)"
        )


def _refuse_doubles(tensors: Sequence[TensorPlan], architecture: Architecture) -> None:
    """Refuse two tensors for one weight: loaders would not agree on which it is."""
    found: dict[str, str] = {}
    for item in tensors:
        name = item.source.name
        if item.memory is not None and (other := found.setdefault(item.memory, name)) != name:
            raise SourceError(
                f"{name}: {architecture.class_name} has one place for it and for {other}; leave "
                f"one out in the recipe ([source] drop = {json.dumps([f'^{re.escape(name)}$'])})"
            )


def _refuse_incomplete(tensors: Sequence[TensorPlan], architecture: Architecture) -> None:
    """Every parameter of the model must come from the source, itself or through its tie."""
    left_out = {each.source.name for each in tensors if each.action == "drop" and not each.tied_to}
    present = {
        architecture.memory_names[each.source.name]
        for each in tensors
        if each.action != "drop" or (each.tied_to and each.tied_to not in left_out)
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
