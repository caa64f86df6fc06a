"""Recipes: every decision of a conversion, written out as TOML.

Keys are strict: an unknown one is an error that names the nearest known one, and
no value is inherited from a library's default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from quantkit.errors import RecipeError, UsageError, printable
from quantkit.given import expanded, read_given_text
from quantkit.methods import METHODS, CalibrationSection, Method, Pattern, Strict
from quantkit.mistakes import explained
from quantkit.resources import shipped_folder
from quantkit.types import AnyPath
from quantkit.verb import verb

#: The longest recipe, in bytes.
_LONGEST = 1 << 20


class SourceSection(Strict):
    """Which model the recipe is for. ``repo`` claims an identity; ``""`` claims none.

    ``container`` says which weights to take where there are both: those that the registry
    can prove.
    """

    repo: str = ""
    container: Literal["auto", "safetensors", "torch"] = "auto"
    drop: tuple[Pattern, ...] = ()

    @property
    def wanted(self) -> Literal["safetensors", "torch"] | None:
        return None if self.container == "auto" else self.container


class Evaluation(Strict):
    """How perplexity and generation are measured.

    ``max_windows`` holds for each text. ``by_layer`` holds one layer of each model in memory
    even where both fit whole; generation then does not run.
    """

    window: Annotated[int, Field(ge=2)]
    max_windows: Annotated[int, Field(ge=0)]
    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    new_tokens: Annotated[int, Field(ge=1)] = 32
    by_layer: bool = False


class GateSection(Strict):
    """Thresholds. Beyond any of them the output is not published.

    ``max_degenerate`` is the share of prompts that only the quantized model answers with
    loops, nothing, or special tokens alone.
    """

    max_perplexity_ratio: Annotated[float, Field(gt=0)]
    max_kl_mean: Annotated[float, Field(gt=0)]
    min_top1_agreement: Annotated[float, Field(ge=0, le=1)]
    max_weight_error: Annotated[float, Field(gt=0)]
    min_generation_agreement: Annotated[float, Field(ge=0, le=1)]
    allow_tokenizer_ties: bool
    max_degenerate: Annotated[float, Field(ge=0, le=1)] = 0.25


class TokenizerSection(Strict):
    """How the written tokenizer reads a text.

    ``split_special_tokens``: ``</s>`` in a text stays text, as sentencepiece has it. False lets
    it become the token, which a checkpoint that added special tokens of its own needs.
    """

    split_special_tokens: bool


class Prompt(Strict):
    """A model's conversation form, as plain data.

    A turn is ``role + separator + utterance``, turns are joined by ``turn_end``, and
    the whole ends with ``system + separator``. Inside an utterance a line break
    becomes ``newline``.
    """

    user: str
    system: str
    separator: str
    turn_end: str
    newline: str

    def render(self, utterance: str) -> str:
        """One user turn and the opening of the model's answer."""
        return self.conversation([(True, utterance), (False, "")])

    def conversation(self, turns: Iterable[tuple[bool, str]]) -> str:
        """Turns of both sides, ``True`` for the user's."""
        return self.turn_end.join(
            f"{self.user if asked else self.system}{self.separator}"
            + said.replace("\n", self.newline)
            for asked, said in turns
        )


class Generation(Strict):
    """Settings that the model's card asks for; written to generation_config.json."""

    do_sample: bool | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None


class Published(Strict):
    """A figure that the source's authors published of the unquantized model."""

    name: str
    value: float
    stated_at: str


class CardSection(Strict):
    """What the card says of the model that ``source.repo`` names, and of no other."""

    languages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    evaluation: tuple[Published, ...] = ()


class Recipe(Strict):
    """One recipe, whole."""

    name: Annotated[str, Field(min_length=1)]
    summary: str
    method: Method
    evaluation: Evaluation
    gate: GateSection
    calibration: CalibrationSection | None = None
    source: SourceSection = SourceSection()
    tokenizer: TokenizerSection = TokenizerSection(split_special_tokens=True)
    prompt: Prompt | None = None
    generation: Generation | None = None
    card: CardSection = CardSection()

    @model_validator(mode="after")
    def _calibrated(self) -> Recipe:
        if (self.method.format == "gptq") != (self.calibration is not None):
            raise ValueError("[calibration] belongs to format gptq, and to no other")
        return self


def recipes() -> tuple[Recipe, ...]:
    """The recipes that ship with quantkit, by name."""
    return tuple(load_recipe(path) for path in sorted(shipped_folder("recipes").glob("*.toml")))


def recipe_text(name_or_path: AnyPath) -> str:
    """A recipe's file, comments and all: a beginning for one's own.

    Raises:
        RecipeError: as :func:`load_recipe`.
    """
    load_recipe(name_or_path)
    return _find(name_or_path).read_text(encoding="utf-8")


@verb
def load_recipe(name_or_path: AnyPath, overrides: str | Iterable[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or any ``.toml`` file.

    ``overrides`` are ``"dotted.key=value"`` texts as ``--set`` takes them, the value
    in TOML's notation (a bare word is a string).

    Raises:
        RecipeError: unknown recipe, unreadable file, unknown key or bad value.
    """
    path = _find(name_or_path)
    try:
        data = tomllib.loads(read_given_text(path, f"recipe {path}", most=_LONGEST))
    except UsageError as error:
        raise RecipeError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"recipe {path}: cannot be read as TOML: {error}") from error
    for text in overrides_of(overrides):
        _override(data, text)
    try:
        return Recipe.model_validate(_tuples(data))
    except ValidationError as error:
        raise RecipeError(f"recipe {path.name}: {explained(error, Recipe, METHODS)}") from None


def overrides_of(given: str | Iterable[str]) -> tuple[str, ...]:
    """One override or several: a text alone is one, not its letters."""
    return (given,) if isinstance(given, str) else tuple(given)


def _find(name_or_path: AnyPath) -> Path:
    path = expanded(name_or_path or ".")  # an empty one is unknown, as any other
    if path.suffix == ".toml":
        return path  # who reads it says what is wrong with it
    folder = shipped_folder("recipes")
    shipped = folder / f"{name_or_path}.toml"
    if path.name == str(name_or_path) and shipped.is_file():
        return shipped
    known = sorted(each.stem for each in folder.glob("*.toml"))
    near = get_close_matches(str(name_or_path), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known recipes: {', '.join(known)}"
    raise RecipeError(f"unknown recipe {str(name_or_path)!r}; {hint}")


def _override(data: dict[str, Any], text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecipeError(f"--set {printable(text)}: not UTF-8; type it anew") from None
    if "\n" in text.strip():
        raise RecipeError(f"--set {text!r}: expected one line; give each key a --set of its own")
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text!r}: expected key=value, e.g. method.block_size=128")
    *sections, last = key.strip().split(".")
    place: Any = data
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise RecipeError(f"--set {text!r}: {section!r} is not a section")
    place[last] = _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # also a number of thousands of digits
        return text


def _tuples(value: Any) -> Any:
    """Lists as tuples, so that a validated recipe is immutable all the way down."""
    if isinstance(value, Mapping):
        return {key: _tuples(each) for key, each in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(each) for each in value)
    return value
