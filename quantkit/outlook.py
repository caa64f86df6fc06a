"""Before long work: what is known of it on this machine, now."""

from __future__ import annotations

import time

from quantkit.calibration import Calibration
from quantkit.evaluation import Material
from quantkit.plans import Plan, in_layer
from quantkit.recipe import Recipe
from quantkit.types import ITEM_BYTES, Event, Listener

#: Shorter work is not spoken of, in seconds: its progress says enough.
WORTH_SAYING = 60.0

#: Fewer operations than this are a minute's work nowhere; torch, which takes seconds to import, is
#: not asked how many it does.
_FEW = 10**12

#: A square product of this many rows is timed: large enough for the full rate.
_ROWS = 1024


def foretell(
    plan: Plan,
    recipe: Recipe,
    material: Material | None,
    calibration: Calibration | None,
    device: str,
    listener: Listener,
) -> None:
    """Tell ``listener`` of long work ahead, and of what the gate will not be able to do.

    ``material`` is ``None`` where no gate will run.
    """
    calibrating = calibration_operations(plan, calibration.tokens) if calibration else 0
    tokens = gate_tokens(plan, recipe, material) if material else 0
    said = [_times(calibrating, gate_operations(plan, tokens), tokens, device)]
    if material is not None and not recipe.evaluation.by_layer:
        said.append(_how_held(plan, device))
    for message in filter(None, said):
        listener(Event("plan", message=f"      {message}"))


def _times(calibrating: int, judging: int, tokens: int, device: str) -> str:
    """Lower bounds: products of matrices alone, at the rate of one that is timed here."""
    if calibrating + judging < _FEW:
        return ""
    rate = matrix_rate(device)
    long = [
        f"{what} {spoken(operations / rate)}"
        for what, operations in (
            ("calibration", calibrating),
            (f"gate ({tokens:,} tokens of text)", judging),
        )
        if operations / rate > WORTH_SAYING
    ]
    if not long:
        return ""
    return (
        f"of arithmetic alone, at the {rate / 1e9:,.0f} GFLOP/s measured on {device} now: "
        f"{', '.join(long)}; less where an earlier run is taken up"
    )


def _how_held(plan: Plan, device: str) -> str:
    """What follows where the gate's models will not fit whole."""
    from quantkit.gate.field import REFERENCE, room_for_models  # imports torch, as the gate will

    elements = sum(each.source.elements for each in plan.tensors if each.action != "drop")
    saved = elements * ITEM_BYTES[plan.dtype] if plan.is_calibrated else plan.output_bytes
    needed = elements * (ITEM_BYTES[REFERENCE] + ITEM_BYTES["float16"]) + saved
    room = room_for_models(device)
    if needed < room:
        return ""
    return (
        f"the gate will hold its models one layer at a time: whole they take {needed / 1e9:,.1f} "
        f"GB, and there is room for {max(room, 0) / 1e9:,.1f}; writing freely (generation) needs "
        "them whole and will not be run"
    )


def gate_tokens(plan: Plan, recipe: Recipe, material: Material) -> int:
    """Tokens in the windows that the gate scores, of all texts."""
    wanted = recipe.evaluation
    length = min(wanted.window, plan.max_positions or wanted.window)
    cut = [each.windows(length, wanted.max_windows) for each in material.texts]
    return sum(len(window) for windows in cut for window in windows)


def gate_operations(plan: Plan, tokens: int) -> int:
    """Of two passes, the source's and the output's: a product and a sum a weight and token."""
    return 2 * 2 * tokens * (_weights_in_layers(plan) + _head(plan))


def calibration_operations(plan: Plan, tokens: int) -> int:
    """GPTQ's: a pass through the layers, a Hessian (half of it) for each module, its inverse's
    Cholesky factor and the updates (Frantar et al., arXiv:2210.17323)."""
    modules = [each.shape for each in plan.with_action("quantize") if each.shape]
    hessians = sum(columns**2 for _, columns in modules) * tokens
    factors = sum(columns**3 for _, columns in modules) // 3
    updates = sum(rows * columns**2 for rows, columns in modules)
    passes = 2 * tokens * _weights_in_layers(plan)
    return passes + hessians + factors + updates


def _weights_in_layers(plan: Plan) -> int:
    """Elements of their matrices."""
    return sum(
        each.source.elements
        for each in plan.tensors
        if each.action != "drop" and in_layer(each.memory) and len(each.source.shape) == 2
    )


def _head(plan: Plan) -> int:
    """The largest matrix outside the layers; a tied head is the embedding."""
    outside = [
        each.source.elements
        for each in plan.tensors
        if each.action != "drop" and not in_layer(each.memory)
    ]
    return max(outside, default=0)


def matrix_rate(device: str) -> float:
    """Operations a second of a float32 product, the best of five."""
    import torch

    left = torch.ones(_ROWS, _ROWS, device=device)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        float((left @ left)[0, 0])  # waits for a device
        best = max(best, 2 * _ROWS**3 / (time.perf_counter() - start))
    return best


def spoken(seconds: float) -> str:
    """A length of time as people say it: minutes, or hours with one decimal."""
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
