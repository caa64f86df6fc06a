"""The ``[method]`` and ``[calibration]`` of a recipe, one class a format.

Every value is written out: no default of a library's is inherited.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

FloatDtype = Literal["float32", "float16", "bfloat16"]


class Strict(BaseModel):
    """Unknown keys and values of another type are errors; instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


def _compiles_in_a_group(pattern: str) -> str:
    _compiles(f"(?:{pattern})")
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]

#: Modules that stay as they are. transformers puts it into a group: no ``(?i)`` for all of it.
Ignored = Annotated[Pattern, AfterValidator(_compiles_in_a_group)]


class BnbMethod(Strict):
    """bitsandbytes: NF4 and FP4 (QLoRA, arXiv 2305.14314), LLM.int8 (arXiv 2208.07339)."""

    format: Literal["bnb"]
    quant_type: Literal["nf4", "fp4", "int8"]
    block_size: Literal[64, 128, 256, 512, 1024, 2048, 4096]
    double_quant: bool
    compute_dtype: FloatDtype
    quant_storage: Literal["uint8", "float16", "bfloat16", "float32"]
    llm_int8_threshold: float
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    ignore: tuple[Ignored, ...]


class PlainMethod(Strict):
    """No quantization: only the data type and the container change."""

    format: Literal["plain"]
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    max_shard_bytes: Annotated[int, Field(gt=0)]


Bits = Literal[2, 3, 4, 8]
GroupSize = Literal[-1, 16, 32, 64, 128]


class Override(Strict):
    """Other values for the modules whose name ``pattern`` matches anywhere."""

    pattern: Pattern
    bits: Bits | None = None
    group_size: GroupSize | None = None


class GptqMethod(Strict):
    """GPTQ (arXiv 2210.17323), in AutoGPTQ's file layout; docs/gptq.md explains each key."""

    format: Literal["gptq"]
    bits: Bits
    group_size: GroupSize
    sym: bool
    desc_act: bool
    static_groups: bool
    true_sequential: bool
    damp_percent: Annotated[float, Field(gt=0, lt=1)]
    scale_search: bool
    group_order: bool
    error_feedback: Annotated[float, Field(ge=0, le=1)]
    checkpoint_format: Literal["gptq", "gptq_v2"]
    both_head_names: bool
    max_skipped_share: Annotated[float, Field(ge=0, le=1)]
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    ignore: tuple[Ignored, ...]
    override: tuple[Override, ...] = ()


Method = Annotated[BnbMethod | GptqMethod | PlainMethod, Field(discriminator="format")]

#: The class of each method, by its name in ``format``.
METHODS: dict[str, type[Strict]] = {
    get_args(each.model_fields["format"].annotation)[0]: each
    for each in get_args(get_args(Method)[0])
}


class CalibrationSection(Strict):
    """What GPTQ calibrates on: ``samples`` windows of ``length`` tokens.

    ``data`` is a file, ``"hub:OWNER/NAME/path/in/dataset"``, or ``""`` for the text that
    ships with quantkit; ``packing`` joins documents end to end or keeps them apart.
    """

    samples: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=2)]
    seed: int
    packing: Literal["joined", "apart"] = "joined"
    data: str = ""
