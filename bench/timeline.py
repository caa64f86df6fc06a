"""Where the time goes: what each thread does over one run, drawn and summed up.

    python bench/timeline.py nf4 --model 1.1B     # or int8, gptq, gate

One process in which the functions of FUNCTIONS are timed as they are called; a stage's seconds
leave out the stages inside it. Draws docs/timeline-NAME.png, names the first three costs in
docs/performance.md (between its comments), and appends to bench/RESULTS.md. The timing itself
is in what it measures: compare stages with one another, not with other benches.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bnb import HERE, machine, process, record
from gptq_sides import warm
from models import SIZES, make_model
from scale_sources import write_ids

DOCS = HERE.parent / "docs"

STREAM = (
    ("read", "checkpoint.stream", "read_range"),
    ("wait for the slowest thread", "checkpoint.stream", "_land"),
    ("digests of tensors", "checkpoint.fingerprint", "TensorDigests.feed"),
    ("quantize or copy", "conversion", "_Worker.__call__"),
    ("wait for writes", "checkpoint.writing", "WriteQueue.put"),
    ("write", "checkpoint.shards", "ShardWriter.write"),
    ("have the disk take it", "checkpoint.shards", "ShardWriter.flush"),
    ("have the disk take it", "execution", "_flush_all"),
    ("digest of the output", "digests", "RunningDigest.feed"),
    ("digest of the output", "execution", "_digest_output"),
    ("headers", "pipeline", "open_source"),
    ("manifest and card", "pipeline", "build_manifest"),
    ("manifest and card", "pipeline", "_describe"),
)

#: What is timed, by what is run: stage, module of quantkit, function in it.
FUNCTIONS = {
    "nf4": STREAM,
    "int8": STREAM,
    "gptq": (
        *STREAM,
        ("run the layers", "sweep", "Sweep._run"),
        ("read a layer", "sweep", "Sweep._weights"),
        ("what outputs lack", "observing", "_Sum._compare"),
        ("what outputs lack", "observing", "_Sum.result"),
        ("keep and fetch activations", "activations", "Activations.__setitem__"),
        ("keep and fetch activations", "activations", "Activations.__getitem__"),
        ("build a layer", "sweep", "Sweep._build"),
        ("report", "layerwise", "report_of"),
        ("build the model, enter it", "sweep", "Sweep.__enter__"),
        ("Hessians", "observing", "accumulate"),
        ("factors", "layerwise", "factorize"),
        ("make good", "layerwise", "make_good"),
        ("round", "layerwise", "quantize"),
        ("store a layer", "finished", "FinishedLayers.add"),
    ),
    "gate": (
        ("run the layers", "sweep", "Sweep._run"),
        ("heads", "sweep", "Sweep.logits"),
        ("read and decode a layer", "sweep", "Sweep._weights"),
        ("place a layer", "sweep", "Sweep._build"),
        ("compare weights", "gate.judging", "weight_errors"),
        ("compare distributions", "gate.scoring", "_compare"),
        ("structure", "gate.judging", "check_accounts"),
        ("headers", "assessment", "open_source"),
    ),
}


@dataclass(frozen=True)
class Span:
    """One call: seconds since the process was started, and its own, without spans inside it."""

    stage: str
    thread: str
    start: float
    end: float
    own: float


@dataclass
class Watch:
    """The spans of all threads of a run that was started at ``zero`` (time.time())."""

    zero: float
    spans: list[Span] = field(default_factory=list)
    _inside: threading.local = field(default_factory=threading.local)

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def call(*args: Any, **kwargs: Any) -> Any:
            stack: list[float] = self._inside.__dict__.setdefault("stack", [])
            stack.append(0.0)
            start = time.time() - self.zero
            try:
                return work(*args, **kwargs)
            finally:
                end = time.time() - self.zero
                own = end - start - stack.pop()
                if stack:
                    stack[-1] += end - start
                thread = threading.current_thread().name.removesuffix("_0")
                self.spans.append(Span(stage, thread, start, end, own))

        return call

    def watch(self, stage: str, module: str, name: str) -> None:
        owner: Any = import_module(f"quantkit.{module}")
        *classes, last = name.split(".")
        for each in classes:
            owner = getattr(owner, each)
        setattr(owner, last, self.timed(stage, getattr(owner, last)))

    def watch_digests(self) -> None:
        """Hash objects' own ``update`` runs on the digests' threads."""
        from quantkit.digests import StreamDigest

        def feed(digest: Any, data: memoryview) -> list[Any]:
            digest._length += len(data)
            pairs = zip(digest._lanes, digest._hashes, strict=True)
            return [
                lane.submit(self.timed(f"{each.name} of the source", each.update), data)
                for lane, each in pairs
            ]

        StreamDigest.feed = feed  # type: ignore[method-assign]


def main() -> None:
    args = parsed()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["QUANTKIT_CACHE"] = str(args.work / "cache")
    source, out = make_model(args.work, args.model, "safetensors"), args.work / "timeline-out"
    ids, notes = write_ids(args, args.samples, args.length), args.work / "timeline.json"
    once = [sys.executable, "-m", "quantkit", "convert", str(source), "--recipe", "bnb-nf4"]
    process([*once, "--out", str(out), "--no-gate", "--device", "cpu"], out)
    if args.what == "gptq":
        warm(args.work)
    words = [args.what, str(source), str(out), str(ids), str(args.length), str(notes)]
    command = [sys.executable, str(HERE / "timeline.py"), "--child", *words]
    gone = args.work / "none" if args.what == "gate" else out
    run = process([*command, repr(time.time())], gone)
    shutil.rmtree(out, ignore_errors=True)
    spans = [Span(*each) for each in json.loads(notes.read_text())]
    ranked = by_stage(run.seconds, spans)
    text = report(args, run.seconds, ranked)
    if not args.no_record:
        draw(args.plots / f"timeline-{args.what}.png", spans, run.seconds)
        name_costs(args, run.seconds, ranked)
    record(text, args)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=FUNCTIONS)
    parser.add_argument("--model", choices=SIZES, default="267M")
    parser.add_argument("--samples", type=int, default=32, help="windows, for gptq and gate")
    parser.add_argument("--length", type=int, default=256, help="tokens of one of them")
    parser.add_argument("--work", type=Path, default=Path("/tmp/quantkit-bench"))
    parser.add_argument("--plots", type=Path, default=DOCS)
    parser.add_argument("--no-record", action="store_true", help="write neither plot nor table")
    return parser.parse_args()


def child(what: str, source: str, out: str, ids: str, length: str, notes: str, zero: str) -> None:
    """Run ``what`` in this process, timed from its start at ``zero``."""
    import quantkit

    watch = Watch(float(zero))
    for stage, module, name in FUNCTIONS[what]:
        watch.watch(stage, module, name)
    watch.watch_digests()
    watch.spans.append(started(watch))
    if what == "gate":
        lax = ["gate.max_perplexity_ratio=1e9", "gate.max_kl_mean=1e9", "gate.min_top1_agreement=0"]
        walked = ["evaluation.by_layer=true", f"evaluation.window={length}"]
        quantkit.check(out, source, recipe="bnb-nf4", text=ids, device="cpu", set=[*lax, *walked])
    else:
        recipe = {"nf4": "bnb-nf4", "int8": "bnb-int8", "gptq": "gptq-4bit-g128"}[what]
        calibrated = what == "gptq"
        more = [f"calibration.length={length}", "calibration.packing=apart"]
        quantkit.convert(
            source, recipe, out, no_gate=True, device="cpu", overwrite=True,
            calibration=ids if calibrated else None, set=more if calibrated else (),
        )  # fmt: skip
    found = [(each.stage, each.thread, each.start, each.end, each.own) for each in watch.spans]
    Path(notes).write_text(json.dumps(found))


def started(watch: Watch) -> Span:
    """What it took to come here: the interpreter and the libraries."""
    now = time.time() - watch.zero
    return Span("start-up: interpreter, libraries", "MainThread", 0.0, now, now)


def by_stage(wall: float, spans: Sequence[Span]) -> list[tuple[str, str, float]]:
    """Stage, thread and seconds, the longest first; what the main thread did beside them too."""
    own: dict[tuple[str, str], float] = {}
    for each in spans:
        own[each.stage, each.thread] = own.get((each.stage, each.thread), 0.0) + each.own
    of_main = sum(seconds for (_, thread), seconds in own.items() if thread == "MainThread")
    own["not timed", "MainThread"] = max(0.0, wall - of_main)
    rows = [(stage, thread, seconds) for (stage, thread), seconds in own.items()]
    return sorted((each for each in rows if each[2] >= 0.005), key=lambda each: -each[2])


def what_ran(args: argparse.Namespace) -> str:
    tokens = f", {args.samples} x {args.length} tokens" if args.what in ("gptq", "gate") else ""
    return f"GPT-NeoX {args.model}, random weights{tokens}"


def report(args: argparse.Namespace, wall: float, ranked: Sequence[tuple[str, str, float]]) -> str:
    rows = [
        f"| {stage} | {thread} | {seconds:.2f} | {seconds / wall:.0%} |"
        for stage, thread, seconds in ranked
    ]
    return "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d %H:%M')} timeline.py {args.what}: {what_ran(args)}",
            "",
            f"{machine()}; torch {version('torch')}, transformers {version('transformers')}; one "
            f"process, {wall:.2f} s; each stage without the stages inside it; threads run beside "
            "one another.",
            "",
            "| stage | thread | s | of wall |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def name_costs(
    args: argparse.Namespace, wall: float, ranked: Sequence[tuple[str, str, float]]
) -> None:
    """Put plot and first three costs where docs/performance.md has its comments for them."""
    page = args.plots / "performance.md"
    # to wait for another thread is no cost of its own
    costs = [each for each in ranked if not each[0].startswith("wait for")][:3]
    listed = "; ".join(f"{stage} ({thread}) {seconds:.2f} s" for stage, thread, seconds in costs)
    begin, end = f"<!-- timeline {args.what} -->", f"<!-- end {args.what} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    assert found, f"{page} has no {begin}"
    made = (
        f"{begin}\n![what each thread does](timeline-{args.what}.png)\n\n{what_ran(args)}: "
        f"{wall:.2f} s. The first three costs: {listed}.\n{end}"
    )
    page.write_text(before + made + rest.partition(end)[2], encoding="utf-8")


def draw(path: Path, spans: Sequence[Span], wall: float) -> None:
    """A row a thread, inner spans over outer ones."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    threads = list(dict.fromkeys(each.thread for each in sorted(spans, key=lambda s: s.start)))
    stages = list(dict.fromkeys(each.stage for each in sorted(spans, key=lambda s: s.start)))
    figure, axes = plt.subplots(figsize=(10, 1.6 + 0.4 * len(threads)))
    for at, stage in enumerate(stages):
        same = [each for each in spans if each.stage == stage]
        for row, thread in enumerate(threads):
            bars = [(s.start, s.end - s.start) for s in same if s.thread == thread]
            axes.broken_barh(
                bars, (row - 0.4, 0.8), color=f"C{at % 10}",
                alpha=1.0 if at < 10 else 0.5, label=stage if not row else None, linewidth=0,
                zorder=2 + at,
            )  # fmt: skip
    axes.set_yticks(range(len(threads)), threads)
    axes.set(xlim=(0, wall), xlabel="seconds", ylim=(len(threads) - 0.5, -0.5))
    axes.legend(frameon=False, fontsize=7, ncol=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
