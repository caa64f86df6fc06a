"""What a CUDA device computes beside the CPU: the pieces of gpu.py that compare values."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

#: what, measured, beside it, the bar that it is held to
Row = tuple[str, str, str, str]

#: Two float32 roundings of a value between -1 and 1: what is nearer to halfway may go either way.
HALFWAY = 2.0**-23

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
    """GPTQ of the demo model on the device and on the CPU: module losses and perplexity.

    Beside it, the CPU with its loops in torch: the same sums in another order. What that
    changes is what no two machines have in common.
    """
    from quantkit.kernels import rounding, rounding_cpu

    at_cpu, there = demo_gptq(args, "cpu"), demo_gptq(args, args.device)
    rounding_cpu.round_block = rounding.round_block
    otherwise = demo_gptq(args, "cpu")
    return [
        (
            f"GPTQ of the demo model, {args.device} and CPU",
            apart(at_cpu, there),
            f"the CPU's own loops and torch's: {apart(at_cpu, otherwise)}",
            "0.2 % and 1 %",
        )
    ]


def demo_gptq(args: argparse.Namespace, device: str) -> tuple[list[float], float]:
    """Module losses, and perplexity over all of the demo's held-out text."""
    import quantkit
    from quantkit.resources import demo_model

    manifest = quantkit.convert(
        demo_model(), "gptq-4bit-g128", args.work / "gpu-demo", overwrite=True,
        device=device, text=demo_model() / "heldout.txt",  # type: ignore[arg-type]
        set=["method.group_size=64", "calibration.length=256"],
    )  # fmt: skip
    losses = [each["loss"] for each in manifest["conversion"]["modules"]]
    return losses, manifest["gate"]["perplexity"]["quantized"]


def apart(one: tuple[list[float], float], other: tuple[list[float], float]) -> str:
    (losses, perplexity), (others, another) = one, other
    each = [abs(b / a - 1) for a, b in zip(losses, others, strict=True) if a]
    return (
        f"perplexity {another / perplexity - 1:+.3%}, module losses {statistics.mean(each):.2%} in "
        f"the mean, {max(each):.2%} at most, their sum {sum(others) / sum(losses) - 1:+.3%}"
    )
