"""What the gate costs: passes of the source, and memory with 8 and with 32 layers.

    python bench/gate.py [layers] [--hidden 512] [--windows 12] [--length 256]
    python bench/gate.py convert [--model 267M] [--windows 16] [--length 1024]

``convert`` is the whole command, gate included, beside one pass and the floor of bench/bnb.py.

Random GPT-NeoX models in fp16, quantized to NF4 by quantkit, judged on random ids. Every
measurement is a process of its own. A *pass* is the source itself, held whole in the data
type that the quantized model computes in (float16), over the same windows; the gate's cost
is that of `quantkit check` from the opened folder to the verdict, without imports; that of
`convert` is its whole process.
Appends to bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import bnb
from models import SIZES, make_source

LAX = (
    "gate.max_perplexity_ratio=1e9",
    "gate.max_kl_mean=1e9",
    "gate.min_top1_agreement=0.0",
    "gate.min_generation_agreement=0.0",
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", nargs="?", choices=["layers", "convert"], default="layers")
    options.add_argument("--hidden", type=int, default=512)
    options.add_argument("--model", choices=SIZES, default="267M", help="for convert")
    options.add_argument("--windows", type=int, help="12, for convert 16")
    options.add_argument("--length", type=int, help="256 tokens, for convert 1024")
    options.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    asked = options.parse_args()
    usual = (12, 256) if asked.what == "layers" else (16, 1024)
    asked.windows, asked.length = asked.windows or usual[0], asked.length or usual[1]
    with tempfile.TemporaryDirectory(prefix="quantkit-bench-") as name:
        if asked.what == "convert":
            lines = converted(Path(name), asked)
        else:
            lines = report(measure(Path(name), asked), asked)
    bnb.record("\n".join([*lines, ""]), asked)


def measure(place: Path, asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    found = {}
    for layers in (8, 32):
        prepare(place, layers, asked)
        found[f"pass {layers}"] = child("one_pass", place, layers)
        found[f"gate by layer {layers}"] = child("by_layer", place, layers)
        found[f"gate whole {layers}"] = child("whole", place, layers)
    return found


def converted(place: Path, asked: argparse.Namespace) -> list[str]:
    """The whole of ``convert`` in NF4 with its gate, after one that fills the caches."""
    source = make_source(place / "source-0", SIZES[asked.model], "safetensors")
    write_ids(place, SIZES[asked.model]["vocab_size"], asked)
    out, spent = place / "out", child("one_pass", place, 0)
    words = [sys.executable, "-m", "quantkit", "convert", source, "--recipe", "bnb-nf4"]
    words += ["--out", out, "--text", place / "ids.json", "--device", "cpu", "--overwrite"]
    os.environ["QUANTKIT_CACHE"] = str(place / "cache")
    bnb.process([*map(str, words), "--no-gate"], out)
    run = bnb.process([*map(str, words), *(f"--set={each}" for each in LAX)], out)
    judged = json.loads((out / "quantkit-manifest.json").read_text())["gate"]
    assert judged["levels"]["perplexity"] == judged["levels"]["generation"] == "passed", judged
    floor = bnb.floor(place, source, "bnb-nf4", (out / "model.safetensors").stat().st_size)
    passes = (run.seconds - floor["floor"]) / spent["seconds"]
    return [
        *heading(asked, f"convert --model {asked.model}"),
        "| what | seconds | peak MB |",
        "| --- | --- | --- |",
        f"| one pass of {asked.windows} windows | {spent['seconds']:.1f} | "
        f"{spent['peak'] / 1e6:.0f} |",
        f"| floor of the conversion | {floor['floor']:.1f} | |",
        f"| convert with its gate | {run.seconds:.1f} | {run.peak / 1e6:.0f} |",
        "",
        f"Beyond the floor: {passes:.2f} passes.",
    ]


def prepare(place: Path, layers: int, asked: argparse.Namespace) -> None:
    from random_neox import write

    import quantkit

    size = {"hidden_size": asked.hidden, "num_hidden_layers": layers, "vocab_size": 4096}
    folder = place / f"source-{layers}"
    folder.mkdir()
    write(str(folder), size, "safetensors")
    quantkit.convert(folder, "bnb-nf4", place / f"nf4-{layers}", no_gate=True)
    write_ids(place, 4096, asked)


def write_ids(place: Path, vocabulary: int, asked: argparse.Namespace) -> None:
    drawn = random.Random(0)
    ids = [[drawn.randrange(vocabulary) for _ in range(asked.length)] for _ in range(asked.windows)]
    (place / "ids.json").write_text(json.dumps(ids))


def child(task: str, place: Path, layers: int) -> dict[str, float]:
    """``task`` in a process of its own: seconds and peak bytes."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", task, str(place), str(layers)],
        check=True, capture_output=True, text=True, env=os.environ | {"QUANTKIT_CACHE": "off"},
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_child(task: str, place: Path, layers: int) -> None:
    spent = {"one_pass": one_pass, "by_layer": by_layer, "whole": whole}[task](place, layers)
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": spent, "peak": int(peak.split()[1]) * 1024}))


def one_pass(place: Path, layers: int) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place / f"source-{layers}", dtype=torch.float16)
    windows = json.loads((place / "ids.json").read_text())
    with torch.inference_mode():
        model(input_ids=torch.tensor(windows[:1]), use_cache=False)
        start = time.perf_counter()
        for window in windows:
            model(input_ids=torch.tensor([window]), use_cache=False)
    return time.perf_counter() - start


def by_layer(place: Path, layers: int) -> float:
    return check(place, layers, "evaluation.by_layer=true")


def whole(place: Path, layers: int) -> float:
    return check(place, layers, "evaluation.new_tokens=1")


def check(place: Path, layers: int, *more: str) -> float:
    import torch  # noqa: F401 - imports are not the gate's cost
    import transformers.models.gpt_neox.modeling_gpt_neox  # noqa: F401

    import quantkit

    start = time.perf_counter()
    found = quantkit.check(
        place / f"nf4-{layers}", place / f"source-{layers}", recipe="bnb-nf4",
        text=place / "ids.json", set=[*LAX, *more],
    )  # fmt: skip
    assert found["gate"]["levels"]["perplexity"] == "passed", found["gate"]
    return time.perf_counter() - start


def report(found: dict[str, dict[str, float]], asked: argparse.Namespace) -> list[str]:
    lines = [
        *heading(asked, f"--hidden {asked.hidden}"),
        "| layers | what | seconds | passes | peak MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for layers in (8, 32):
        unit = found[f"pass {layers}"]["seconds"]
        for what in ("pass", "gate by layer", "gate whole"):
            each = found[f"{what} {layers}"]
            lines.append(
                f"| {layers} | {what} | {each['seconds']:.1f} | {each['seconds'] / unit:.2f} | "
                f"{each['peak'] / 1e6:.0f} |"
            )
    growth = found["gate by layer 32"]["peak"] / found["gate by layer 8"]["peak"] - 1
    return [*lines, "", f"Peak by layer, 32 layers against 8: {growth:+.1%}."]


def heading(asked: argparse.Namespace, words: str) -> list[str]:
    libraries = ", ".join(f"{each} {version(each)}" for each in ("torch", "transformers"))
    return [
        f"## Gate, {datetime.now(UTC):%Y-%m-%d %H:%M}",
        "",
        f"`python bench/gate.py {words} --windows {asked.windows} --length {asked.length}`; "
        f"{bnb.machine()}; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, "
        f"load {os.getloadavg()[0]:.1f}, {libraries}",
        "",
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
