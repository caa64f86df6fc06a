"""What peers.py runs: each tool's own code for a weight-only conversion, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass

from bnb import THEIRS

#: Each code is run as ``python -c CODE SOURCE OUT IDS``.
BEGIN = """
import json, os, sys, torch
from transformers import AutoModelForCausalLM
source, out, ids = sys.argv[1:4]
"""

TORCHAO = (
    BEGIN
    + """
from transformers import TorchAoConfig
from torchao.quantization import {config}
from torchao.quantization.granularity import PerGroup
model = AutoModelForCausalLM.from_pretrained(
    source, dtype="auto", device_map="cpu", quantization_config=TorchAoConfig({call}))
model.save_pretrained(out)
"""
)

#: By hqq itself: transformers 5 does not quantize with it yet. The devices are named, since it
#: looks for a Llama's layers otherwise.
HQQ = (
    BEGIN
    + """
from hqq.core.quantize import BaseQuantizeConfig
from hqq.models.hf.base import AutoHQQHFModel
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
config = BaseQuantizeConfig(nbits={bits}, group_size=128)
devices = dict((name, "cpu") for name, _ in model.named_children())
AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.float16,
                              device=devices)
AutoHQQHFModel.save_quantized(model, out)
"""
)

AUTOROUND = """
import sys
from auto_round import AutoRound
AutoRound(model=sys.argv[1], scheme="{scheme}", model_free=True).quantize_and_save(sys.argv[2])
"""

LLMC_FREE = """
import sys
from llmcompressor import model_free_ptq
model_free_ptq(sys.argv[1], sys.argv[2], scheme="{scheme}", ignore=["re:.*embed.*"], device="cpu")
"""

LLMC_GPTQ = (
    BEGIN
    + """
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
windows = json.load(open(ids))
rows = [dict(input_ids=each, attention_mask=[1] * len(each)) for each in windows]
model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"], dampening_frac=0.05)
oneshot(model=model, dataset=Dataset.from_list(rows), recipe=recipe, output_dir=out,
        num_calibration_samples=len(rows), max_seq_length=len(windows[0]))
"""
)

OPTIMUM = (
    BEGIN
    + """
from optimum.gptq import GPTQQuantizer
rows = [dict(input_ids=[each], attention_mask=[[1] * len(each)]) for each in json.load(open(ids))]
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16, device_map="cpu")
quantizer = GPTQQuantizer(bits=4, dataset=rows, group_size=128, sym=True, desc_act=False,
                          damp_percent=0.05, model_seqlen=len(rows[0]["input_ids"][0]))
quantizer.save(quantizer.quantize_model(model, None), out)
"""
)

GPTQMODEL = """
import json, sys
from gptqmodel import GPTQModel, QuantizeConfig
source, out, ids = sys.argv[1:4]
config = QuantizeConfig(bits=4, group_size=128, offload_to_disk=False)
model = GPTQModel.load(source, config, device="cpu")
windows = [dict(input_ids=w, attention_mask=[1] * len(w)) for w in json.load(open(ids))]
model.quantize(windows, batch_size=1)
model.save(out)
"""


@dataclass(frozen=True)
class Route:
    """One way of one tool: ``name`` on its own, ``made`` what it writes."""

    name: str
    made: str
    code: str
    slow: bool = False


def _ao(config: str, arguments: str = "") -> str:
    return TORCHAO.format(config=config, call=f"{config}({arguments})")


def _bnb(kind: str) -> str:
    """transformers' route takes its kind where the others are given ids."""
    return f"import sys; sys.argv[3] = {kind!r}\n{THEIRS}"


ROUTES: dict[str, tuple[Route, ...]] = {
    "transformers": (
        Route("bitsandbytes nf4", "4 bits, blocks of 64", _bnb("bnb-nf4")),
        Route("bitsandbytes int8", "8 bits, rows", _bnb("bnb-int8")),
    ),
    "torchao": (
        Route("Int8WeightOnly", "8 bits, rows", _ao("Int8WeightOnlyConfig")),
        Route("Int4WeightOnly", "4 bits, groups of 128",
              _ao("Int4WeightOnlyConfig", "group_size=128")),
        Route("IntxWeightOnly int4", "4 bits, groups of 128, a byte each",
              _ao("IntxWeightOnlyConfig",
                  "weight_dtype=torch.int4, granularity=PerGroup(128)")),
    ),
    "hqq": (
        Route("4 bits", "4 bits, groups of 128, the head too", HQQ.format(bits=4)),
        Route("8 bits", "8 bits, groups of 128, the head too", HQQ.format(bits=8)),
    ),
    "autoround": (
        Route("model-free W4A16", "4 bits, groups of 128, rounded", AUTOROUND.format(
            scheme="W4A16")),
        Route("model-free W8A16", "8 bits, rounded", AUTOROUND.format(scheme="W8A16")),
    ),
    "llmcompressor": (
        Route("model-free W4A16", "4 bits, groups of 128, rounded",
              LLMC_FREE.format(scheme="W4A16")),
        Route("model-free W8A16", "8 bits, rounded", LLMC_FREE.format(scheme="W8A16")),
        Route("GPTQ W4A16", "4 bits, groups of 128, calibrated", LLMC_GPTQ, slow=True),
    ),
    "optimum": (Route("GPTQ", "4 bits, groups of 128, calibrated", OPTIMUM, slow=True),),
    "gptqmodel": (Route("GPTQ", "4 bits, groups of 128, calibrated", GPTQMODEL, slow=True),),
}  # fmt: skip

OURS = (
    Route("bnb-nf4", "4 bits, blocks of 64", "bnb-nf4"),
    Route("bnb-int8", "8 bits, rows", "bnb-int8"),
    Route("gptq-4bit-g128", "4 bits, groups of 128, calibrated", "gptq-4bit-g128", slow=True),
)
