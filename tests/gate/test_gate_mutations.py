"""One thing broken at a time in a good folder: the gate sees it, at the right level."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Converted
from tiny import write_source
from transformers import AutoConfig

import quantkit
from quantkit.errors import CheckpointError, StorageError, UnsupportedModelError
from quantkit.evaluation import read_material
from quantkit.gate import GateReport, gate, judging
from quantkit.gate.settings import config_failures
from quantkit.given import paths_of
from quantkit.recipe import load_recipe
from quantkit.registry import checksums
from quantkit.source import open_source
from quantkit.verification import Policy, digest_source, settle

DENSE = "gpt_neox.layers.2.attention.dense"
QUERY = "gpt_neox.layers.3.attention.query_key_value"
WEIGHTS = "model.safetensors"
QUICK = (
    "evaluation.max_windows=2",
    "evaluation.new_tokens=2",
    'evaluation.prompts=["The value of the"]',
)

#: Out of the way: only the level under test may speak.
LAX = (
    "gate.max_weight_error=99.0",
    "gate.max_perplexity_ratio=1e9",
    "gate.max_kl_mean=1e9",
    "gate.min_top1_agreement=0.0",
    "gate.min_generation_agreement=0.0",
)

Change = Callable[["Folder"], None]


class Folder:
    """A converted folder whose tensors can be edited in place, header and sizes untouched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = (path / WEIGHTS).read_bytes()
        self._start = 8 + int.from_bytes(raw[:8], "little")
        self.header: dict[str, Any] = json.loads(raw[8 : self._start])

    def edit(self, name: str, dtype: str, change: Callable[[np.ndarray], object]) -> None:
        """Let ``change`` alter the tensor's elements, or return new ones."""
        begin, end = self.header[name]["data_offsets"]
        with (self.path / WEIGHTS).open("r+b") as file:
            file.seek(self._start + begin)
            values = np.frombuffer(file.read(end - begin), dtype).copy()
            changed = change(values)
            changed = values if changed is None else changed
            file.seek(self._start + begin)
            file.write(np.asarray(changed, dtype).tobytes())

    def bytes_of(self, name: str) -> bytes:
        begin, end = self.header[name]["data_offsets"]
        return (self.path / WEIGHTS).read_bytes()[self._start + begin : self._start + end]

    def rename(self, old: str, new: str) -> None:
        assert len(old) == len(new)
        raw = (self.path / WEIGHTS).read_bytes()
        assert raw.count(f'"{old}"'.encode()) == 1
        (self.path / WEIGHTS).write_bytes(raw.replace(f'"{old}"'.encode(), f'"{new}"'.encode()))

    def config(self, change: Callable[[dict[str, Any]], object]) -> None:
        config = json.loads((self.path / "config.json").read_text())
        change(config)
        (self.path / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(demo_nf4: Converted, tmp_path: Path) -> Folder:
    return Folder(shutil.copytree(demo_nf4.folder, tmp_path / "copy"))


@pytest.fixture
def folder_int8(demo_int8: Converted, tmp_path: Path) -> Folder:
    return Folder(shutil.copytree(demo_int8.folder, tmp_path / "copy"))


def judge(
    source: Path,
    folder: Path,
    recipe: str,
    *overrides: str,
    text: Path | None = None,
    believe_config: bool = False,
) -> GateReport:
    """The gate on ``folder``; ``believe_config`` takes its config.json for the planned one."""
    opened, chosen = open_source(source), load_recipe(recipe, overrides)
    registry = checksums()
    digests = digest_source(opened, registry)
    verified = settle(opened, digests, chosen, registry, Policy())
    plan = quantkit.plan(source, recipe)
    if believe_config:
        plan = replace(plan, config=json.loads((folder / "config.json").read_text()))
    return gate(folder, verified, plan, chosen, read_material(source, chosen, paths_of(text)))


def first_failure(demo: Path, folder: Folder, recipe: str = "bnb-nf4", *overrides: str) -> str:
    report = judge(demo, folder.path, recipe, *QUICK, *overrides)
    assert report.status == "failed"
    failed = [each.name for each in report.levels if each.outcome == "failed"]
    ran = [each.name for each in report.levels if each.outcome != "not_run"]
    assert failed[0] == report.failures[0].level
    assert failed == [failed[0]] or ran == failed, "a later level is not run, never passed"
    return str(report.failures[0])


def test_the_untouched_copy_passes(demo: Path, folder: Folder) -> None:
    assert judge(demo, folder.path, "bnb-nf4", *QUICK).status == "passed"


# structure


def truncate(folder: Folder) -> None:
    path = folder.path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])


def append(folder: Folder) -> None:
    with (folder.path / WEIGHTS).open("ab") as file:
        file.write(b"\0")


def not_a_number(folder: Folder) -> None:
    folder.edit(f"{DENSE}.weight.absmax", "<f4", lambda v: v.__setitem__(3, np.nan))


def infinite(folder: Folder) -> None:
    folder.edit("embed_out.weight", "<f2", lambda v: v.__setitem__(-1, np.inf))


def header_says(old: str, new: str) -> Change:
    """Another header; the positions of all tensors stay right."""

    def change(folder: Folder) -> None:
        raw = (folder.path / WEIGHTS).read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = raw[8:start].decode()
        assert header.count(old) == 1
        changed = header.replace(old, new).encode()
        length = len(changed).to_bytes(8, "little")
        (folder.path / WEIGHTS).write_bytes(length + changed + raw[start:])

    return change


def config_is(key: str, value: object) -> Change:
    return lambda folder: folder.config(lambda config: config.__setitem__(key, value))


def settings_are(key: str, value: object) -> Change:
    return lambda folder: folder.config(
        lambda config: config["quantization_config"].__setitem__(key, value)
    )


STRUCTURE: dict[str, tuple[Change, str]] = {
    "file cut by a byte": (truncate, "checkpoint"),
    "file a byte longer": (append, ""),
    "file gone": (lambda f: (f.path / WEIGHTS).unlink(), "checkpoint"),
    "tensor renamed": (
        lambda f: f.rename("embed_out.weight", "lm_headdd.weight"),
        "embed_out.weight",
    ),
    "absmax renamed": (
        lambda f: f.rename(f"{DENSE}.weight.absmax", f"{DENSE}.weight.absmix"),
        f"{DENSE}.weight.absmax",
    ),
    "a tensor of another type": (
        header_says(f'"{DENSE}.bias":{{"dtype":"F16"', f'"{DENSE}.bias":{{"dtype":"BF16"'),
        f"tensor: bfloat16 [128] at {DENSE}.bias, expected float16 [128]",
    ),
    "a tensor of another shape": (
        header_says(
            f'"{DENSE}.weight.absmax":{{"dtype":"F32","shape":[256]',
            f'"{DENSE}.weight.absmax":{{"dtype":"F32","shape":[128,2]',
        ),
        f"tensor: float32 [128, 2] at {DENSE}.weight.absmax, expected float32 [256]",
    ),
    "a longer header": (
        header_says('{"__metadata__"', "{" + " " * 64 + '"__metadata__"'),
        "file size",
    ),
    "NaN in an absmax": (not_a_number, f"{DENSE}.weight.absmax"),
    "infinity in the head": (infinite, "embed_out.weight"),
    "config gone": (lambda f: (f.path / "config.json").unlink(), "config.json"),
    "wrong rope theta": (config_is("rotary_emb_base", 500_000), "rotary_emb_base"),
    "wrong layer_norm_eps": (config_is("layer_norm_eps", 1e-3), "layer_norm_eps"),
    "wrong use_parallel_residual": (
        config_is("use_parallel_residual", True),
        "use_parallel_residual",
    ),
    "wrong dtype": (config_is("torch_dtype", "float32"), "torch_dtype"),
    "a setting more": (config_is("rope_scaling", {"type": "linear", "factor": 2.0}), "rope_scal"),
    "quantization_config dropped": (
        lambda f: f.config(lambda config: config.pop("quantization_config")),
        "quantization_config",
    ),
    "quant_type of another": (settings_are("bnb_4bit_quant_type", "fp4"), "quantization_config"),
    "special ids swapped": (config_is("bos_token_id", 3), "bos_token_id"),
    "generation config lost": (
        lambda f: (f.path / "generation_config.json").unlink(),
        "generation_config.json",
    ),
    "generation's end lost": (
        lambda f: (f.path / "generation_config.json").write_text('{"bos_token_id": 2}'),
        "eos_token_id",
    ),
    "block size wrong in quant_state": (
        lambda f: edit_state(b'"blocksize": 64', b'"blocksize": 32')(f),
        "absmax",
    ),
    "a module skipped": (settings_are("llm_int8_skip_modules", ["dense"]), "quantization_config"),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_structure_sees(demo: Path, folder: Folder, name: str) -> None:
    change, words = STRUCTURE[name]
    change(folder)
    said = first_failure(demo, folder)
    assert said.startswith("structure: ")
    assert words in said


# reload


def swap_nibbles(folder: Folder) -> None:
    folder.edit(f"{DENSE}.weight", "u1", lambda v: (v >> 4) | (v << 4))


def scale_block(factor: float) -> Change:
    """One block of 64 weights among the 256 of the smallest quantized tensor."""

    def change(folder: Folder) -> None:
        def scale(absmax: np.ndarray) -> None:
            absmax[len(absmax) // 2] *= factor

        folder.edit(f"{DENSE}.weight.absmax", "<f4", scale)

    return change


def exchange_layers(folder: Folder) -> None:
    """Layers 1 and 4 change places, whole: all names, shapes and sizes stay right."""
    names = [name for name in folder.header if name.startswith("gpt_neox.layers.1.")]
    assert len(names) > 20
    for name in names:
        other = name.replace("layers.1.", "layers.4.")
        mine, theirs = folder.bytes_of(name), folder.bytes_of(other)
        folder.edit(name, "u1", lambda _, new=theirs: np.frombuffer(new, "u1"))
        folder.edit(other, "u1", lambda _, new=mine: np.frombuffer(new, "u1"))


def exchange_tables(folder: Folder) -> None:
    folder.edit(f"{DENSE}.weight.quant_map", "<f4", lambda v: v[::-1])


def shift_embedding(folder: Folder) -> None:
    rows = folder.header["gpt_neox.embed_in.weight"]["shape"][0]
    folder.edit(
        "gpt_neox.embed_in.weight", "<f2", lambda v: np.roll(v.reshape(rows, -1), 1, axis=0)
    )


def leave_random(folder: Folder) -> None:
    """Layer 3 as if nobody had filled it: random codes, and scales of the usual size."""
    drawn = np.random.default_rng(0)
    for name in folder.header:
        if name.startswith("gpt_neox.layers.3.") and name.endswith(".weight.absmax"):
            folder.edit(name, "<f4", lambda v: drawn.uniform(0.01, 0.1, len(v)))
            packed = name.removesuffix(".absmax")
            folder.edit(packed, "u1", lambda v: drawn.integers(0, 256, len(v), "u1"))


def edit_state(old: bytes, new: bytes) -> Change:
    assert len(old) == len(new)

    def replace(values: np.ndarray) -> np.ndarray:
        text = values.tobytes()
        assert text.count(old) == 1
        return np.frombuffer(text.replace(old, new), "u1")

    name = f"{QUERY}.weight.quant_state.bitsandbytes__nf4"
    return lambda folder: folder.edit(name, "u1", replace)


def set_all(name: str, dtype: str, value: float) -> Change:
    return lambda folder: folder.edit(name, dtype, lambda v: v.fill(value))


RELOAD: dict[str, tuple[Change, str]] = {
    "nibbles swapped in one tensor": (swap_nibbles, DENSE),
    "all absmax doubled": (
        lambda f: f.edit(f"{DENSE}.weight.absmax", "<f4", lambda v: v * 2),
        DENSE,
    ),
    "one block zeroed": (scale_block(0.0), DENSE),
    "one block doubled": (scale_block(2.0), DENSE),
    "one block's sign turned": (scale_block(-1.0), DENSE),
    "two layers exchanged": (exchange_layers, "layers."),
    "one layer left random": (leave_random, "layers.3."),
    "quant_map reversed": (exchange_tables, DENSE),
    "a head of zeros": (set_all("embed_out.weight", "<f2", 0.0), "weight"),
    "embedding rows shifted by one": (shift_embedding, "embed_in.weight"),
    "one bias of zeros": (set_all(f"{DENSE}.bias", "<f2", 0.0), f"{DENSE}.bias"),
    "a norm of ones": (
        set_all("gpt_neox.final_layer_norm.weight", "<f2", 1.0),
        "final_layer_norm.weight",
    ),
    "one bit of a kept weight": (
        lambda f: f.edit("embed_out.weight", "<u2", lambda v: v.__setitem__(77, v[77] ^ 1)),
        "weight",
    ),
    "shape transposed in quant_state": (edit_state(b"[384, 128]", b"[128, 384]"), QUERY),
}


@pytest.mark.parametrize("name", RELOAD)
def test_reload_sees(demo: Path, folder: Folder, name: str) -> None:
    change, words = RELOAD[name]
    change(folder)
    said = first_failure(demo, folder)
    assert said.startswith("reload: ")
    assert words in said


def test_reload_sees_one_scale_of_int8(demo: Path, folder_int8: Folder) -> None:
    folder_int8.edit(f"{DENSE}.SCB", "<f4", lambda v: v.__setitem__(5, 0.0))
    said = first_failure(demo, folder_int8, "bnb-int8")
    assert said.startswith("reload: ")
    assert DENSE in said


def test_reload_sees_rows_of_int8_exchanged(demo: Path, folder_int8: Folder) -> None:
    folder_int8.edit(f"{DENSE}.weight", "i1", lambda v: v.reshape(128, -1)[::-1])
    assert first_failure(demo, folder_int8, "bnb-int8").startswith("reload: ")


# what cannot be opened or run, and what is the machine's fault


def raising(error: Exception) -> Callable[..., object]:
    def broken(*args: object, **named: object) -> object:
        raise error

    return broken


def outcomes(report: GateReport) -> dict[str, str]:
    return {each.name: each.outcome for each in report.levels}


def test_what_cannot_be_opened_is_a_verdict(
    demo: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "opened_field", raising(RuntimeError("no such kernel")))
    report = judge(demo, folder.path, "bnb-nf4", *QUICK)
    assert [str(each) for each in report.failures] == [
        "reload: from_pretrained: no such kernel, expected to open"
    ]
    assert outcomes(report) == {
        "structure": "passed", "tokenizer": "not_run", "reload": "failed",
        "perplexity": "not_run", "generation": "not_run",
    }  # fmt: skip
    assert "cannot be opened" in report.level("perplexity").reason


def test_what_cannot_be_judged_yet_is_not_failed(
    demo: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "opened_field", raising(UnsupportedModelError("not known yet")))
    report = judge(demo, folder.path, "bnb-nf4", *QUICK)
    assert report.status == "not_run"
    assert outcomes(report)["structure"] == "passed"
    assert {each.reason for each in report.levels[1:]} == {"not known yet"}


@pytest.mark.parametrize(
    ("step", "level"), [("score", "perplexity"), ("check_generation", "generation")]
)
def test_a_model_that_cannot_run_is_a_verdict(
    demo: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch, step: str, level: str
) -> None:
    monkeypatch.setattr(judging, step, raising(RuntimeError("mat1 and mat2")))
    report = judge(demo, folder.path, "bnb-nf4", *QUICK, *LAX)
    assert [str(each) for each in report.failures] == [
        f"{level}: the models: mat1 and mat2, expected to run"
    ]
    assert [name for name, each in outcomes(report).items() if each == "failed"] == [level]


@pytest.mark.parametrize("step", ["opened_field", "score", "check_generation"])
@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device")])
def test_what_the_machine_lacks_is_no_verdict(
    demo: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    monkeypatch.setattr(judging, step, raising(error))
    with pytest.raises(type(error)):
        judge(demo, folder.path, "bnb-nf4", *QUICK, *LAX)


def test_a_folder_that_will_not_open_is_a_verdict_and_a_full_disk_none(
    demo: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "open_saved", raising(CheckpointError("no such tensor")))
    report = judge(demo, folder.path, "bnb-nf4", *QUICK)
    assert "no such tensor" in str(report.failures[0])
    assert outcomes(report) == {
        "structure": "passed", "tokenizer": "not_run", "reload": "failed",
        "perplexity": "not_run", "generation": "not_run",
    }  # fmt: skip
    monkeypatch.setattr(judging, "open_saved", raising(StorageError("no room")))
    with pytest.raises(StorageError):
        judge(demo, folder.path, "bnb-nf4", *QUICK)


# tokenizer


def edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def edit(folder: Folder) -> None:
        value = json.loads((folder.path / name).read_text())
        change(value)
        (folder.path / name).write_text(json.dumps(value))

    return edit


def dummy_prefix(value: dict[str, Any]) -> None:
    first = {"type": "Prepend", "prepend": "▁"}
    own = [value["normalizer"]] if value["normalizer"] else []
    value["normalizer"] = {"type": "Sequence", "normalizers": [first, *own]}


TOKENIZER: dict[str, tuple[Change, str]] = {
    "a dummy prefix": (edit_json("tokenizer.json", dummy_prefix), "other ids"),
    "special ids swapped": (
        edit_json(
            "tokenizer_config.json",
            lambda v: v.update(bos_token=v["eos_token"], eos_token=v["bos_token"]),
        ),
        "token_id",
    ),
}


@pytest.mark.parametrize("name", TOKENIZER)
def test_tokenizer_sees(demo: Path, folder: Folder, name: str) -> None:
    change, words = TOKENIZER[name]
    change(folder)
    report = judge(demo, folder.path, "bnb-nf4", *QUICK)
    assert [each.level for each in report.failures if words in str(each)] != []
    assert {each.level for each in report.failures} == {"tokenizer"}


# a stranger's folder: no plan, no manifest


STRANGERS: dict[str, tuple[Change, str, str]] = {
    "head renamed": (
        lambda f: f.rename("embed_out.weight", "lm_headdd.weight"),
        "structure",
        "missing tensors",
    ),
    "file gone": (lambda f: (f.path / WEIGHTS).unlink(), "structure", "checkpoint"),
    "wrong rope theta": (config_is("rotary_emb_base", 500_000), "structure", "rope"),
    "wrong layer_norm_eps": (config_is("layer_norm_eps", 1e-3), "structure", "layer_norm_eps"),
    "wrong use_parallel_residual": (
        config_is("use_parallel_residual", True),
        "structure",
        "use_parallel_residual",
    ),
    "special ids swapped": (config_is("eos_token_id", 2), "structure", "eos_token_id"),
    "generation's ids swapped": (
        lambda f: (f.path / "generation_config.json").write_text('{"eos_token_id": 2}'),
        "structure",
        "generation_config.json",
    ),
    "tokenizer lost": (
        lambda f: (
            [path.unlink() for path in f.path.glob("*token*")]
            + [(f.path / "spiece.model").unlink()]
        ),
        "tokenizer",
        "tokenizer files",
    ),
    "a block doubled": (scale_block(2.0), "reload", DENSE),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_check_sees(demo: Path, folder: Folder, name: str) -> None:
    change, level, words = STRANGERS[name]
    (folder.path / "quantkit-manifest.json").unlink()
    change(folder)
    found = quantkit.check(folder.path, demo, set=[*QUICK, *LAX])["gate"]
    assert found["status"] == "failed"
    assert found["levels"][level] == "failed"
    assert [each for each in found["failures"] if words in each and each.startswith(level)] != []


def test_a_missing_shard_and_lost_generation_settings_are_seen(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "llama", torch.float16)
    sharded = write_source(tmp_path / "out", "llama", torch.float16, shards=3)
    ids = tmp_path / "ids.json"
    ids.write_text("[[1, 2, 3, 4, 5, 6]]")
    good = quantkit.check(sharded, source, text=ids, set=[*QUICK, *LAX])["gate"]
    assert good["failures"] == []
    (source / "generation_config.json").write_text('{"repetition_penalty": 1.1}')
    lost = quantkit.check(sharded, source, text=ids, set=[*QUICK, *LAX])["gate"]
    assert "generation_config.json: missing" in lost["failures"][0]
    (sharded / "model-00002-of-00003.safetensors").unlink()
    found = quantkit.check(sharded, source, text=ids, set=[*QUICK, *LAX])["gate"]
    assert found["levels"]["structure"] == "failed"
    assert "model-00002-of-00003.safetensors" in found["failures"][0]


# perplexity and generation, when nothing before them spoke


#: Stricter than the recipe's; the untouched copy keeps to each, what :func:`moved` makes to none.
STRICT = {
    "gate.max_perplexity_ratio=1.005": "perplexity: perplexity ratio",
    "gate.max_kl_mean=0.1": "perplexity: mean KL divergence",
    "gate.min_top1_agreement=0.8": "perplexity: top-1 agreement",
    "gate.min_generation_agreement=0.9": "generation: teacher-forced agreement",
}
LONGER = (*QUICK, "evaluation.new_tokens=32")


def test_no_measure_sees_anything_in_the_untouched_copy(demo: Path, folder: Folder) -> None:
    assert judge(demo, folder.path, "bnb-nf4", *LONGER, *STRICT).failures == ()


@pytest.mark.parametrize(("threshold", "words"), STRICT.items())
def test_the_measures_see_what_no_weight_shows(
    demo: Path, folder: Folder, threshold: str, words: str
) -> None:
    """Noise: each code becomes a neighbour so near that no block's bound is passed."""
    for name in [each.removesuffix(".absmax") for each in folder.header if "absmax" in each]:
        folder.edit(name, "u1", lambda v: moved(v >> 4) << 4 | moved(v & 15))
    report = judge(demo, folder.path, "bnb-nf4", *LONGER, *LAX, threshold)
    assert [str(each).startswith(words) for each in report.failures] == [True]


def moved(codes: np.ndarray) -> np.ndarray:
    """Up or down by one, where NF4's codes are at most 0.13 of the block's largest value apart."""
    step = np.random.default_rng(0).choice(np.array([-1, 1]), len(codes))
    return np.where((codes >= 3) & (codes <= 12), codes + step, codes)


def test_a_planned_config_that_computes_something_else_fails(demo: Path, folder: Folder) -> None:
    folder.config(lambda config: config.update(use_parallel_residual=True))
    report = judge(demo, folder.path, "bnb-nf4", *QUICK, *LAX, believe_config=True)
    assert "use_parallel_residual" in str(report.failures[0])


def test_out_of_range_ids_are_a_verdict(demo: Path, folder: Folder, tmp_path: Path) -> None:
    text = tmp_path / "ids.json"
    text.write_text("[[1, 2, 99999]]")
    report = judge(demo, folder.path, "bnb-nf4", *QUICK, text=text)
    assert "largest token id: 99999" in str(report.failures[0])


@pytest.mark.parametrize(
    ("factor", "theta", "seen"),
    [(1.0, 10000, set()), (0.5, 10000, {"partial_rotary_factor"}), (1.0, 500, {"rope_theta"})],
)
def test_a_config_that_transformers_4_saved_says_the_same(
    demo: Path, tmp_path: Path, factor: float, theta: int, seen: set[str]
) -> None:
    """Version 4.57 writes both keys for GPT-NeoX, beside rotary_pct and rotary_emb_base."""
    stated = json.loads((demo / "config.json").read_text())
    again = {"partial_rotary_factor": factor, "rope_theta": theta, "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(stated | again))
    saved, original = (AutoConfig.from_pretrained(each) for each in (tmp_path, demo))
    assert seen <= {each.where for each in config_failures(saved, original)}
    assert bool(seen) == any(config_failures(saved, original))
