"""The two sides of the GPTQ benches: how each is called, and what they are told."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bnb import process
from models import make_model

PEER = """
import json, os, sys
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
source, out, ids, options = sys.argv[1:5]
os.chdir(os.path.dirname(out))  # it writes its logs where it stands
from gptqmodel import GPTQModel, QuantizeConfig
options = json.loads(options)
model = GPTQModel.load(source, QuantizeConfig(offload_to_disk=False, **options), device="cpu")
windows = json.load(open(ids))
model.quantize([{"input_ids": w, "attention_mask": [1] * len(w)} for w in windows], batch_size=1)
model.save(out)
"""

#: What differs from 4 bits, groups of 128, symmetric: ours, theirs.
VARIANTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "sym": ([], {}),
    "asym": (["method.sym=false"], {"sym": False}),
    "desc_act": (["method.desc_act=true", "method.group_order=false"], {"desc_act": True}),
}


#: The calibration windows are taken as they are.
USUAL = ["calibration.length=256", "calibration.packing=apart"]


def ours(source: Path, out: Path, ids: Path, overrides: list[str]) -> list[str]:
    words = [
        sys.executable, "-m", "quantkit", "convert", str(source),
        "--recipe", "gptq-4bit-g128", "--out", str(out), "--no-gate", "--device", "cpu",
        "--calibration", str(ids),
    ]  # fmt: skip
    return words + [
        word for each in [*USUAL, "source.repo=", *overrides] for word in ("--set", each)
    ]


def warm(work: Path, peer: Path | None = None) -> None:
    """What a side does once for an installation (compiling its loops) is not what is compared."""
    small, ids = make_model(work, "tiny", "safetensors"), work / "few.json"
    ids.write_text(json.dumps([list(range(256))] * 2))
    process(ours(small, work / "ours", ids, []), work / "ours")
    if peer:
        process(theirs(peer, small, work / "theirs", ids, {"group_size": 128}), work / "theirs")


def theirs(python: Path, source: Path, out: Path, ids: Path, options: dict[str, Any]) -> list[str]:
    return [
        str(python),
        "-c",
        PEER,
        str(source),
        str(out),
        str(ids),
        json.dumps({"bits": 4, **options}),
    ]


def versions(peer: Path | None) -> str:
    found = f"torch {version('torch')}, transformers {version('transformers')}"
    if peer is None:
        return f"{found}; GPTQModel absent (--peer)"
    code = "from importlib.metadata import version as v; print(v('gptqmodel'), v('torch'))"
    asked = subprocess.run([peer, "-c", code], capture_output=True, text=True, check=True)
    return "{}; GPTQModel {} on torch {}".format(found, *asked.stdout.split())
