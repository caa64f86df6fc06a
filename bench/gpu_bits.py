"""What a CUDA device computes beside the CPU: the pieces of gpu.py that compare values."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import scale_sources as sources

#: what, measured, beside it, the bar that it is held to
Row = tuple[str, str, str, str]

#: Two float32 roundings of a value between -1 and 1: what is nearer to halfway may go either way.
HALFWAY = 2.0**-23

#: Of the wide model that is calibrated on both devices.
LAYERS, WINDOWS = 2, 8

#: Elements of the weight that is quantized on both devices: rows that differ in kind.
ROWS, COLUMNS = 4096, 1024


def kernels(args: argparse.Namespace) -> list[Row]:
    """The same weight on the device and by quantkit's CPU kernels: what differs, and why."""
    import torch

    from quantkit.elements import from_torch
    from quantkit.kernels.fourbit import quantize_4bit

    weight = odd_weight()
    rows: list[Row] = []
    kinds: tuple[Any, ...] = ("nf4", "fp4")
    for kind in kinds:
        here = quantize_4bit(from_torch(weight.reshape(-1)), kind, 64)
        packed, there = on_device(args, weight, kind)
        scales = int((there.numpy() != here.absmax).sum())
        ours, theirs = nibbles(torch.from_numpy(here.packed)), nibbles(packed)
        differ = ours != theirs
        same = decoded(ours, kind) == decoded(theirs, kind)
        absmax = torch.from_numpy(here.absmax.repeat(64)).double()
        zero_blocks = absmax == 0
        parts = weight.reshape(-1).double() / absmax
        middle = (decoded(ours, kind).double() + decoded(theirs, kind).double()) / 2
        halfway = ~same & ~zero_blocks & ((parts - middle).abs() <= HALFWAY)
        classes = {
            "signed zero": int((differ & same & ~zero_blocks).sum()),
            "zero blocks": int((differ & zero_blocks).sum()),
            "halfway between both": int((differ & halfway).sum()),
            "other": int((differ & ~same & ~zero_blocks & ~halfway).sum()),
        }
        said = ", ".join(f"{name} {count}" for name, count in classes.items())
        rows.append(
            (
                f"{kind}: nibbles that differ, {args.device} and CPU",
                f"{int(differ.sum())} of {differ.numel()}",
                f"{said}; absmax {scales}",
                "each class explained",
            )
        )
    return [*rows, int8_row(args, weight.to(torch.float16))]


def odd_weight() -> Any:
    """Random rows, zero blocks, signed zeros, subnormals and halfway values in float16."""
    import torch

    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    weight[::64, :64] = 0.0
    weight[1::64, ::3] = -0.0
    weight[2::64] *= 1e-6
    weight[3::64] = (weight[3::64] * 16).round() / 16
    return weight.to(torch.float16)


def on_device(args: argparse.Namespace, weight: Any, kind: Any) -> tuple[Any, Any]:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight.to(args.device), blocksize=64, quant_type=kind)
    return packed.cpu().reshape(-1), state.absmax.cpu()


def int8_row(args: argparse.Namespace, weight: Any) -> Row:
    from bitsandbytes import functional

    from quantkit.elements import to_torch
    from quantkit.kernels.int8 import quantize_int8

    here = quantize_int8(weight.numpy())
    ours = to_torch(here.rows)
    rows, scales, _ = functional.int8_vectorwise_quant(weight.to(args.device))
    differ = int((rows.cpu() != ours).sum())
    other, steps = rows.cpu().int(), weight.double() * 127 / to_torch(here.absmax)[:, None].double()
    apart = int((other - ours.int()).abs().max())
    halfway = (steps - (other + ours.int()) / 2).abs() <= 127 * HALFWAY
    near = int((halfway & (other != ours.int())).sum())
    of_scales = int((scales.cpu().numpy() != here.absmax).sum())
    what = f"int8: values that differ, {args.device} and CPU"
    said = f"halfway between both {near}, by {apart} at most; absmax {of_scales}"
    return what, f"{differ} of {weight.numel()}", said, "each class explained"


def nibbles(packed: Any) -> Any:
    import torch

    return torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1)


def decoded(codes: Any, kind: str) -> Any:
    from quantkit.elements import to_torch
    from quantkit.kernels import fourbit

    table = fourbit.NF4_CODE if kind == "nf4" else fourbit.FP4_CODE
    return to_torch(table)[codes.long()]


def agreement(args: argparse.Namespace) -> list[Row]:
    """GPTQ on the device and on the CPU: module losses, and the perplexity of a trained model.

    The demo is so narrow that a device computes it in float32; of the model that is asked for,
    random weights, two layers are calibrated on few windows.
    """
    at_cpu, there = demo_gptq(args, "cpu"), demo_gptq(args, args.device)
    perplexity = there[1] / at_cpu[1] - 1
    source = sources.truncated(sources_of(args), LAYERS)
    ids = sources.write_ids(sources_of(args), WINDOWS, args.length)
    wide = [losses(source, ids, args, device) for device in ("cpu", args.device)]
    return [
        (
            f"GPTQ of the demo model, {args.device} and CPU",
            f"perplexity {perplexity:+.3%}, module losses {apart(at_cpu[0], there[0])}",
            "float32 on both",
            "0.2 % and 1 %",
        ),
        (
            f"GPTQ of {args.model}'s first {LAYERS} layers, {args.device} and CPU",
            f"module losses {apart(*wide)}",
            f"{WINDOWS} x {args.length} tokens; the device multiplies as its recipe has it",
            "1 %",
        ),
    ]


def sources_of(args: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(**vars(args) | {"container": None})


def losses(source: Path, ids: Path, args: argparse.Namespace, device: str) -> list[float]:
    """Of each module of a random model."""
    import quantkit

    manifest = quantkit.convert(
        source, "gptq-4bit-g128", args.work / "gpu-wide", overwrite=True, no_gate=True,
        device=device, calibration=ids,  # type: ignore[arg-type]
        set=[f"calibration.length={args.length}", f"calibration.samples={WINDOWS}",
             "calibration.packing=apart", "source.repo="],
    )  # fmt: skip
    return [each["loss"] for each in manifest["conversion"]["modules"]]


def demo_gptq(args: argparse.Namespace, device: str) -> tuple[list[float], float]:
    """Module losses, and perplexity over all of the demo's held-out text."""
    import quantkit
    from quantkit.resources import demo_model

    manifest = quantkit.convert(
        demo_model(), "gptq-4bit-g128", args.work / "gpu-demo", overwrite=True,
        device=device, text=demo_model() / "heldout.txt",  # type: ignore[arg-type]
        set=["method.group_size=64", "calibration.length=256"],
    )  # fmt: skip
    found = [each["loss"] for each in manifest["conversion"]["modules"]]
    return found, manifest["gate"]["perplexity"]["quantized"]


def apart(one: list[float], other: list[float]) -> str:
    each = [abs(b / a - 1) for a, b in zip(one, other, strict=True) if a]
    return (
        f"{statistics.mean(each):.2%} apart in the mean, {max(each):.2%} at most, their sum "
        f"{sum(other) / sum(one) - 1:+.3%}"
    )
