"""What a plan warns of: what some library will not open, what a recipe says to no effect."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from quantkit.architecture import Architecture
from quantkit.carried import NAMED_TEMPLATES, is_carried, named_templates
from quantkit.methods import BnbMethod, GptqMethod, PlainMethod
from quantkit.plans import TensorPlan
from quantkit.recipe import Recipe
from quantkit.source import Source
from quantkit.types import FLOAT_DTYPES, TensorRecord


def stored_dtype(records: Sequence[TensorRecord]) -> str:
    """The data type of the checkpoint's weights: that of its first floating-point tensor."""
    return next((each.dtype for each in records if each.dtype in FLOAT_DTYPES), "float32")


def cautions(
    source: Source, architecture: Architecture, recipe: Recipe, tensors: Sequence[TensorPlan]
) -> Iterator[str]:
    """The plan's warnings, each a sentence; none of them stops a conversion."""
    stored, method = stored_dtype(source.checkpoint.tensors), recipe.method
    if stored != architecture.dtype:
        yield (
            f"the weights are stored as {stored}; {architecture.dtype} is written "
            f"({'the recipe' if method.dtype != 'auto' else 'config.json'} says so)"
        )
    if odd := [each for each in tensors if each.unfit]:
        yield f"{len(odd)} modules stay {architecture.dtype}: {odd[0].source.name}: {odd[0].reason}"
    # counted, not named: a stranger's file name may be a link on the card, or no Unicode at all
    if left := len([each for each in named_templates(source.folder) if not is_carried(each)]):
        yield (
            f"{NAMED_TEMPLATES}/: {left} stay behind: a name of letters, digits, '_', '-' and '.', "
            "at most 64 of them, is carried on"
        )
    quantized = [each for each in tensors if each.action == "quantize"]
    if not isinstance(method, PlainMethod):
        for entry in method.ignore:
            if not any(architecture.matches(module, entry) for module in architecture.linears):
                yield (
                    f"the recipe ignores {entry!r}, which is no module's name, beginning or end "
                    f"(a module is called {next(iter(architecture.linears))})"
                )
    if isinstance(method, GptqMethod):
        yield from _gptq_cautions(method, architecture, quantized, tensors)
    if isinstance(method, BnbMethod):
        yield from _bnb_cautions(method, quantized)


def _bnb_cautions(method: BnbMethod, quantized: Sequence[TensorPlan]) -> Iterator[str]:
    if method.quant_type == "int8":
        return
    block = method.block_size
    odd = [each for each in quantized if _stock_cpu_cannot_run(each.shape, block)]
    if odd:
        yield (
            f"{len(odd)} modules, first {odd[0].source.name} {list(odd[0].shape or ())}: stock "
            "bitsandbytes cannot run such shapes on CPUs with AVX512-BF16 (rows in "
            f"multiples of 32, columns of {block}); other CPUs and CUDA can"
        )
    # seen with bitsandbytes 0.50.2 alone, every multiple of 16 from 16 to 368
    widths = [(each, each.shape[1]) for each in odd if each.shape is not None]
    wrong = [each for each, width in widths if width % 16 == 0 and width % block != 0]
    if wrong:
        yield (
            f"{len(wrong)} modules, first {wrong[0].source.name}: bitsandbytes' own CPU decoder is "
            f"wrong for columns in multiples of 16 that are none of {block}, so that a gate on a "
            "CPU fails though the bytes are right; judge it on CUDA, or leave them out "
            "(method.ignore)"
        )


def _stock_cpu_cannot_run(shape: tuple[int, int] | None, block_size: int) -> bool:
    return shape is not None and (shape[0] % 32 != 0 or shape[1] % block_size != 0)


def _gptq_cautions(
    method: GptqMethod,
    architecture: Architecture,
    quantized: Sequence[TensorPlan],
    tensors: Sequence[TensorPlan],
) -> Iterator[str]:
    if method.checkpoint_format == "gptq" and not method.sym:
        yield (
            "GPTQModel itself refuses sym=false in checkpoint_format gptq from any other tool "
            "(transformers and AutoGPTQ open it); for GPTQModel use gptq_v2"
        )
    yield from _kernel_cautions(method)
    if method.override:
        yield "overrides of single modules are read by GPTQModel only, not through transformers"
    names = [each.source.name.removesuffix(".weight") for each in quantized]
    for each in method.override:
        if not any(re.search(each.pattern, name) for name in names):
            yield f"the override {each.pattern!r} is found in the name of no quantized module"
    yield from _left_in_layers(architecture, tensors)
    modules = {(each.memory or "").removesuffix(".weight") for each in quantized}
    if touched := sorted(modules & set(architecture.initialized)):
        last = sorted({module.rpartition(".")[2] for module in touched})
        yield (
            f"transformers cannot open this: when it loads a {architecture.class_name} it "
            f"initializes {touched[0]}.weight, which a GPTQ module does not have (--set "
            f"'method.ignore={json.dumps(last)}' leaves {len(touched)} modules as they are, and it "
            "opens; GPTQModel itself opens it as it is, where the source's names begin with "
            f"{architecture.base_prefix!r})"
        )


def _kernel_cautions(method: GptqMethod) -> Iterator[str]:
    """What GPTQModel's kernels for CPUs make wrong; seen with 7.6.0 alone."""
    known = [(method.bits, method.group_size)]
    known += [
        (each.bits or known[0][0], each.group_size or known[0][1]) for each in method.override
    ]
    if (4, -1) in known and not method.sym:
        yield (
            "GPTQModel's CPU kernel for whole rows at 4 bits takes no account of zero points: its "
            "answers are wrong with sym=false; use sym=true or groups, or load it with "
            'GPTQConfig(bits=4, backend="torch")'
        )
    if (4, 16) in known:
        yield (
            "GPTQModel's CPU kernel for 4 bits stops at groups of 16; use groups of 32 or more, or "
            'load it with GPTQConfig(bits=4, backend="torch")'
        )


def _left_in_layers(architecture: Architecture, tensors: Sequence[TensorPlan]) -> Iterator[str]:
    names = [
        each.source.name
        for each in tensors
        if each.action in ("copy", "cast") and architecture.is_layer_weight(each.memory)
    ]
    if names:
        yield (
            f"{len(names)} modules of the layers stay as they are, first {names[0]}: AutoGPTQ has "
            "no way to be told, and does not open such a folder (transformers and GPTQModel do)"
        )
