"""The CPU kernels beside bitsandbytes' own, on the same weights, in one run.

    python bench/kernel_rates.py

Rates are of fp16 input, one thread of ours against bitsandbytes with all it takes;
outputs are compared bit for bit before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from bitsandbytes import functional
from bnb import machine, record

from quantkit.elements import from_torch
from quantkit.kernels.fourbit import quantize_4bit
from quantkit.kernels.int8 import quantize_int8
from quantkit.kernels.nested import quantize_absmax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    args = parser.parse_args()
    weight = torch.randn(args.rows, args.columns, generator=torch.Generator().manual_seed(0))
    weight = (weight * 0.02).to(torch.float16)
    rows = [four_bit(weight, kind, args.runs) for kind in ("nf4", "fp4")]
    rows += [eight_bit(weight, args.runs), nested(weight, args.runs)]
    text = "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} kernel_rates.py, "
            f"{args.rows} x {args.columns} fp16",
            "",
            f"{machine()}; medians of {args.runs} alternating runs; identical outputs.",
            "",
            "| kernel | quantkit MB/s | bitsandbytes MB/s | times |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
    record(text, args)


def four_bit(weight: torch.Tensor, kind: str, runs: int) -> str:
    flat = from_torch(weight.reshape(-1))
    ours = quantize_4bit(flat, kind, 64)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind)
    assert (ours.packed == packed.reshape(-1).numpy()).all()
    assert (ours.absmax == state.absmax.numpy()).all()
    return row(
        f"{kind}, block 64",
        weight.nbytes,
        lambda: quantize_4bit(flat, kind, 64),
        lambda: functional.quantize_4bit(weight, blocksize=64, quant_type=kind),
        runs,
    )


def eight_bit(weight: torch.Tensor, runs: int) -> str:
    matrix = from_torch(weight)
    ours = quantize_int8(matrix)
    rows, scales, _ = functional.int8_vectorwise_quant(weight)
    assert (ours.rows == rows.numpy()).all()
    assert (ours.absmax == scales.numpy()).all()
    return row(
        "int8",
        weight.nbytes,
        lambda: quantize_int8(matrix),
        lambda: functional.int8_vectorwise_quant(weight),
        runs,
    )


def nested(weight: torch.Tensor, runs: int) -> str:
    absmax = quantize_4bit(from_torch(weight.reshape(-1)), "nf4", 64).absmax
    tensor = torch.from_numpy(absmax)

    def theirs() -> None:
        functional.quantize_blockwise(tensor - tensor.mean(), blocksize=256)

    return row("nested absmax", absmax.nbytes, lambda: quantize_absmax(absmax), theirs, runs)


def row(
    name: str, size: int, ours: Callable[[], object], theirs: Callable[[], object], runs: int
) -> str:
    """Both sides in turn, the first of each not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs + 1):
        for side, work in zip(times, (ours, theirs), strict=True):
            start = time.perf_counter()
            work()
            side.append(time.perf_counter() - start)
    a, b = (size / 1e6 / statistics.median(side[1:]) for side in times)
    return f"| {name} | {a:.0f} | {b:.0f} | {a / b:.1f} |"


if __name__ == "__main__":
    main()
