"""GPTQ over whole models: what is in the file is what the layers were given, and reruns go on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from commanding import command, refused
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, write_source
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import quantkit
from quantkit import execution, observing
from quantkit.checkpoint import stream
from quantkit.digests import StreamDigest, digest_file
from quantkit.errors import CheckpointError, NonFiniteError
from quantkit.execution import _check_touched
from quantkit.finished import FinishedLayers
from quantkit.gate.decoding import decode_gptq
from quantkit.kernels.gptq import quantize
from quantkit.kernels.grid import Grid
from quantkit.kernels.hessian import factorize
from quantkit.observing import FEEDBACK_EVERY
from quantkit.report import make_plots, render_report
from quantkit.sweep import Sweep
from quantkit.types import Event

IDS = [[random.Random(at).randrange(96) for _ in range(32)] for at in range(12)]

SHAPES = ["gpt_neox", "llama", "gpt2", "opt", "mistral", "qwen2"]

SMALL = (
    "method.group_size=32",
    "method.max_skipped_share=0.9",
    "calibration.length=32",
    "calibration.packing=apart",
)


#: Windows of one batch: few, so that there are several, of which not all feed back.
TOGETHER = 2


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "_TOGETHER", TOGETHER * len(IDS[0]))


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "ids.json"
    path.write_text(json.dumps(IDS))
    return path


def convert(source: Path, out: Path, ids: Path, *overrides: str) -> dict:
    return quantkit.convert(
        source, "gptq-4bit-g128", out, calibration=ids, no_gate=True, set=[*SMALL, *overrides]
    )


def decoded(folder: Path) -> dict[str, Tensor]:
    """Every quantized module's weight (out, in), by the gate's own decoder."""
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    stored = load_file(folder / "model.safetensors")
    modules = sorted(name.removesuffix(".qweight") for name in stored if name.endswith(".qweight"))
    parts = ("qweight", "qzeros", "scales", "g_idx")
    return {
        module: decode_gptq({part: stored[f"{module}.{part}"] for part in parts}, settings)
        for module in modules
    }


def by_hand(
    source: Path, got: dict[str, Tensor], grid: dict, feedback: float, sequential: bool
) -> dict[str, Tensor]:
    """The same calibration on the whole model in memory, hooks on every module, no sweep.

    Each module follows what is in the file for those before it, so that a code that the order
    of a sum decides does not change all that comes after.
    """
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    before = inputs_of(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval())
    layers = max(
        (m for m in model.modules() if isinstance(m, nn.ModuleList)), key=lambda each: len(each)
    )
    prefix = next(name for name, m in model.named_modules() if m is layers)
    batch = torch.arange(len(IDS) * len(IDS[0])) // (len(IDS[0]) * TOGETHER)
    some = batch % FEEDBACK_EVERY == 0
    made = {}
    for at in range(len(layers)):
        inside = [name for name in before if name.startswith(f"{prefix}.{at}.")]
        inputs = inputs_of(model)
        for place, name in enumerate(inside):  # as they run
            module = model.get_submodule(name)
            kept = module.weight.data if isinstance(module, nn.Linear) else module.weight.data.T
            if kept.shape[0] % 32 or kept.shape[1] % 32:
                continue
            if sequential and not (place and torch.equal(before[name], before[inside[place - 1]])):
                inputs = inputs_of(model)
            x, unquantized, weight = (each.double() for each in (inputs[name], before[name], kept))
            hessian = x.T @ x
            damped = hessian + 0.05 * hessian.diagonal().mean() * torch.eye(len(hessian))
            lacking = x[some].T @ ((unquantized - x)[some] @ weight.T)
            lacking *= len(some) / (some.sum() + x.shape[1])  # to all, and less where few tell
            share = feedback if x.shape[1] <= some.sum() else 0  # nothing for what is wider
            moved = weight + share * torch.linalg.solve(damped, lacking).T
            factor = factorize(hessian, 0.05, "source", 32)
            rounded = quantize(moved, factor, Grid(**grid)).dequantized()
            made[name] = rounded.float()
            kept.copy_(got.get(name, got.get(name.removeprefix("transformer."))))
    return made


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    """What every linear module is given, (tokens, columns), over all windows; as they run."""
    inputs: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: inputs.setdefault(name, []).append(given[0].flatten(0, -2))
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    with torch.inference_mode():
        for window in IDS:
            model(input_ids=torch.tensor([window]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(seen) for name, seen in inputs.items()}


@pytest.mark.parametrize(("feedback", "sequential"), [(0, False), (0.5, False), (0.5, True)])
@pytest.mark.parametrize("model_type", SHAPES)
def test_the_file_holds_what_a_whole_model_gives(
    model_type: str, feedback: float, sequential: bool, tmp_path: Path, ids: Path
) -> None:
    source = write_source(tmp_path / "source", model_type, torch.float32)
    # a random model's heads give inputs that are all but alike: their order would be chance
    convert(
        source, tmp_path / "out", ids, "method.group_order=false",
        f"method.error_feedback={feedback}", f"method.true_sequential={sequential}".lower(),
    )  # fmt: skip
    got = decoded(tmp_path / "out")
    grid = {"bits": 4, "group_size": 32, "sym": True, "search": True}
    wanted = by_hand(source, got, grid, feedback, sequential)
    assert len(got) == len(wanted)
    for name, weight in wanted.items():
        stored = got.get(name, got.get(name.removeprefix("transformer.")))
        assert stored is not None, name
        different = float((stored != weight).double().mean())
        print(name, different)
        assert different < 0.05, (name, different)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("sym", ["true", "false"])
def test_other_bits_and_layouts(
    bits: int, layout: str, sym: str, tmp_path: Path, ids: Path
) -> None:
    source = write_source(tmp_path / "source", "gpt_neox", torch.float32)
    options = (f"method.bits={bits}", f"method.checkpoint_format={layout}", f"method.sym={sym}")
    convert(source, tmp_path / "out", ids, *options)
    state = load_file(source / "model.safetensors")
    limit = {2: 0.7, 3: 0.35, 8: 0.01}[bits]
    found = decoded(tmp_path / "out")
    assert len(found) == 2 * 4
    for module, weight in found.items():
        wanted = state[f"{module}.weight"]
        assert float((weight - wanted).norm() / wanted.norm()) < limit, module


def test_the_report_shows_what_each_module_lost(tmp_path: Path, ids: Path) -> None:
    source = write_source(tmp_path / "source", "gpt_neox", torch.float32)
    manifest = convert(source, tmp_path / "out", ids)
    plots = make_plots(manifest)
    assert plots["loss.png"].startswith(b"\x89PNG")
    page = render_report(manifest, plots)
    modules = sorted(manifest["conversion"]["modules"], key=lambda each: -each["loss"])
    shown = page[page.index("GPTQ lost most") : page.index("<h2>Size")]
    assert all(each["module"] in shown for each in modules[:5])
    assert all(f"{each['loss']:.4g}" in shown for each in modules[:5])


@pytest.mark.parametrize(
    "name", ["layers.1.mlp.dense_h_to_4h.weight", "final_layer_norm.weight", "embed_in.weight"]
)
def test_a_source_with_nan_is_refused_by_name_before_any_layer(
    tmp_path: Path, ids: Path, name: str
) -> None:
    source = write_source(tmp_path / "source", "gpt_neox", torch.float32)
    state = load_file(source / "model.safetensors")
    state[f"gpt_neox.{name}"].view(-1)[3] = torch.nan
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    heard = []
    options = {"calibration": ids, "no_gate": True, "set": SMALL, "listener": heard.append}
    with pytest.raises(NonFiniteError, match=f"gpt_neox.{name}: 1 values"):
        quantkit.convert(source, "gptq-4bit-g128", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert "calibrate" not in {each.stage for each in heard if not each.message}


def test_a_weight_in_pieces_that_is_stored_the_other_way_round(
    tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2's: it is looked through piece by piece before the calibration, as it lies there."""
    monkeypatch.setattr(stream, "SEGMENT_BYTES", 1000)
    source = write_source(tmp_path / "source", "gpt2", torch.float16)
    made = convert(source, tmp_path / "out", ids)
    assert made["conversion"]["modules"]


def test_true_sequential_and_desc_act(tmp_path: Path, ids: Path) -> None:
    source = write_source(tmp_path / "source", "llama", torch.float32)
    convert(source, tmp_path / "out", ids, "method.true_sequential=true", "method.desc_act=true")
    got = decoded(tmp_path / "out")
    assert len(got) == 2 * 4
    stored = load_file(tmp_path / "out" / "model.safetensors")
    groups = stored["model.layers.0.self_attn.q_proj.g_idx"].tolist()
    assert groups != sorted(groups)


def test_overrides_by_pattern(tmp_path: Path, ids: Path) -> None:
    source = write_source(tmp_path / "source", "gpt_neox", torch.float32)
    recipe = tmp_path / "mixed.toml"
    shipped = Path(quantkit.__file__).parents[1] / "recipes" / "gptq-4bit-g128.toml"
    override = '[[method.override]]\npattern = "4h_to_h$"\nbits = 8\ngroup_size = 64\n\n'
    recipe.write_text(shipped.read_text().replace("[calibration]", f"{override}[calibration]"))
    manifest = quantkit.convert(
        source, recipe, tmp_path / "out", calibration=ids, no_gate=True, set=SMALL
    )
    bits = {each["module"]: each["bits"] for each in manifest["conversion"]["modules"]}
    assert {bits[name] for name in bits if name.endswith("dense_4h_to_h")} == {8}
    assert {bits[name] for name in bits if not name.endswith("dense_4h_to_h")} == {4}
    dynamic = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert any(key.startswith("+:") for key in dynamic["dynamic"])


def test_odd_widths_are_left_and_named(stories260k: Path, tmp_path: Path, ids: Path) -> None:
    planned = quantkit.plan(stories260k, "gptq-4bit-g128", set=["method.group_size=64"])
    kept = [each for each in planned.tensors if "no multiple" in each.reason]
    assert len(kept) == 15
    assert all("172" in each.reason for each in kept)
    error = refused(
        1, "plan", stories260k, "--recipe", "gptq-4bit-g128",
        "--set", "method.group_size=64", "--set", "method.max_skipped_share=0.2",
    )  # fmt: skip
    assert "15 of 35" in error


def test_a_group_that_does_not_divide_names_the_one_that_does(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "gpt_neox")
    error = refused(1, "plan", source, "--recipe", "gptq-4bit-g128")
    assert "group_size 128; 64 would fit" in error


def test_the_head_is_there_under_both_names(tmp_path: Path, ids: Path) -> None:
    source = write_source(tmp_path / "source", "gpt_neox", torch.float16)
    convert(source, tmp_path / "out", ids)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    wanted = load_file(source / "model.safetensors")["embed_out.weight"]
    assert torch.equal(stored["embed_out.weight"], wanted)
    assert torch.equal(stored["lm_head.weight"], wanted)


def stop(event) -> None:
    """Ctrl-C in the second layer."""
    if event.stage == "calibrate" and event.done > len(IDS) + 1:
        raise KeyboardInterrupt


def test_a_rerun_takes_up_finished_layers(tmp_path: Path, ids: Path) -> None:
    """Stopped after the first layer, then run again: the same bytes, one layer not made twice."""
    source = write_source(tmp_path / "source", "gpt_neox", torch.float16)
    convert(source, tmp_path / "whole", ids)
    said = []

    options = {"calibration": ids, "no_gate": True, "set": SMALL}
    with pytest.raises(KeyboardInterrupt):
        quantkit.convert(source, "gptq-4bit-g128", tmp_path / "out", listener=stop, **options)
    assert not (tmp_path / "out").exists()
    finished = tmp_path / "out.partial" / "quantkit-layers"
    assert sorted(path.name for path in finished.glob("*.safetensors")) == ["00000.safetensors"]
    quantkit.convert(source, "gptq-4bit-g128", tmp_path / "out", listener=said.append, **options)
    assert any("1 layers are finished" in event.message for event in said)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("hidden", [True, False], ids=["its time set back", "plainly"])
def test_a_source_that_is_written_to_meanwhile_is_refused(
    tmp_path: Path, ids: Path, hidden: bool
) -> None:
    """It is digested once, before its layers are read: the files must be the same to the end."""
    source = write_source(tmp_path / "source", "gpt_neox", torch.float16)
    weights = source / "model.safetensors"

    def write(event: Event) -> None:
        if event.stage == "calibrate" and event.done == len(IDS) + TOGETHER:
            then = weights.stat()
            with weights.open("r+b") as file:
                file.seek(-4, os.SEEK_END)
                file.write(b"\x01")
            if hidden:
                os.utime(weights, ns=(then.st_atime_ns, then.st_mtime_ns))

    options = {"calibration": ids, "no_gate": True, "set": SMALL}
    with pytest.raises(CheckpointError, match="it was changed"):
        quantkit.convert(source, "gptq-4bit-g128", tmp_path / "out", listener=write, **options)
    assert not (tmp_path / "out").exists()
    assert not {*(tmp_path / "out.partial").rglob("*.safetensors")}
    quantkit.convert(source, "gptq-4bit-g128", tmp_path / "out", **options)
    convert(source, tmp_path / "whole", ids)  # no layer of the other source was taken up
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_source_that_goes_away_costs_no_layer(
    tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", "gpt_neox", torch.float16)
    weights, aside, said = source / "model.safetensors", tmp_path / "aside", []

    def check(*told: object) -> None:
        weights.rename(aside)
        _check_touched(*told)

    options = {"calibration": ids, "no_gate": True, "set": SMALL}
    with monkeypatch.context() as patched:
        patched.setattr(execution, "_check_touched", check)
        with pytest.raises(CheckpointError, match=r"cannot be read now.*the layers are kept"):
            quantkit.convert(source, "gptq-4bit-g128", tmp_path / "out", **options)
    aside.rename(weights)
    quantkit.convert(source, "gptq-4bit-g128", tmp_path / "out", listener=said.append, **options)
    assert any("all layers were finished" in event.message for event in said)
    convert(source, tmp_path / "whole", ids)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_what_changes_no_byte_of_the_source_stops_nothing(tmp_path: Path, ids: Path) -> None:
    source = write_source(tmp_path / "source", "gpt_neox", torch.float16)

    def link(event: Event) -> None:
        if event.stage == "calibrate" and not (tmp_path / "backup").exists():
            os.link(source / "model.safetensors", tmp_path / "backup")

    options = {"calibration": ids, "no_gate": True, "set": SMALL}
    quantkit.convert(source, "gptq-4bit-g128", tmp_path / "out", listener=link, **options)
    assert (tmp_path / "backup").exists()


@pytest.mark.parametrize("model_type", ["gpt_neox", "olmo2"])
def test_where_activations_lie_changes_no_byte(
    tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    """In memory they are the walk's own, and what a layer without a norm in front is given."""
    monkeypatch.setitem(CONFIGS, "olmo2", CONFIGS["llama"] | {"pad_token_id": None})
    source = write_source(tmp_path / "source", model_type, torch.float16)
    convert(source, tmp_path / "memory", ids)
    plain = Sweep.__init__
    monkeypatch.setattr(Sweep, "__init__", partialmethod(plain, room=0))
    convert(source, tmp_path / "file", ids)
    assert files(tmp_path / "memory") == files(tmp_path / "file")


def test_scales_that_float16_cannot_hold_are_refused(tmp_path: Path, ids: Path) -> None:
    source = write_source(tmp_path / "source", "gpt_neox", torch.float32)
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    tensors = load_file(source / "model.safetensors")
    tensors[name][3] = torch.linspace(-3e7, 3e7, tensors[name].shape[1])
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="scales overflow float16"):
        convert(source, tmp_path / "out", ids)


def test_the_source_is_digested_once(
    tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", "gpt_neox", torch.float16)
    fed = []
    feed = StreamDigest.feed
    monkeypatch.setattr(
        StreamDigest, "feed", lambda self, data: fed.append(len(data)) or feed(self, data)
    )
    made = convert(source, tmp_path / "out", ids)
    assert sum(fed) == (source / "model.safetensors").stat().st_size
    assert made["source"]["files"][0]["sha256"] == digest_file(source / "model.safetensors").sha256


def files(folder: Path) -> dict[str, bytes]:
    """All that does not tell when it was made."""
    skipped = {"quantkit-manifest.json", "README.md"}
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name not in skipped
    }


def test_a_damaged_layer_is_made_again(tmp_path: Path, ids: Path) -> None:
    source = write_source(tmp_path / "source", "gpt_neox", torch.float16)
    convert(source, tmp_path / "whole", ids)

    options = {"calibration": ids, "no_gate": True, "set": SMALL}
    with pytest.raises(KeyboardInterrupt):
        quantkit.convert(source, "gptq-4bit-g128", tmp_path / "out", listener=stop, **options)
    layer = tmp_path / "out.partial" / "quantkit-layers" / "00000.safetensors"
    raw = bytearray(layer.read_bytes())
    raw[-100] ^= 1
    layer.write_bytes(raw)
    quantkit.convert(source, "gptq-4bit-g128", tmp_path / "out", **options)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_rerun_of_what_was_staged_states_the_threads_that_made_it(
    tmp_path: Path, ids: Path
) -> None:
    """Their number is torch's, which the rerun does not import."""
    source = write_source(tmp_path / "source", "gpt_neox", torch.float16)
    script = """
import os, signal, sys, quantkit.pipeline
if sys.argv[4] == "stop":
    quantkit.pipeline.build_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
quantkit.pipeline.convert(
    sys.argv[1], "gptq-4bit-g128", sys.argv[2], calibration=sys.argv[3], no_gate=True,
    set=sys.argv[5:],
)
print("torch" in sys.modules)
"""
    for until in ("stop", "go on"):
        words = [sys.executable, "-c", script, source, tmp_path / "out", ids, until, *SMALL]
        once = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(words, env=once, capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr
    manifest = json.loads((tmp_path / "out" / "quantkit-manifest.json").read_text())
    assert manifest["conversion"]["threads"] == 1


@pytest.mark.parametrize("seed", range(int(os.environ.get("QUANTKIT_KILLS", "1"))))
def test_killed_at_a_random_moment(tmp_path: Path, ids: Path, seed: int) -> None:
    """kill -9, then a rerun: the bytes of an undisturbed run. ``QUANTKIT_KILLS`` more of them."""
    source = write_source(tmp_path / "source", "gpt_neox", torch.float16)
    options = [word for each in SMALL for word in ("--set", each)]
    words = command(
        "convert", source, "--recipe", "gptq-4bit-g128", "--no-gate", "--calibration", ids, *options
    )
    start = time.monotonic()
    subprocess.run([*words, "--out", tmp_path / "whole"], check=True, capture_output=True)
    lasted = time.monotonic() - start
    process = subprocess.Popen([*words, "--out", tmp_path / "out"], stderr=subprocess.DEVNULL)
    time.sleep(lasted * random.Random(seed).uniform(0.5, 1.0))
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (tmp_path / "out").exists():
        subprocess.run([*words, "--out", tmp_path / "out"], check=True, capture_output=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_neighbours_of_one_length_go_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "_TOGETHER", 6)
    windows = [[1, 1], [2, 2], [3, 3], [4, 4], [5], [6], [7] * 9, [8] * 9, [9, 9]]
    sizes = [len(batch) for batch in observing.side_by_side(windows)]
    assert sizes == [3, 1, 2, 1, 1, 1]
    assert [each for batch in observing.side_by_side(windows) for each in batch] == windows


@pytest.mark.parametrize("recipe", ["gptq-4bit-g128", "bnb-nf4"])
def test_a_tied_model_of_which_the_head_alone_is_stored(
    tmp_path: Path, ids: Path, recipe: str
) -> None:
    source = write_source(tmp_path / "source", "llama", torch.float16)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    lax = ["max_perplexity_ratio=9", "max_kl_mean=9", "min_top1_agreement=0", "max_weight_error=1"]
    more = SMALL if recipe.startswith("gptq") else ()
    made = quantkit.convert(
        source, recipe, tmp_path / "out", calibration=ids if more else None, text=ids,
        set=[*more, *(f"gate.{each}" for each in lax), "evaluation.new_tokens=2"],
    )  # fmt: skip
    assert made["gate"]["status"] == "passed"


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[]", b"null", b'{"sha256": 5}'], ids=str)
def test_a_damaged_note_is_no_layer(tmp_path: Path, damage: bytes) -> None:
    layers = FinishedLayers(tmp_path / "layers", {"of": "this"})
    for name in ("00000.json", "00000.safetensors"):
        (tmp_path / "layers" / name).write_bytes(damage)
    assert layers.found(0) is None
    (tmp_path / "layers" / "identity.json").write_bytes(damage)
    FinishedLayers(tmp_path / "layers", {"of": "this"})
    assert [each.name for each in (tmp_path / "layers").iterdir()] == ["identity.json"]
