"""What the gate costs: passes of the source, and memory with 8 and with 32 layers.

    python bench/gate.py [--hidden 512] [--windows 12] [--length 256]

Random GPT-NeoX models in fp16, quantized to NF4 by quantkit, judged on random ids. Every
measurement is a process of its own. A *pass* is the source itself, held whole in the data
type that the quantized model computes in (float16), over the same windows; the gate's cost
is that of `quantkit check` from the opened folder to the verdict, without imports.
Appends to bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
LAX = (
    "gate.max_perplexity_ratio=1e9",
    "gate.max_kl_mean=1e9",
    "gate.min_top1_agreement=0.0",
    "gate.min_generation_agreement=0.0",
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--hidden", type=int, default=512)
    options.add_argument("--windows", type=int, default=12)
    options.add_argument("--length", type=int, default=256)
    options.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantkit-bench-") as name:
        found = measure(Path(name), asked)
    lines = report(found, asked)
    print("\n".join(lines))
    if not asked.no_record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n".join(["", *lines, ""]))


def measure(place: Path, asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    found = {}
    for layers in (8, 32):
        prepare(place, layers, asked)
        found[f"pass {layers}"] = child("one_pass", place, layers)
        found[f"gate by layer {layers}"] = child("by_layer", place, layers)
        found[f"gate whole {layers}"] = child("whole", place, layers)
    return found


def prepare(place: Path, layers: int, asked: argparse.Namespace) -> None:
    from random_neox import write

    import quantkit

    size = {"hidden_size": asked.hidden, "num_hidden_layers": layers, "vocab_size": 4096}
    folder = place / f"source-{layers}"
    folder.mkdir()
    write(str(folder), size, "safetensors")
    quantkit.convert(folder, "bnb-nf4", place / f"nf4-{layers}", no_gate=True)
    drawn = random.Random(0)
    ids = [[drawn.randrange(4096) for _ in range(asked.length)] for _ in range(asked.windows)]
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
    from importlib.metadata import version

    libraries = ", ".join(f"{each} {version(each)}" for each in ("torch", "transformers"))
    lines = [
        f"## Gate, {datetime.now(UTC):%Y-%m-%d %H:%M}",
        "",
        f"`python bench/gate.py --hidden {asked.hidden} --windows {asked.windows} --length "
        f"{asked.length}`; {platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS="
        f"{os.environ.get('OMP_NUM_THREADS', 'unset')}, load {os.getloadavg()[0]:.1f}, {libraries}",
        "",
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


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
