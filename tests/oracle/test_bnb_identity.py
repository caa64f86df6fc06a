"""Every tensor that quantkit writes is bit for bit what transformers + bitsandbytes writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import CONFIGS, write_source
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from quantkit.conversion import run
from quantkit.planning import make_plan
from quantkit.recipe import Recipe, load_recipe
from quantkit.registry import checksums
from quantkit.source import open_source

RECIPES = ("bnb-nf4", "bnb-nf4-double", "bnb-fp4", "bnb-int8")


def quantize(source: Path, recipe: Recipe, out: Path) -> Path:
    out.mkdir()
    opened = open_source(source)
    run(make_plan(opened, recipe), opened, recipe, checksums(), out)
    return out


def oracle(source: Path, recipe: Recipe, out: Path, device: str = "cpu") -> Path:
    method = recipe.method
    if method.quant_type == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=method.quant_type,
            bnb_4bit_use_double_quant=method.double_quant,
            bnb_4bit_compute_dtype=method.compute_dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype="auto", device_map=device
    )
    model.save_pretrained(out)
    return out


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: value
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def source_name(name: str, ours: dict[str, torch.Tensor]) -> str:
    """The oracle's name as the source calls it."""
    if name in ours:
        return name
    for theirs, source in (("lm_head.", "embed_out."), ("transformer.", "")):
        if name.startswith(theirs) and source + name.removeprefix(theirs) in ours:
            return source + name.removeprefix(theirs)
    return name


def assert_identical(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    renamed = {source_name(name, ours): value for name, value in theirs.items()}
    assert ours.keys() == renamed.keys()
    for name, value in ours.items():
        other = renamed[name]
        assert value.dtype == other.dtype, name
        assert value.shape == other.shape, name
        same = torch.equal(
            value.contiguous().reshape(-1).view(torch.uint8),
            other.contiguous().reshape(-1).view(torch.uint8),
        )
        assert same, name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model_type", CONFIGS)
@pytest.mark.parametrize(
    ("container", "shards"), [("safetensors", 1), ("safetensors", 5), ("torch", 1), ("torch", 5)]
)
def test_every_tensor_is_the_oracles(
    tmp_path: Path, model_type: str, recipe: str, container: str, shards: int
) -> None:
    source = write_source(tmp_path / "s", model_type, torch.float16, container, shards)
    loaded = load_recipe(recipe)
    ours = load_all(quantize(source, loaded, tmp_path / "ours"))
    theirs = load_all(oracle(source, loaded, tmp_path / "theirs"))
    assert_identical(ours, theirs)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_data_types(tmp_path: Path, recipe: str, dtype: torch.dtype) -> None:
    source = write_source(tmp_path / "s", "llama", dtype)
    loaded = load_recipe(recipe)
    ours = load_all(quantize(source, loaded, tmp_path / "ours"))
    assert_identical(ours, load_all(oracle(source, loaded, tmp_path / "theirs")))


@pytest.mark.parametrize("recipe", RECIPES)
def test_stored_bf16_under_a_float16_config(tmp_path: Path, recipe: str) -> None:
    """rinna's PPO models: bfloat16 in the file, float16 in config.json."""
    source = write_source(tmp_path / "s", "gpt_neox", torch.bfloat16, "torch")
    config = json.loads((source / "config.json").read_text())
    config["dtype"] = "float16"
    (source / "config.json").write_text(json.dumps(config))
    loaded = load_recipe(recipe)
    ours = load_all(quantize(source, loaded, tmp_path / "ours"))
    assert_identical(ours, load_all(oracle(source, loaded, tmp_path / "theirs")))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", ["mini-rinna", "stories260k"])
def test_real_models(tmp_path: Path, shared: Path, model: str, recipe: str) -> None:
    loaded = load_recipe(recipe)
    source = shared / "models" / model
    ours = load_all(quantize(source, loaded, tmp_path / "ours"))
    assert_identical(ours, load_all(oracle(source, loaded, tmp_path / "theirs")))


@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-nf4-double", "bnb-fp4"])
@pytest.mark.parametrize("block_size", [128, 256, 512, 1024, 2048, 4096])
def test_other_block_sizes(tmp_path: Path, recipe: str, block_size: int) -> None:
    """transformers has no option for it; the oracle is bitsandbytes.functional."""
    from bitsandbytes.functional import quantize_4bit

    source = write_source(tmp_path / "s", "llama")
    loaded = load_recipe(recipe, [f"method.block_size={block_size}"])
    ours = load_all(quantize(source, loaded, tmp_path / "ours"))
    state = load_all(source)
    weights = [name for name in ours if f"{name}.quant_map" in ours]
    assert len(weights) == 14
    for name in weights:
        packed, expected = quantize_4bit(
            state[name],
            blocksize=block_size,
            quant_type=loaded.method.quant_type,
            compress_statistics=loaded.method.double_quant,
        )
        assert torch.equal(ours[name], packed), name
        for key, value in expected.as_dict(packed=True).items():
            assert torch.equal(ours[f"{name}.{key}"], value), f"{name}.{key}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_config_says_what_transformers_says(tmp_path: Path, recipe: str) -> None:
    source = write_source(tmp_path / "s", "gpt_neox")
    loaded = load_recipe(recipe)
    ours = json.loads((quantize(source, loaded, tmp_path / "o") / "config.json").read_text())
    theirs = json.loads((oracle(source, loaded, tmp_path / "t") / "config.json").read_text())
    assert ours["quantization_config"] == theirs["quantization_config"]


def test_a_swapped_nibble_is_seen(tmp_path: Path) -> None:
    source = write_source(tmp_path / "s", "gpt_neox")
    ours = load_all(quantize(source, load_recipe("bnb-nf4"), tmp_path / "ours"))
    name = "gpt_neox.layers.0.attention.dense.weight"
    broken = dict(ours)
    flat = ours[name].clone()
    flat[0, 0] = (int(flat[0, 0]) >> 4) | ((int(flat[0, 0]) & 15) << 4)
    broken[name] = flat
    with pytest.raises(AssertionError, match="dense"):
        assert_identical(broken, ours)
