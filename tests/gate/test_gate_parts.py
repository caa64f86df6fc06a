"""Quantized parts that do not fit their module, or of which the config says something else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Converted
from safetensors.torch import load_file, save_file
from tiny import write_source
from torch import Tensor

import quantkit
from quantkit.assessment import format_name, recipe_for
from quantkit.errors import CheckpointError, GateError
from quantkit.formats import Bnb, Gptq
from quantkit.gate import decoding, opened, parts, stated
from quantkit.gate.accounting import check_accounts
from quantkit.gate.models import LoadingReport
from quantkit.gate.opened import open_original, open_saved
from quantkit.gate.reload import WeightError, check_reload, weight_errors
from quantkit.recipe import load_recipe
from quantkit.source import open_source

Change = Callable[[dict[str, Tensor], dict[str, Any]], object]

MODULE = "gpt_neox.layers.1.mlp.dense_h_to_4h"
NORM = "gpt_neox.final_layer_norm.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny random source, and its GPTQ folder."""
    place = tmp_path_factory.mktemp("parts")
    source = write_source(place / "source", "gpt_neox", torch.float32)
    draw = random.Random(0)
    ids = place / "ids.json"
    ids.write_text(json.dumps([[draw.randrange(96) for _ in range(32)] for _ in range(4)]))
    quantkit.convert(
        source, "gptq-4bit-g128", place / "out", calibration=ids, no_gate=True,
        set=["method.group_size=32", "calibration.length=32", "calibration.packing=apart"],
    )  # fmt: skip
    return source, place / "out"


def failures(source: Path, folder: Path) -> list[str]:
    level = check_accounts(open_saved(folder), open_original(open_source(source)), {})
    return [str(each) for each in level.failures]


def changed(folder: Path, copy: Path, change: Change) -> Path:
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    change(state, config)
    whole = {name: value.contiguous() for name, value in state.items()}
    save_file(whole, copy / "model.safetensors", metadata={"format": "pt"})
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def setting(key: str, value: object) -> Change:
    return lambda _, config: config["quantization_config"].update({key: value})


def part(name: str, make: Callable[[Tensor], Tensor], module: str = MODULE) -> Change:
    def change(state: dict[str, Tensor], _: dict[str, Any]) -> None:
        state[f"{module}.{name}"] = make(state[f"{module}.{name}"])

    return change


def test_a_sound_folder_has_no_failure(made: tuple[Path, Path]) -> None:
    assert failures(*made) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (setting("group_size", 64), "group_size"),
        (setting("group_size", 0), "group_size"),
        (setting("bits", "4"), "bits"),
        (setting("bits", 8), "bits"),
        (setting("desc_act", "no"), "desc_act"),
        (setting("dynamic", [3]), "dynamic"),
        (setting("dynamic", {"(((": {"bits": 8}}), "dynamic"),
        (setting("dynamic", {"-:.*": {}}), "as it is stored"),
        (setting("checkpoint_format", [1]), "checkpoint_format"),
        (setting("format", "gptq_v2"), "as checkpoint_format"),
        (setting("bits", None), "bits"),
        (setting("group_size", None), "group_size"),
        (setting("desc_act", None), "desc_act"),
        (setting("dynamic", {"+:.*": {"bits": "x"}}), "dynamic"),
        (setting("dynamic", {"+:.*": {"group_size": 0}}), "dynamic"),
        (setting("dynamic", {"+:(([a-z0-9._])+)+~": {}}), "dynamic"),
        (setting("dynamic", {".?" * 28 + "!": {}}), "dynamic"),
        (setting("dynamic", {"(.|.)" * 28 + "!": {}}), "dynamic"),
        (setting("modules_in_block_to_quantize", [["attention.dense"]]), "not listed"),
        (setting("modules_in_block_to_quantize", 3), "modules_in_block"),
        (part("g_idx", lambda g: g.flip(0)), "desc_act"),
        (part("qzeros", lambda q: q + 1), "sym"),
        (part("g_idx", lambda g: torch.full_like(g, -1)), "g_idx"),
        (part("g_idx", lambda g: g + 1), "g_idx"),
        (part("g_idx", lambda g: g.long()), "g_idx"),
        (part("qweight", lambda q: q.long()), "qweight"),
        (part("qweight", lambda q: q[:-1]), "qweight"),
        (part("qzeros", lambda q: q[:, :-1]), "qzeros"),
        (part("scales", lambda s: s.float()), "scales"),
        (part("scales", lambda s: torch.cat([s, s])), "scales"),
        (part("g_idx", lambda g: g - 1), "g_idx: -1 to 0"),
        (part("g_idx", lambda g: g + (g == 1).int()), "g_idx: 0 to 2"),
        (part("g_idx", lambda g: g[:-1]), "g_idx"),
        (lambda tensors, _: tensors.pop(f"{MODULE}.qzeros"), "qzeros: missing"),
        (setting("dynamic", {"+:.*": {"bits": 8}}), "qweight"),
        (setting("modules_in_block_to_quantize", []), "not listed"),
    ],
)
def test_gptq(made: tuple[Path, Path], tmp_path: Path, change: Change, said: str) -> None:
    source, folder = made
    found = failures(source, changed(folder, tmp_path / "copy", change))
    assert found
    assert all(each.startswith("structure:") for each in found)
    assert said in found[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda norm: norm.reshape(8, -1), f"shape: [8, 8] at {NORM}, expected [64]"),
        (lambda norm: norm[:-1].clone(), f"shape: [63] at {NORM}, expected [64]"),
        (lambda norm: norm.to(torch.int32), f"data type: int32 at {NORM}, expected a float's"),
    ],
)
def test_a_kept_weight_has_its_shape_and_a_floats_type(
    made: tuple[Path, Path], tmp_path: Path, make: Callable[[Tensor], Tensor], said: str
) -> None:
    def change(state: dict[str, Tensor], _: dict[str, Any]) -> None:
        state[NORM] = make(state[NORM])

    source, folder = made
    assert failures(source, changed(folder, tmp_path / "copy", change)) == [f"structure: {said}"]


@pytest.mark.parametrize(
    ("pattern", "usual"),
    [
        (r"(?:.*)\.(?:q|k|v)_proj", True),
        (r".*?\.1\..*?(?=dense)", True),
        (r"a\?\?\?\?\?\?", True),
        (".?" * 5, False),
        (r"\\*" * 5, False),
        ("}?" * 5, False),
    ],
)
def test_usual_patterns(pattern: str, usual: bool) -> None:
    assert stated._is_usual(pattern) is usual


def test_keys_that_mean_nothing_where_they_are_null(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    keys = ("format", "dynamic", "modules_in_block_to_quantize")
    copy = changed(
        made[1],
        tmp_path / "copy",
        lambda _, config: config["quantization_config"].update(dict.fromkeys(keys)),
    )
    assert failures(made[0], copy) == []


def test_a_group_size_of_as_many_groups(made: tuple[Path, Path], tmp_path: Path) -> None:
    """48 makes as many groups of 64 columns as 32 does, and no kernel takes it."""
    copy = changed(made[1], tmp_path / "copy", setting("group_size", 48))
    beside = json.loads((copy / "quantize_config.json").read_text())
    (copy / "quantize_config.json").write_text(json.dumps(beside | {"group_size": 48}))
    found = failures(made[0], copy)
    assert "a divisor of 64" in found[0]
    assert all(" 48 at " in each and "a divisor of " in each for each in found)


@pytest.mark.parametrize(("stated", "said"), [(-1, ""), (None, " 128 at ")])
def test_a_group_for_the_whole_row_and_the_usual_size(
    made: tuple[Path, Path], tmp_path: Path, stated: int | None, said: str
) -> None:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name, value in tensors.items():
            if name.endswith((".qzeros", ".scales")):
                tensors[name] = value[:1]
            if name.endswith(".g_idx"):
                tensors[name] = torch.zeros_like(value)
        config["quantization_config"]["group_size"] = stated
        if stated is None:
            del config["quantization_config"]["group_size"]

    copy = changed(made[1], tmp_path / "copy", change)
    (copy / "quantize_config.json").unlink()
    found = failures(made[0], copy)
    assert len(found) == (6 if said else 0), found
    assert all(said in each and "a divisor of 64" in each for each in found)


def test_an_embedding_that_is_packed_is_measured_too(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    def change(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        del tensors["gpt_neox.embed_in.weight"]
        for each in ("qweight", "qzeros", "scales"):
            tensors[f"gpt_neox.embed_in.{each}"] = tensors[f"{MODULE}.{each}"].clone()

    found = failures(made[0], changed(made[1], tmp_path / "copy", change))
    (said,) = (each for each in found if each.startswith("structure: qweight: "))
    assert said.endswith("int32 [8, 128] at gpt_neox.embed_in.qweight, expected int32 [8, 96]")


def test_the_modules_of_gpt2_lie_the_other_way(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "gpt2")
    quantkit.convert(source, "bnb-int8", tmp_path / "out", no_gate=True)
    assert failures(source, tmp_path / "out") == []


def test_quantize_config_says_the_same(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, folder = made
    copy = shutil.copytree(folder, tmp_path / "copy")
    beside = json.loads((copy / "quantize_config.json").read_text())
    (copy / "quantize_config.json").write_text(json.dumps(beside | {"sym": False}))
    assert "as quantize_config.json" in failures(source, copy)[0]


KINDS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
MODULES = [f"gpt_neox.layers.{layer}.{kind}" for layer in (0, 1) for kind in KINDS]


@pytest.mark.parametrize(
    ("key", "value", "declared"),
    [
        ("dynamic", {f"-:^{MODULE}$": {}}, True),
        ("modules_in_block_to_quantize", [[e] for e in MODULES if e != MODULE], True),
        ("modules_to_not_convert", [MODULE], True),
        ("modules_to_not_convert", ["attention.rotary"], False),
        ("dynamic", {f"+:^{MODULE}$": {}}, False),
        ("modules_in_block_to_quantize", [KINDS], False),
        ("desc_act", False, False),
    ],
)
def test_a_module_that_stays_as_it_was_is_declared(
    made: tuple[Path, Path], tmp_path: Path, key: str, value: object, declared: bool
) -> None:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for each in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{MODULE}.{each}"]
        tensors[f"{MODULE}.weight"] = torch.zeros(128, 64)
        setting(key, value)(tensors, config)

    found = failures(made[0], changed(made[1], tmp_path / "copy", change))
    assert len(found) == (not declared), found
    assert all("not declared" in each and MODULE in each for each in found)


WEIGHT = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"


def state(key: str, value: object) -> Change:
    def change(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        held = json.loads(bytes(tensors[STATE].tolist())) | {key: value}
        written(json.dumps(held))(tensors, _)

    return change


def written(text: str) -> Change:
    return lambda tensors, _: tensors.update(
        {STATE: torch.tensor(list(text.encode()), dtype=torch.uint8)}
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (part("absmax", lambda a: torch.cat([a, a[:5]]), WEIGHT), "absmax"),
        (lambda tensors, _: tensors.pop(f"{WEIGHT}.absmax"), "absmax"),
        (lambda tensors, _: tensors.pop(STATE), "quant_state"),
        (part(STATE.removeprefix(f"{WEIGHT}."), torch.zeros_like, WEIGHT), "quant_state"),
        (lambda tensors, _: tensors.update({WEIGHT: tensors[WEIGHT][:-1]}), "packed weight"),
        (lambda tensors, _: tensors.pop(WEIGHT), "packed weight: missing"),
        (state("shape", [10**9, 10**9]), "shape"),
        (state("blocksize", 0), "blocks of 0"),
        (written('{"blocksize": 1e999, "shape": [128, 64]}'), "unreadable"),
        (written("[" * 60_000), "unreadable"),
        (lambda tensors, _: tensors.update({STATE: torch.tensor(1 << 50)}), "unreadable"),
        (setting("bnb_4bit_quant_type", "fp4"), "bnb_4bit_quant_type"),
        (setting("bnb_4bit_use_double_quant", True), "bnb_4bit_use_double_quant"),
        (setting("llm_int8_skip_modules", ["(.*.*.*)*x"]), "llm_int8_skip_modules"),
        (setting("llm_int8_skip_modules", [5]), "llm_int8_skip_modules"),
    ],
)  # fmt: skip
def test_bitsandbytes(demo_nf4: Converted, tmp_path: Path, change: Change, said: str) -> None:
    found = failures(demo_nf4.source, changed(demo_nf4.folder, tmp_path / "copy", change))
    assert found
    assert any(said in each for each in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (part("weight", lambda w: w.half()), "weight: float16"),
        (part("weight", lambda w: w[:-1]), "weight: int8"),
        (part("SCB", lambda s: s.half()), "SCB: float16"),
        (part("SCB", lambda s: torch.cat([s, s])), "SCB: float32"),
    ],
)
def test_int8(demo_int8: Converted, tmp_path: Path, change: Change, said: str) -> None:
    (found,) = failures(demo_int8.source, changed(demo_int8.folder, tmp_path / "copy", change))
    assert said in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (state("blocksize", 1), "absmax: "),
        (state("blocksize", 128), "absmax: "),
        (state("blocksize", -64), "blocks of -64"),
        (state("shape", [128]), "shape [128]"),
        (lambda tensors, _: tensors.update({WEIGHT: torch.cat([tensors[WEIGHT]] * 2)}), "packed"),
        (written(" " * (1 << 16) + "{}"), "65538 bytes"),
        (written("{}"), "unreadable"),
        (written('{"blocksize": 64, "shape": 5}'), "unreadable"),
        (setting("bnb_4bit_use_double_quant", None), ""),
        (state("quant_type", "fp4"), "nf4 at bnb_4bit_quant_type, expected fp4"),
    ],
)  # fmt: skip
def test_what_one_weight_states(
    demo_nf4: Converted, tmp_path: Path, change: Change, said: str
) -> None:
    found = failures(demo_nf4.source, changed(demo_nf4.folder, tmp_path / "copy", change))
    assert len(found) == bool(said), found
    assert all(said in each for each in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (state("nested_blocksize", 1), "nested absmax"),
        (state("nested_blocksize", 0), "blocks of 64 and 0"),
        (state("nested_blocksize", "x"), "unreadable"),
        (part("nested_absmax", lambda a: a[:0], WEIGHT), "nested absmax"),
        (part("nested_absmax", lambda a: a.half(), WEIGHT), "nested absmax"),
        (part("nested_quant_map", lambda m: m[:16], WEIGHT), "nested quant_map"),
        (lambda tensors, _: tensors.pop(f"{WEIGHT}.nested_absmax"), "nested absmax"),
    ],
)
def test_a_second_quantization_holds_what_its_kernel_reads(
    twice: tuple[Path, Path], tmp_path: Path, change: Change, said: str
) -> None:
    """bitsandbytes does not look: it ended in a segmentation fault."""
    found = failures(twice[0], changed(twice[1], tmp_path / "copy", change))
    assert found
    assert said in found[0]


@pytest.fixture(scope="module")
def twice(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo, and its folder with double quantization."""
    out = tmp_path_factory.mktemp("twice") / "out"
    quantkit.convert(demo, "bnb-nf4-double", out, no_gate=True)
    return demo, out


def test_sound_bitsandbytes_folders(
    demo_nf4: Converted, demo_int8: Converted, twice: tuple[Path, Path]
) -> None:
    for each in (demo_nf4, demo_int8):
        assert failures(each.source, each.folder) == []
    assert failures(*twice) == []


def test_every_method_that_is_decoded_has_its_parts_named_and_checked() -> None:
    methods = {"bitsandbytes", *decoding.DECODERS}
    assert methods == set(opened._PART_NAMES), "DECODERS and gate/opened.py name other methods"
    assert methods == set(parts._CHECKED), "DECODERS and gate/parts.py name other methods"
    assert all(each.bounds for each in decoding.DECODERS.values())


def test_a_format_whose_config_states_its_grid_elsewhere(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, and bounded, by what its decoder finds there, and by no default."""
    weight, source = f"{MODULE}.weight", open_source(made[0])
    wanted = torch.nn.Linear(64, 256, bias=False)
    wanted.weight.data = open_original(source).load([weight])[weight]

    def judged(folder: Path) -> tuple[str, str, float]:
        saved = open_saved(folder)
        (found,) = weight_errors(torch.nn.Identity(), wanted, f"{MODULE}.", saved)
        return format_name(folder), recipe_for(folder, source).name, found.block

    def below(_: dict[str, Tensor], config: dict[str, Any]) -> None:
        settings = config["quantization_config"]
        settings["grid"] = [settings.pop("bits"), settings.pop("group_size")]

    expected = judged(made[1])
    assert expected[:2] == ("gptq 4bit g32", "gptq 4bit g32")
    decoder = decoding.DECODERS["gptq"]
    elsewhere = replace(
        decoder,
        grid=lambda settings: tuple(settings["grid"]),
        weight=lambda parts, settings: decoder.weight(parts, settings | {"bits": 4}),
    )
    monkeypatch.setitem(decoding.DECODERS, "gptq", elsewhere)
    assert judged(changed(made[1], tmp_path / "copy", below)) == expected


@pytest.mark.parametrize(
    ("bits", "size", "name"),
    [
        (3, 128, "gptq-3bit-g128"),
        (4, 128, "gptq-4bit-g128"),
        (8, 128, "gptq-8bit"),
        (8, 64, "gptq 8bit g64"),
    ],
)
def test_a_folder_is_judged_by_its_own_recipe(
    made: tuple[Path, Path], tmp_path: Path, bits: int, size: int, name: str
) -> None:
    def restated(_: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["quantization_config"] |= {"bits": bits, "group_size": size}

    copy = changed(made[1], tmp_path / "copy", restated)
    found = recipe_for(copy, open_source(made[0]))
    assert found.name == name
    assert bits != 8 or found.gate.max_kl_mean == (0.01 if size == 128 else 0.02)


@pytest.mark.parametrize("size", ["x" * 400, 'x"', "128\n", None, [1]], ids=range(5))
def test_a_group_size_that_is_no_name(
    made: tuple[Path, Path], tmp_path: Path, size: object
) -> None:
    """It is a finding of the gate's, not what a search for the folder's recipe ends at."""
    copy = changed(made[1], tmp_path / "copy", setting("group_size", size))
    assert recipe_for(copy, open_source(made[0])).gate.max_weight_error == 0.25
    assert format_name(copy) == "gptq 4bit g?"
    assert "group_size" in failures(made[0], copy)[0]


def test_a_librarys_module_without_a_weight_is_decoded_here(made: tuple[Path, Path]) -> None:
    source, folder = made
    saved, name = open_saved(folder), f"{MODULE}.weight"
    wanted = torch.nn.Linear(64, 256, bias=False)
    wanted.weight.data = open_original(open_source(source)).load([name])[name]
    (found,) = weight_errors(torch.nn.Identity(), wanted, f"{MODULE}.", saved)
    assert found.equal is None
    assert 0 < found.relative < 0.25


@pytest.mark.parametrize("own", ["bits=8", "group_size=16"])
def test_modules_with_settings_of_their_own_and_no_indices(
    made: tuple[Path, Path], tmp_path: Path, own: str
) -> None:
    source, out = made[0], tmp_path / "out"
    override = f'method.override=[{{pattern="dense_h_to_4h", {own}}}]'
    quantkit.convert(
        source, "gptq-4bit-g128", out, calibration=source.parent / "ids.json", no_gate=True, set=[
            "method.group_size=32", "calibration.length=32", "calibration.packing=apart", override,
        ],
    )  # fmt: skip
    copy = changed(out, tmp_path / "copy", lambda state, _: drop_indices(state))
    assert failures(source, copy) == []
    weight = f"{MODULE}.weight"
    found, wanted = (open_saved(each).load([weight])[weight] for each in (copy, out))
    assert torch.equal(found, wanted)


def drop_indices(state: dict[str, Tensor]) -> None:
    for name in [each for each in state if each.endswith(".g_idx")]:
        del state[name]


def test_a_quantized_weight_without_an_error_is_counted_too() -> None:
    errors = [WeightError("zeros"), WeightError("other", 0.01), WeightError("norm", equal=True)]
    found = check_reload(LoadingReport(), errors, load_recipe("bnb-nf4").gate)
    assert found.measures["modules_quantized"] == 2


@pytest.mark.parametrize(
    ("recipe", "form", "setting", "told"),
    [
        ("gptq-4bit-g128", Gptq, ("sym", True), "sym: "),
        ("gptq-4bit-g128", Gptq, ("bits", 8), "qweight"),
        ("gptq-4bit-g128", Gptq, ("group_size", 32), "qzeros"),
        ("gptq-4bit-g128", Gptq, ("modules_in_block_to_quantize", [["mlp.x"]]), "modules_in_block"),
        ("bnb-nf4", Bnb, ("bnb_4bit_use_double_quant", True), "bnb_4bit_use_double_quant"),
        ("bnb-nf4", Bnb, ("bnb_4bit_quant_type", "fp4"), "bnb_4bit_quant_type"),
    ],
)
def test_a_config_that_is_as_planned_and_not_as_the_weights_fails_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, form: Any, setting: Any, told: str
) -> None:
    """The plan itself may state what is not so: the gate reads the files as a stranger would."""
    source = write_source(tmp_path / "source", "gpt_neox", torch.float16)
    text, own = tmp_path / "text.json", tmp_path / "own.json"
    for path, step in ((text, 7), (own, 11)):
        rows = [[(step * at + row) % 89 for at in range(32)] for row in range(4)]
        path.write_text(json.dumps(rows))
    true = form.quantization_config

    def false(self: Any, *told: Any) -> dict[str, Any]:
        return {**true(self, *told), setting[0]: setting[1]}

    calibrated = recipe.startswith("gptq")
    few = [
        "method.sym=false", "method.group_size=16", "calibration.length=32",
        "calibration.packing=apart",
    ]  # fmt: skip
    told_to = {"calibration": own, "set": few} if calibrated else {}
    monkeypatch.setattr(form, "quantization_config", false)
    with pytest.raises(GateError) as caught:
        quantkit.convert(source, recipe, tmp_path / "out", text=text, **told_to)
    assert "structure" in str(caught.value)
    assert told in str(caught.value)


def test_double_quantized_fp4_is_judged_as_fp4(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantkit.convert(demo, "bnb-fp4", out, no_gate=True, set=["method.double_quant=true"])
    assert recipe_for(out, open_source(demo)).name == "bnb-fp4"


@pytest.mark.parametrize(
    ("stated", "used"),
    [(1.25, 1.25), (2, 2.0), ("high", None), (True, None), (-1, None), (10**400, None), ([], None)],
    ids=range(7),
)
def test_a_repetition_penalty_is_taken_where_it_is_one(
    demo_nf4: Converted, stated: object, used: float | None
) -> None:
    source = replace(open_source(demo_nf4.source), generation={"repetition_penalty": stated})
    settings = recipe_for(demo_nf4.folder, source).generation
    assert (settings.repetition_penalty if settings else None) == used


@pytest.mark.parametrize("reordered", [True, False])
def test_a_weight_without_scales_is_not_decoded(reordered: bool) -> None:
    stored = {
        "qweight": torch.zeros(8, 8, dtype=torch.int32),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.zeros(0, 8),
    }
    if reordered:
        stored["g_idx"] = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(CheckpointError, match="do not fit each other"):
        decoding.decode("gptq", stored, {"bits": 4, "group_size": 64})
