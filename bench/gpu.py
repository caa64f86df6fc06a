"""All comparisons that need a CUDA device, each in a process of its own, and one table.

    bench/gpu.sh [--wheels DIR]                              # on a bare machine: sets up, then this
    python bench/gpu.py --device cpu --model tiny            # the same, small, without a GPU

A step that fails, or that the budget leaves no time for, stands in the table as that. Where a
tool is not installed its rows say so. Appends to bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bnb
import floor
import scale
from bnb import HERE, SIZES, machine, record

#: what, measured, beside it, the bar that it is held to
Row = tuple[str, str, str, str]

#: What a step may take of the budget at most, in seconds.
LONGEST = 240

#: Two float32 roundings of a value between -1 and 1: what is nearer to halfway may go either way.
HALFWAY = 2.0**-23

#: GPTQModel is run with so many layers, and with so many, after a run that compiles what it needs.
PEER_LAYERS = 1, 4

#: Elements of the weight that is quantized on both devices: rows that differ in kind.
ROWS, COLUMNS = 4096, 1024


def main() -> None:
    args = parsed()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["QUANTKIT_CACHE"] = str(args.work / "cache")
    if args.step:
        rows = STEPS[args.step](args)
        (args.work / f"gpu-{args.step}.json").write_text(json.dumps(rows))
        return
    end = time.monotonic() + args.budget
    rows = [row for name in args.steps for row in in_turn(args, name, end)]
    text = report(args, rows)
    record(text, args)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--model", choices=SIZES, default="3.6B")
    parser.add_argument(
        "--layers", type=int, default=4, help="measured for GPTQ; the rest computed"
    )
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--length", type=int, default=2048, help="tokens of one of them")
    parser.add_argument("--windows", type=int, default=scale.WINDOWS, help="of the gate")
    parser.add_argument("--runs", type=int, default=1, help="of each side, for nf4 and int8")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all steps")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--work", type=Path, default=Path("/tmp/quantkit-bench"))
    parser.add_argument("--no-record", action="store_true", help="do not write RESULTS.md")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_turn(args: argparse.Namespace, name: str, end: float) -> list[Row]:
    """One step in a process of its own: a device that is lost stops no other."""
    left = min(LONGEST, end - time.monotonic())
    if left < 5:
        return [(name, "not run", "the budget was spent", "")]
    notes = args.work / f"gpu-{name}.json"
    notes.unlink(missing_ok=True)
    words = [sys.executable, str(HERE / "gpu.py"), *sys.argv[1:], "--step", name]
    start = time.monotonic()
    made = bnb.attempt(words, args.work / "none", limit=left)
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    if isinstance(made, str):
        last = next((line for line in reversed(made.splitlines()) if line.strip()), made)
        return [(name, "failed", last.strip().replace("|", "/")[:200], "")]
    return [(row[0], row[1], row[2], row[3]) for row in json.loads(notes.read_text())]


# steps


def tests(args: argparse.Namespace) -> list[Row]:
    """tests/gpu; without a device they are collected and skipped, which is not passing."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    words += ["-n", "12"] if (os.cpu_count() or 1) >= 16 else []
    done = subprocess.run(
        [*words, "tests/gpu"], cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    (args.work / "gpu-tests.log").write_text(done.stdout + done.stderr)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    return [("tests/gpu", last.strip("= "), f"exit status {done.returncode}", "all pass")]


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


def nf4(args: argparse.Namespace) -> list[Row]:
    return beside_transformers(args, "bnb-nf4", "at least 3 times transformers")


def int8(args: argparse.Namespace) -> list[Row]:
    return beside_transformers(args, "bnb-int8", "")


def beside_transformers(args: argparse.Namespace, recipe: str, bar: str) -> list[Row]:
    source = scale.source_of(for_scale(args))
    asked = argparse.Namespace(work=args.work, runs=args.runs, device=args.device, ours_only=False)
    found = bnb.in_turn(asked, source, recipe)
    ours, theirs = bnb.median(found["ours"]), bnb.median(found["theirs"])
    startup, limits = physical(args, source, found["written"])
    name, slowest = max(limits.items(), key=lambda each: each[1])
    parts = ", ".join(f"{each} {seconds:.2f}" for each, seconds in limits.items())
    first = found["first"].seconds
    return [
        (
            f"{recipe}, whole process",
            f"{ours.seconds:.2f} s, {ours.peak / 1e6:.0f} MB (first run {first:.2f} s)",
            f"transformers {theirs.seconds:.2f} s, {theirs.peak / 1e6:.0f} MB: "
            f"{theirs.seconds / ours.seconds:.2f} x faster",
            bar,
        ),
        (
            f"{recipe}, beside max(read, copy, write)",
            f"{ours.seconds / slowest:.2f} times {name}; with start-up {startup:.2f} s, "
            f"{ours.seconds / (startup + slowest):.2f} times both",
            f"{parts} s",
            "at most 2",
        ),
    ]


def physical(args: argparse.Namespace, source: Path, written: int) -> tuple[float, dict[str, Any]]:
    """Seconds of start-up, and of reading, copying to the device and writing, each alone."""
    files = sorted([*source.glob("*.safetensors"), *source.glob("*.bin")])
    sample = bytearray(os.urandom(64 << 20))
    code = f"{bnb.STARTUP}\nimport torch\ntorch.zeros(1, device={args.device!r})"
    start = [sys.executable, "-c", code, str(source), "bnb-nf4"]
    startup = statistics.median(bnb.process(start, args.work / "none").seconds for _ in range(3))
    limits = {
        "read": floor.timed(lambda: [floor.consume(path) for path in files]),
        "copy": copy_seconds(args, scale.weight_bytes(source)),
        "write": floor.timed(lambda: floor.produce(args.work / "floor.tmp", sample, written)),
    }
    return startup, limits


def copy_seconds(args: argparse.Namespace, size: int) -> float:
    """Copying ``size`` bytes to the device from page-locked memory, 64 MiB at a time."""
    if args.device == "cpu":
        return 0.0
    import torch

    piece = torch.ones(64 << 20, dtype=torch.uint8).pin_memory()
    there = torch.empty_like(piece, device="cuda")
    found = []
    for _ in range(32):
        torch.cuda.synchronize()
        start = time.perf_counter()
        there.copy_(piece, non_blocking=True)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found) * size / piece.numel()


def gptq(args: argparse.Namespace) -> list[Row]:
    asked = for_scale(args)
    record = scale.gptq(asked)[0]
    return [
        (
            "gptq-4bit-g128, whole process",
            f"{record.seconds:.0f} s",
            f"{record.how}; {peer_row(args, record.seconds)}",
            "half of GPTQModel's",
        ),
        (
            "gptq-4bit-g128, device memory",
            f"{record.device_peak / 1e9:.2f} GB",
            f"host {record.peak / 1e6:.0f} MB",
            "under 8 GB",
        ),
    ]


def peer_row(args: argparse.Namespace, ours: float) -> str:
    """GPTQModel on the same ids, if it is installed here: two sizes, the rest computed."""
    try:
        named = f"GPTQModel {version('gptqmodel')}"
    except PackageNotFoundError:
        return "GPTQModel is not installed here"
    asked = for_scale(args)
    ids = scale.write_ids(asked, asked.samples, asked.length)
    few, many = PEER_LAYERS
    took = []
    for layers in (few, few, many):
        out = args.work / "gpu-peer"
        made = bnb.attempt(peer_words(args, layers, ids, out), out, limit=LONGEST)
        if isinstance(made, str):
            return f"{named}: {' '.join(made.split())[-300:]}"
        took.append(made.seconds)
    first, short, long = took
    whole = long + (scale.total_layers(asked) - many) * (long - short) / (many - few)
    return (
        f"{named}: {short:.0f} and {long:.0f} s with {few} and {many} layers (first run "
        f"{first:.0f} s), so {whole:.0f} s with all: {whole / ours:.2f} x faster"
    )


def peer_words(args: argparse.Namespace, layers: int, ids: Path, out: Path) -> list[str]:
    from gptq_sides import PEER

    source = scale.truncated(for_scale(args), layers)
    code = PEER.replace('device="cpu"', f"device={args.device!r}")
    options = json.dumps({"bits": 4, "group_size": 128})
    return [sys.executable, "-c", code, str(source), str(out), str(ids), options]


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


def gate(args: argparse.Namespace) -> list[Row]:
    asked = for_scale(args)
    asked.layers = scale.total_layers(asked)
    record = scale.gate(asked)[0]
    return [
        (
            f"gate by layer, {args.windows} windows",
            f"{record.seconds:.0f} s",
            f"device {record.device_peak / 1e9:.2f} GB, host {record.peak / 1e6:.0f} MB; "
            f"{record.how}",
            f"{scale.WINDOWS} x 1024 under 60 s",
        )
    ]


def for_scale(args: argparse.Namespace) -> argparse.Namespace:
    """What scale.py's pieces ask of their arguments."""
    return argparse.Namespace(
        model=args.model, container=None, work=args.work, device=args.device, runs=1,
        layers=min(args.layers, SIZES[args.model]["num_hidden_layers"]), samples=args.samples,
        length=args.length, windows=args.windows, window=min(1024, args.length),
    )  # fmt: skip


STEPS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "tests": tests,
    "kernels": kernels,
    "nf4": nf4,
    "int8": int8,
    "agreement": agreement,
    "gptq": gptq,
    "gate": gate,
}


def report(args: argparse.Namespace, rows: list[Row]) -> str:
    code = "import torch; print(torch.cuda.get_device_name(0))"
    name = "no GPU: the steps ran on the CPU, to show that they run"
    if args.device == "cuda":
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        name = done.stdout.strip() or "no GPU found"
    libraries = ("torch", "transformers", "bitsandbytes")
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} gpu.py: GPT-NeoX {args.model}, random weights, "
            f"--device {args.device}",
            "",
            f"{name}; {machine()}; "
            + ", ".join(f"{each} {version(each)}" for each in libraries)
            + f"; one run each; GPTQ on {args.samples} x {args.length} tokens.",
            "",
            "| what | measured | beside it | bar |",
            "| --- | --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
