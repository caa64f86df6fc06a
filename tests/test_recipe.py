"""Recipes are strict, whole and immutable."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

import quantkit
from quantkit.errors import RecipeError
from quantkit.methods import METHODS, BnbMethod, CalibrationSection
from quantkit.recipe import (
    CardSection,
    Evaluation,
    GateSection,
    Generation,
    Prompt,
    SourceSection,
    TokenizerSection,
    load_recipe,
)
from quantkit.resources import shipped_folder

SECTIONS = {
    "calibration": CalibrationSection, "evaluation": Evaluation, "gate": GateSection,
    "source": SourceSection, "tokenizer": TokenizerSection, "prompt": Prompt,
    "generation": Generation, "card": CardSection,
}  # fmt: skip

SHIPPED = sorted(path.stem for path in shipped_folder("recipes").glob("*.toml"))

#: What may be left out, since it claims or measures nothing when absent.
OPTIONAL = {"prompts", "new_tokens", "by_layer"}


def test_the_promised_recipes_ship() -> None:
    promised = {"bnb-nf4", "bnb-nf4-double", "bnb-fp4", "bnb-int8", "fp16", "bf16"}
    assert promised | {"rinna-3.6b-ppo-nf4", "rinna-4b-sft-nf4"} <= set(SHIPPED)
    assert sorted(each.name for each in quantkit.recipes()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_writes_every_value(name: str) -> None:
    data = tomllib.loads((shipped_folder("recipes") / f"{name}.toml").read_text())
    assert data["name"] == name
    method = METHODS[data["method"]["format"]]
    assert data["method"].keys() | {"override"} == method.model_fields.keys() | {"override"}
    assert data["gate"].keys() == GateSection.model_fields.keys()
    assert data["evaluation"].keys() | OPTIONAL == Evaluation.model_fields.keys()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "method.ignore=lm_head",
            "'method.ignore': Input should be a list, in brackets; got 'lm_h",
        ),
        ("gate=1", "'gate': Input should be a section of keys; got 1"),
        ("method=[{format='bnb'}]", r"'method': Input should be a section of keys; got \[{'format"),
        ("method.format='awq'", "'method.format': Input should be one of 'bnb', .*; got 'awq'$"),
        ("method={}", "'method.format': Input should be one of 'bnb', .*; it is missing$"),
        ("card.notes=[[1]]", r"'card.notes.0': .*; got \[1\]$"),
    ],
)
def test_a_mistake_is_told_in_terms_of_toml(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("bnb-nf4", [override])


@pytest.mark.parametrize("key", BnbMethod.model_fields)
def test_no_value_is_inherited(tmp_path: Path, key: str) -> None:
    lines = (shipped_folder("recipes") / "bnb-nf4.toml").read_text().splitlines(keepends=True)
    path = tmp_path / "mine.toml"
    path.write_text("".join(line for line in lines if not line.startswith(f"{key} ")))
    with pytest.raises(RecipeError, match=key if key != "format" else "method"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("nam='x'", "did you mean 'name'"),
        ("source.rep='x'", "did you mean 'repo'"),
        ("method.quant_typ='nf4'", "did you mean 'quant_type'"),
        ("evaluation.max_window=1", "did you mean 'max_windows'"),
        ("gate.max_kl=1", "did you mean 'max_kl_mean'"),
        ("generation.temperatur=1.0", "did you mean 'temperature'"),
        ("card.languges=['ja']", "did you mean 'languages'"),
        ("card.evaluation=[{nam='x'}]", "did you mean 'name'"),
        ("gate.zzzzz=1", "unknown key 'gate.zzzzz'"),
        ("gptq.bits=4", "unknown key 'gptq'"),
        ("method.gptq.bits=4", "unknown key 'method.gptq'"),
        ("card.evaluation=[{plain='x'}]", "unknown key 'card.evaluation.0.plain'"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("bnb-nf4", [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_plain_names_plains_own() -> None:
    with pytest.raises(RecipeError, match="did you mean 'max_shard_bytes'"):
        load_recipe("fp16", ["method.max_shard_byte=1"])
    with pytest.raises(RecipeError, match="did you mean 'pattern'"):
        load_recipe("gptq-4bit-g128", ["method.override=[{patern='x'}]"])


def test_a_set_is_one_line() -> None:
    """The second would be dropped."""
    with pytest.raises(RecipeError, match="expected one line"):
        load_recipe("bnb-nf4", ['method.block_size=128\nmethod.quant_type="fp4"'])
    assert load_recipe("bnb-nf4", ["method.block_size=128\n"]).method.block_size == 128


@pytest.mark.parametrize(
    "override",
    [
        "gate.max_kl_mean=nan",
        "gate.max_kl_mean=inf",
        "gate.max_perplexity_ratio=nan",
        "gate.min_top1_agreement=nan",
        "gate.max_kl_mean=-1.0",
        "gate.max_kl_mean=0",
        "gate.max_kl_mean='0.1'",
        "evaluation.window=1",
        "evaluation.max_windows=-1",
        "evaluation.max_windows=true",
        "evaluation.window=3.5",
        "method.double_quant=1",
        "method.ignore='lm_head'",
        "method.ignore=[1]",
        "method.ignore=['(']",
        "method.ignore=['(?i)DENSE']",
        "method.llm_int8_threshold=nan",
        "method.dtype=float64",
        "name=''",
        pytest.param("method.block_size=" + "9" * 5000, id="5000 digits"),
    ],
)
def test_a_bad_value_is_named(override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("bnb-nf4", [override])
    assert override.partition("=")[0] in str(caught.value)


def test_what_a_recipe_lacks_as_a_whole_is_said_without_the_whole() -> None:
    few = ["calibration.samples=1", "calibration.length=2", "calibration.seed=0"]
    with pytest.raises(RecipeError) as caught:
        load_recipe("bnb-nf4", few)
    said = "[calibration] belongs to format gptq, and to no other"
    assert str(caught.value) == f"recipe bnb-nf4.toml: {said}"
    with pytest.raises(RecipeError, match=r"key 'method\.ignore\.0': not a regular expression"):
        load_recipe("bnb-nf4", ["method.ignore=['(']"])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("method.block_size=128", 128),
        ("method.block_size = 128", 128),
        ("method.block_size=1_28", 128),
        ("method.compute_dtype=bfloat16", "bfloat16"),
        ("method.compute_dtype='bfloat16'", "bfloat16"),
        ('method.ignore=["a", "b"]', ("a", "b")),
        ("gate.max_kl_mean=1", 1.0),
        ("source.repo=own/model", "own/model"),
        ('source.repo=""', ""),
        ("summary=a = b", "a = b"),
    ],
)
def test_set_takes_toml_and_bare_words(override: str, value: object) -> None:
    found = load_recipe("bnb-nf4", [override])
    for part in override.partition("=")[0].strip().split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_the_last_set_wins() -> None:
    recipe = load_recipe("bnb-nf4", ["method.block_size=128", "method.block_size=256"])
    assert recipe.method.block_size == 256


def test_a_recipe_cannot_be_altered() -> None:
    recipe = load_recipe("bnb-nf4")
    with pytest.raises(ValidationError):
        recipe.method.block_size = 128
    assert isinstance(recipe.method.ignore, tuple)
    assert load_recipe("bnb-nf4") == recipe


@pytest.mark.parametrize("name", ["../recipes/bnb-nf4", "recipes/bnb-nf4", "", ".", "BNB-NF4"])
def test_a_name_is_a_name_and_not_a_path(name: str) -> None:
    with pytest.raises(RecipeError, match="unknown recipe"):
        load_recipe(name)


@pytest.mark.parametrize(
    "raw",
    [
        b"name = ",
        b"\xff\xfe",
        b"name = 1\nname = 2\n",
        b"name = " + b"9" * 5000,
        b"a = " + b"[" * 99999,
    ],
    ids=range(5),
)
def test_a_file_that_is_no_toml(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "mine.toml").write_bytes(raw)
    with pytest.raises(RecipeError, match=r"mine\.toml"):
        load_recipe(tmp_path / "mine.toml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "mine.toml")


def test_a_folder_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").mkdir()
    with pytest.raises(RecipeError, match="a folder"):
        load_recipe(tmp_path / "mine.toml")


def test_the_ppo_models_prompt_is_its_cards() -> None:
    """The card's own example of one turn, with <NL> for line breaks."""
    prompt = load_recipe("rinna-3.6b-ppo-nf4").prompt
    assert prompt is not None
    assert prompt.render("a\nb") == "ユーザー: a<NL>b<NL>システム: "


def test_the_sft_models_prompt_is_its_cards() -> None:
    prompt = load_recipe("rinna-4b-sft-nf4").prompt
    assert prompt is not None
    assert prompt.render("a\nb") == "ユーザー: a\nb\nシステム: "


#: rinna's series: repository, line break in a conversation (None: a base model), languages,
#: figures that its authors published.
SERIES = {
    "3.6b": ("japanese-gpt-neox-3.6b", None, ("ja",), 2),
    "3.6b-sft": ("japanese-gpt-neox-3.6b-instruction-sft", "<NL>", ("ja",), 0),
    "3.6b-sft-v2": ("japanese-gpt-neox-3.6b-instruction-sft-v2", "<NL>", ("ja",), 1),
    "3.6b-ppo": ("japanese-gpt-neox-3.6b-instruction-ppo", "<NL>", ("ja",), 4),
    "4b": ("bilingual-gpt-neox-4b", None, ("ja", "en"), 3),
    "4b-sft": ("bilingual-gpt-neox-4b-instruction-sft", "\n", ("ja", "en"), 9),
    "4b-ppo": ("bilingual-gpt-neox-4b-instruction-ppo", "\n", ("ja", "en"), 2),
}


@pytest.mark.parametrize("bits", ["nf4", "int8"])
@pytest.mark.parametrize("model", SERIES)
def test_rinnas_series_in_four_and_eight_bits(model: str, bits: str) -> None:
    repo, newline, languages, published = SERIES[model]
    recipe = load_recipe(f"rinna-{model}-{bits}")
    plain = load_recipe(f"bnb-{bits}")
    assert (recipe.method, recipe.gate) == (plain.method, plain.gate)
    assert recipe.source.repo == f"rinna/{repo}"
    assert recipe.card.languages == languages
    assert len(recipe.card.evaluation) == published
    assert all(each.stated_at.startswith("https://") for each in recipe.card.evaluation)
    if newline is None:
        assert recipe.prompt is None
    else:
        assert recipe.prompt is not None
        assert recipe.prompt.render("a\nb") == f"ユーザー: a{newline}b{newline}システム: "


def test_what_rinnas_recipes_say_of_two_models() -> None:
    ppo, sft = load_recipe("rinna-3.6b-ppo-int8"), load_recipe("rinna-4b-sft-int8")
    assert ppo.generation is not None
    assert ppo.generation.repetition_penalty == 1.1
    assert "repeat" in ppo.card.notes[0]
    assert sft.source.container == "torch", "the release is told apart by that file's MD5"
    assert "59.25" in sft.card.notes[0]
    published = {each.name: each.value for each in sft.card.evaluation}
    assert published["Open LLM Leaderboard, average"] == 32.46
    assert published["rinna's average of 6 tasks"] == 61.69
    gptq = load_recipe("rinna-3.6b-ppo-gptq")
    assert gptq.card == ppo.card


def test_the_page_names_every_key() -> None:
    page = (shipped_folder("recipes").parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    for method in METHODS.values():
        assert all(f"`{key}`" in page for key in method.model_fields if key != "override")
    for name, section in SECTIONS.items():
        prefix = "" if name == "calibration" else f"{name}."
        assert all(f"`{prefix}{key}`" in page for key in section.model_fields), name
