"""What scale.py measures in part: run in the process that is measured, notes left as JSON.

python bench/scale_children.py gptq SOURCE OUT IDS LENGTH SAMPLES DEVICE NOTES
python bench/scale_children.py gate SOURCE SAVED IDS WINDOW WINDOWS DEVICE NOTES
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

LAX = (
    "gate.max_perplexity_ratio=1e9",
    "gate.max_kl_mean=1e9",
    "gate.min_top1_agreement=0.0",
    "gate.max_weight_error=1e9",
)


def gptq_child(
    source: str, out: str, ids: str, length: str, samples: str, device: str, notes: str
) -> None:
    import quantkit

    begun: list[float] = []

    def listen(event: Any) -> None:
        # windows go side by side: a layer has begun when the first of them are told of
        if event.stage == "calibrate" and (event.done - 1) // int(samples) == len(begun):
            begun.append(time.perf_counter())

    manifest = quantkit.convert(
        source, "gptq-4bit-g128", out, calibration=ids, no_gate=True, device=device,
        set=[f"calibration.length={length}", f"calibration.samples={samples}",
             "calibration.packing=apart", "source.repo="],
        listener=listen,
    )  # fmt: skip
    made = quantkit.plan(source, "gptq-4bit-g128", set=["source.repo="])
    inside = [each for each in made.tensors if ".layers.0." in each.source.name]
    found = {
        "layers": [after - before for before, after in pairwise(begun)],
        "verify": manifest["seconds"]["verify"],
        "output_bytes": manifest["sizes"]["output_bytes"],
        "device_peak": device_peak(),
        "layer_bytes": sum(output.nbytes for each in inside for output in each.outputs),
    }
    Path(notes).write_text(json.dumps(found))


def gate_child(
    source: str, saved: str, ids: str, window: str, windows: str, device: str, notes: str
) -> None:
    import quantkit

    spent = watch_gate()
    walked: list[float] = []

    def listen(event: Any) -> None:
        if event.stage == "walk":
            walked.append(time.perf_counter())

    found = quantkit.check(
        saved, source, recipe="bnb-nf4", text=ids, device=device, listener=listen,
        set=[*LAX, "evaluation.by_layer=true", f"evaluation.window={window}",
             f"evaluation.max_windows={windows}"],
    )  # fmt: skip
    levels = found["gate"]["levels"]
    assert levels["perplexity"] == levels["reload"] == "passed", found["gate"]
    layers = len(walked) - 1
    ran = sum(sum(times) for name, times in spent.items() if name.startswith("run "))
    # the last layer is run after the walk's last word
    load = (walked[-1] - walked[0] - ran * (layers - 1) / layers) / layers
    Path(notes).write_text(json.dumps({"spent": spent, "load": load, "device_peak": device_peak()}))


def device_peak() -> int:
    """The most that torch has held of a CUDA device's memory at once."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def watch_gate() -> dict[str, list[float]]:
    """Have every run of a layer, every head and every comparison timed, by model."""
    from quantkit.gate import scoring
    from quantkit.sweep import Sweep

    spent: dict[str, list[float]] = {}
    roles: dict[int, str] = {}
    names = ["reference", "saved", "floor"]  # in the order in which the gate opens them

    def timed(work: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(first: Any, *more: Any) -> Any:
            of_sweep = isinstance(first, Sweep)
            if of_sweep:
                role = roles.setdefault(id(first), names[min(len(roles), 2)])
            start = time.perf_counter()
            made = work(first, *more)
            took = time.perf_counter() - start
            spent.setdefault(f"{name} {role}" if of_sweep else name, []).append(took)
            return made

        return call

    entered = Sweep.__enter__

    def enter(self: Sweep) -> Sweep:
        roles.setdefault(id(self), names[min(len(roles), 2)])
        return entered(self)

    Sweep.__enter__ = enter  # type: ignore[method-assign]
    Sweep._run = timed(Sweep._run, "run")  # type: ignore[method-assign]
    Sweep.logits = timed(Sweep.logits, "logits")  # type: ignore[method-assign]
    scoring._compare = timed(scoring._compare, "compare")
    return spent


if __name__ == "__main__":
    {"gptq": gptq_child, "gate": gate_child}[sys.argv[1]](*sys.argv[2:])
