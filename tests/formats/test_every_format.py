"""Each format that a recipe may ask for is known wherever it must be: CONTRIBUTING's five steps.

What fails here names the step that is missing. Whether the bytes are right is for the format's
own tests and its oracle to show.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import quantkit
from quantkit.assessment import format_name
from quantkit.carddata import method_words, needs
from quantkit.elements import Array
from quantkit.errors import NonFiniteError
from quantkit.formats import Kept, format_of
from quantkit.gate.decoding import DECODERS
from quantkit.gate.opened import _PART_NAMES, _placed
from quantkit.gate.parts import _CHECKED
from quantkit.methods import METHODS
from quantkit.recipe import Recipe
from quantkit.resources import shipped_folder

FORMATS = sorted(METHODS.keys() - {"plain"})
GENERIC = [each for each in quantkit.recipes() if not each.source.repo]
QUANTIZING = {each.name: each for each in GENERIC if each.method.format in FORMATS}
ENCODED = [name for name, each in QUANTIZING.items() if not format_of(each.method).calibrated]

MODULE, SHAPE = "model.layers.0.mlp.up_proj", (256, 512)
WEIGHT = f"{MODULE}.weight"


def written_config(recipe: Recipe) -> dict[str, object]:
    config = format_of(recipe.method).quantization_config(Kept((), (), ()), [MODULE])
    assert config is not None
    return config


@pytest.mark.parametrize("name", FORMATS)
def test_it_has_a_recipe_by_which_check_knows_its_folders(name: str, tmp_path: Path) -> None:
    own = [each for each in QUANTIZING.values() if each.method.format == name]
    assert own, f"step 5: no recipe in recipes/ has format = {name!r}"
    found = []
    for recipe in own:
        config = {"quantization_config": written_config(recipe)}
        (tmp_path / "config.json").write_text(json.dumps(config))
        found.append("-".join(format_name(tmp_path).split()))
    assert set(found) & QUANTIZING.keys(), (
        f"step 5: format_name calls their folders {found}, and no recipe bears such a name: check "
        "would judge them by other thresholds"
    )


@pytest.mark.parametrize("name", [each.name for each in GENERIC])
def test_the_readme_has_its_recipe(name: str) -> None:
    readme = (shipped_folder("recipes").parent / "README.md").read_text(encoding="utf-8")
    assert f"`{name}`" in readme, "step 5: a row of README's table of recipes"


@pytest.mark.parametrize("name", QUANTIZING)
def test_the_card_says_what_it_is_and_what_opens_it(name: str) -> None:
    method = QUANTIZING[name].method.model_dump(mode="json")
    manifest = {"recipe": {"method": method}, "plan": {"dtype": "float16"}}
    assert method_words(manifest) != method["format"], "step 5: method_words in carddata.py"
    assert needs(manifest) != "transformers accelerate", "step 5: needs in carddata.py"


@pytest.mark.parametrize("name", QUANTIZING)
def test_the_gate_knows_its_parts_and_its_bounds(name: str) -> None:
    recipe = QUANTIZING[name]
    config = written_config(recipe)
    method = config["quant_method"]
    assert method in _PART_NAMES, "step 4: _PART_NAMES in gate/opened.py"
    assert method in _CHECKED, "step 4: _CHECKED in gate/parts.py"
    outputs = format_of(recipe.method).outputs(WEIGHT, SHAPE, "float16")
    placed = {each.name: _placed(each.name, str(method)) for each in outputs}
    lost = [each for each, (owner, _) in placed.items() if owner != WEIGHT]
    assert not lost, f"step 4: _PART_NAMES takes {lost} for parameters of their own"
    if method == "bitsandbytes":  # its own modules decode it
        return
    assert method in DECODERS, "step 4: DECODERS in gate/decoding.py"
    bits, size = DECODERS[str(method)].grid(config)
    stated = recipe.method.model_dump()
    assert (bits, size) == (stated["bits"], stated["group_size"]), "step 4: the decoder's grid"
    assert bits in DECODERS[str(method)].bounds, f"step 4: no bound for {bits} bits, so no group"


def encoded(recipe: Recipe, weight: Array, units: int) -> dict[str, bytes]:
    """The weight's output tensors, of which every byte was written, and none twice."""
    form = format_of(recipe.method)
    outputs = form.outputs(WEIGHT, SHAPE, weight.dtype.name)
    made = {each.name: bytearray(each.nbytes) for each in outputs}
    times = {each.name: np.zeros(each.nbytes, int) for each in outputs}
    encoder = form.encoder(WEIGHT, SHAPE, weight.dtype.name, "cpu")
    step, flat = units * form.unit(SHAPE), weight.reshape(-1)
    pieces = [flat[at : at + step].copy() for at in range(0, flat.size, step)]
    for piece in [*pieces, None]:
        for each in encoder.finish() if piece is None else encoder.feed(piece):
            data = np.ascontiguousarray(each.data).tobytes()
            place = slice(each.offset, each.offset + len(data))
            made[each.name][place] = data
            times[each.name][place] += 1
        if piece is not None:
            piece[:] = 0  # the pass reads the next one into the same memory
    for each in outputs:
        end = None if not each.variable else int(times[each.name].sum())
        assert (times[each.name][:end] == 1).all(), f"{each.name}: not every byte, or one twice"
        assert len(made[each.name]) == each.nbytes, f"{each.name}: beyond what outputs() promised"
    return {name: bytes(each) for name, each in made.items()}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", ENCODED)
def test_its_encoder_writes_what_is_planned_however_it_is_fed(name: str, dtype: str) -> None:
    weight = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)
    whole = encoded(QUANTIZING[name], weight, units=weight.size)
    assert encoded(QUANTIZING[name], weight, units=3) == whole


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ENCODED)
def test_its_encoder_refuses_what_is_not_finite(name: str, value: float) -> None:
    weight = np.ones(SHAPE, np.float16)
    weight[-1, -1] = value
    with pytest.raises(NonFiniteError, match=r"up_proj\.weight: 1 values"):
        encoded(QUANTIZING[name], weight, units=weight.size)
