"""The benches' own arithmetic, and that each script runs; how fast things are is not tested here.

QUANTKIT_BENCH=1 runs every script at its smallest, some minutes in all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit import plan
from quantkit.checkpoint import open_checkpoint, read_tensor
from quantkit.resources import demo_model

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import bnb
import gptq
import gptq_sides
import gpu
import peers
import random_neox
import scale_parts
import scale_report
import timeline
import trust
from tiny import write_source

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"

SIZE = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 96}

RECORD = scale_report.Record(
    piece="nf4", model="tiny", container="safetensors", parameters=10**9, source_bytes=2 * 10**9,
    output_bytes=7 * 10**8, seconds=4.0, cpu=5.0, peak=4 * 10**8, floor=2.0, how="by hand",
)  # fmt: skip

# figures


#: What was measured is written in decimal units; MiB and GiB are limits that the code sets.
FIGURE = re.compile(
    r"(?<![\w.,])(?<!± )(\d[\d,]*(?:\.\d+)?) ?"
    r"(?:[MG]B/s|[MG]B|ms|s|seconds|minutes|hours|times|x faster)\b"
)


def figures(text: str) -> set[str]:
    """Speeds and amounts of memory in prose and tables, without code."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return {found.group(1) for found in FIGURE.finditer(prose)} | columns(prose)


#: The head of a column of measurements.
MEASURED = re.compile(r"(?:^|[ ,])(?:s|MB|GB|MB/s)$|^times ")


def columns(text: str) -> set[str]:
    """Numbers below a head that names a unit."""
    found: set[str] = set()
    heads: list[str] = []
    for line in text.splitlines():
        cells = [each.strip() for each in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells
        else:
            below = zip(heads, cells, strict=False)
            found |= {c for h, c in below if MEASURED.search(h) and re.fullmatch(r"[\d.,]+", c)}
    return found


PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), BENCH / "RESULTS.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_and_links_to_is_there(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"\]\(([^)#\s]+)", prose)
    own = [each for each in named if not each.startswith(("http:", "https:", "mailto:"))]
    assert not [each for each in own if not (page.parent / each).exists()]


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_figure_of_speed_or_memory_was_measured(page: str) -> None:
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    results = (BENCH / "RESULTS.md").read_text(encoding="utf-8")
    known = set(re.findall(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?", results))
    unknown = figures(path.read_text(encoding="utf-8")) - known
    assert not unknown, f"{page}: not in bench/RESULTS.md: {sorted(unknown)}"


def test_the_table_that_thresholds_were_chosen_from_was_measured() -> None:
    """Its columns have no unit: each row must stand in RESULTS.md as it is."""
    page = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:demo|mini-rinna|stories260k) \|.*$", page, flags=re.MULTILINE)
    results = (BENCH / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 10
    assert not [each for each in rows if each not in results]


def test_a_made_up_figure_would_be_found() -> None:
    assert figures("It takes 12.5 s and 377 MB, 5.79 times less; `sleep 9 s`, 2 GiB at most.") == {
        "12.5", "377", "5.79",
    }  # fmt: skip
    table = "| model | wall s | times the floor |\n| --- | --- | --- |\n| 267M | 8.25 | 1.77 |\n"
    assert figures(table) == {"8.25", "1.77"}


# sources


@pytest.mark.parametrize(
    ("container", "mask", "shards"),
    [("torch", "uint8", 1), ("safetensors", "bool", 5), ("safetensors", None, 1)],
)
def test_random_models_open_as_published_ones_do(
    tmp_path: Path, container: str, mask: str | None, shards: int
) -> None:
    size = SIZE | ({"mask": mask} if mask else {}) | {"shards": shards}
    random_neox.write(str(tmp_path), size, container)
    index = open_checkpoint(tmp_path)
    # no tensor is cut: where masks are larger than a shard there are fewer
    assert 1 < len(index.files) <= shards if shards > 1 else len(index.files) == 1
    made = plan(tmp_path, "bnb-nf4")
    dropped = [each for each in made.tensors if each.action == "drop"]
    assert len(dropped) == (9 if mask else 0)  # three old buffers a layer
    weight = next(each for each in index.tensors if each.name == "embed_out.weight")
    assert read_tensor(tmp_path, weight).float().std().item() == pytest.approx(0.02, rel=0.05)


def test_a_hollow_model_has_the_plan_of_a_real_one(tmp_path: Path) -> None:
    real, hollow = tmp_path / "real", tmp_path / "hollow"
    for each in (real, hollow):
        each.mkdir()
    size = SIZE | {"shards": 2}
    random_neox.write(str(real), size, "safetensors")
    random_neox.write_hollow(str(hollow), size)
    assert plan(real, "bnb-nf4").digest == plan(hollow, "bnb-nf4").digest
    for path in real.glob("*.safetensors"):
        assert path.stat().st_size == (hollow / path.name).stat().st_size


def test_parameters_are_counted_as_the_model_has_them(tmp_path: Path) -> None:
    made = random_neox.shapes(64, 3, 96)
    assert scale_report.parameters(SIZE) == sum(torch.Size(each).numel() for each in made.values())


# what is computed


def notes(layers: int, windows: int) -> dict[str, Any]:
    """A gate in which a layer's run costs 2 s (floor 3), heads 1, a comparison 0.5, a load 4."""
    few = -(-windows // scale_parts.FLOOR_STRIDE)
    spent = {
        "run reference": [2.0] * layers * windows,
        "run saved": [2.0] * layers * windows,
        "run floor": [3.0] * layers * few,
        "logits reference": [1.0] * windows,
        "logits saved": [1.0] * windows,
        "logits floor": [1.0] * few,
        "compare": [0.5] * (windows + few),
    }
    return {"spent": spent, "load": 4.0}


def test_a_gate_measured_in_part_adds_up_to_the_whole() -> None:
    def cost(layers: int, windows: int) -> float:
        return sum(sum(each) for each in notes(layers, windows)["spent"].values()) + 4.0 * layers

    measured = cost(6, 2)
    rest = scale_parts.unmeasured(notes(6, 2), 6, 36, 2)
    assert measured + rest == pytest.approx(cost(36, scale_parts.WINDOWS))
    assert scale_parts.unmeasured(notes(36, 64), 36, 36, 64) == 0


def test_the_line_through_linear_times_is_the_line() -> None:
    found = [
        replace(RECORD, source_bytes=n * 10**9, seconds=1.5 + 2.0 * n, parameters=n)
        for n in (1, 2, 7)
    ]
    slope, start = scale_report.fitted(found)
    assert slope * 1e9 == pytest.approx(2.0)
    assert start == pytest.approx(1.5)
    assert "at most 0% off" in scale_report.line_through(found)


def test_what_is_computed_is_said_to_be() -> None:
    assert "| 4.00 |" in scale_report.row(RECORD)
    assert "*4, computed*" in scale_report.row(replace(RECORD, whole=False))


def test_the_table_takes_the_last_of_each_and_draws(tmp_path: Path) -> None:
    records = tmp_path / "scale.jsonl"
    made = [
        replace(RECORD, model=f"{n}B", parameters=n * 10**9, source_bytes=2 * n * 10**9, seconds=n)
        for n in (1, 2, 3)
    ]
    lines = [replace(made[0], seconds=99.0), *made, replace(made[2], piece="gate", whole=False)]
    records.write_text("".join(json.dumps(asdict(each)) + "\n" for each in lines))
    asked = argparse.Namespace(no_record=False, plot=tmp_path / "scale.png")
    text = scale_report.summary(asked, scale_report.read_records(records))
    assert "99.00" not in text
    assert "a 13B model on that line" in text
    assert (tmp_path / "scale.png").stat().st_size > 1000


def test_a_process_that_fails_or_takes_too_long_is_said_so(tmp_path: Path) -> None:
    failing = bnb.attempt([sys.executable, "-c", "raise ValueError('no')"], tmp_path / "out")
    assert isinstance(failing, str)
    assert failing.strip().endswith("ValueError: no")
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert bnb.attempt(slow, tmp_path / "out", limit=0.5) == "stopped after 0 s"


def test_ctrl_c_ends_a_process_that_has_a_limit(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    child = f"import os, time; open({str(begun)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        f"import sys, bnb; bnb.attempt([sys.executable, '-c', {child!r}], bnb.HERE / '-', limit=40)"
    )
    waiting = subprocess.Popen([sys.executable, "-c", code], cwd=BENCH, stderr=subprocess.PIPE)
    for _ in range(300):
        if begun.exists() and begun.read_text():
            break
        time.sleep(0.1)
    time.sleep(1)  # until it waits for its child, and no longer starts it
    waiting.send_signal(signal.SIGINT)
    waiting.communicate(timeout=20)
    assert not Path("/proc", begun.read_text()).exists()


def test_what_is_compiled_once_is_in_no_peak_over_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = []

    def process(command: list[str], out: Path) -> bnb.Run:
        sources.append(Path(command[4]).name)
        return bnb.Run(1.0, 1.0, 1)

    for module in (gptq, gptq_sides):
        monkeypatch.setattr(module, "process", process)
    monkeypatch.setattr(gptq, "write", lambda *model: None)
    gptq.memory(argparse.Namespace(work=tmp_path))
    assert sources == ["tiny-safetensors", "memory-8", "memory-32"]


def test_an_absent_peer_stands_in_the_table(tmp_path: Path) -> None:
    asked = argparse.Namespace(only=None, work=tmp_path)
    rows = peers.theirs(asked, tmp_path, tmp_path, "hqq", None)
    assert rows
    assert all("no --peer hqq=PYTHON" in each for each in rows)
    rows = peers.theirs(asked, tmp_path, tmp_path, "hqq", sys.executable)
    assert rows
    assert all("has no hqq" in each for each in rows)


def test_a_stage_leaves_out_the_stages_inside_it() -> None:
    watch = timeline.Watch(0.0)
    inner = watch.timed("inner", lambda: sum(range(10**6)))
    watch.timed("outer", lambda: [inner(), inner()])()
    spans = {stage: [s for s in watch.spans if s.stage == stage] for stage in ("inner", "outer")}
    within = sum(each.end - each.start for each in spans["inner"])
    (outer,) = spans["outer"]
    assert outer.own == pytest.approx(outer.end - outer.start - within, abs=1e-6)
    ranked = timeline.by_stage(outer.end - outer.start + 1.0, watch.spans)
    assert ranked[0][:2] == ("not timed", "MainThread")


def test_a_conversion_without_digests_takes_none(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    command = [sys.executable, "-c", trust.BARE + trust.RUN, str(source), str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    manifest = json.loads((out / "quantkit-manifest.json").read_text())
    files = manifest["source"]["files"] + manifest["output"]["files"]
    assert {each["sha256"] for each in files} == {"0" * 64}


def test_every_function_that_is_timed_is_there() -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import timeline\n"
        "for what in timeline.FUNCTIONS:\n"
        "    watch = timeline.Watch(time.time())\n"
        "    for each in timeline.FUNCTIONS[what]: watch.watch(*each)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(BENCH)], check=True, cwd=ROOT)


def test_the_runs_of_a_gpus_table_are_said() -> None:
    asked = argparse.Namespace(device="cpu", model="tiny", runs=3, samples=2, length=64)
    assert "medians of 3," in gpu.report(asked, [])


def test_a_bare_machine_is_told_all_that_the_gpu_tests_need(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    asked = ["bash", str(BENCH / "gpu.sh"), "--device", "cpu", "--model", "tiny", "--no-record"]
    environment = {**os.environ, "PYTHON": str(bare), "PYTHONPATH": ""}
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    named = done.stderr.removeprefix("missing here: ").partition(";")[0].split(", ")
    assert {"pytest", "xdist"} <= {*named}  # gpu.py divides the tests among processes


# whole scripts

DEMO = str(demo_model())
TINY = ["--model", "tiny", "--no-record"]
QUICK = [["scale.py", "plan", *TINY, "--runs", "1"]]
WHOLE = [
    ["scale.py", "verify", *TINY, "--runs", "1"],
    ["scale.py", "nf4", *TINY, "--runs", "1", "--container", "torch"],
    ["scale.py", "int8", *TINY, "--runs", "1"],
    ["scale.py", "gptq", *TINY, "--samples", "2", "--length", "64"],
    ["scale.py", "gate", *TINY, "--layers", "1", "--window", "64"],
    ["scale.py", "forecast", "--no-record", "--runs", "1"],
    ["bnb.py", *TINY, "--runs", "1", "--container", "torch", "--clean"],
    ["between.py", str(ROOT), *TINY, "--runs", "1"],
    ["gptq.py", "speed", *TINY],
    ["gptq.py", "draws", "--only", "demo", "--draws", "2", "--windows", "4", "--no-record"],
    ["gate.py", "--hidden", "64", "--windows", "2", "--length", "32", "--no-record"],
    ["gate.py", "convert", *TINY, "--windows", "2", "--length", "32"],
    ["trust.py", *TINY, "--runs", "1"],
    ["peers.py", *TINY, "--runs", "1", "--samples", "2"],
    ["kernel_rates.py", "--runs", "1", "--no-record"],
    ["tokenizer.py", DEMO, f"{DEMO}/heldout.txt", "--runs", "1", "--no-record"],
    ["timeline.py", "nf4", *TINY],
    ["timeline.py", "gptq", *TINY, "--samples", "2", "--length", "32"],
    ["timeline.py", "gate", *TINY, "--samples", "2", "--length", "32"],
    [
        "gpu.py", *TINY, "--device", "cpu", "--samples", "2", "--length", "64", "--windows", "2",
        "--layers", "2",
    ],
]  # fmt: skip


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_a_script_runs(tmp_path: Path, words: list[str]) -> None:
    run_script(tmp_path, words)


@pytest.mark.skipif(not os.environ.get("QUANTKIT_BENCH"), reason="QUANTKIT_BENCH=1 runs them")
@pytest.mark.parametrize("words", WHOLE, ids=" ".join)
def test_every_script_runs(tmp_path: Path, words: list[str]) -> None:
    text = run_script(tmp_path, words)
    assert "| failed |" not in text


def run_script(folder: Path, words: list[str]) -> str:
    """The script's table; what it would record is not."""
    before = (BENCH / "RESULTS.md").read_bytes()
    command = [sys.executable, str(BENCH / words[0]), *words[1:]]
    if words[0] not in ("gate.py", "kernel_rates.py", "tokenizer.py"):
        command += ["--work", str(folder / "work")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (BENCH / "RESULTS.md").read_bytes() == before
    assert "\n| --- |" in done.stdout
    return done.stdout
