"""``check``: the gate alone, on any quantized folder, whoever made it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantkit.checkpoint import open_checkpoint
from quantkit.devices import Device, choose_device
from quantkit.errors import CheckpointError, SourceError, UsageError, printable
from quantkit.evaluation import Texts, read_material
from quantkit.fetching import fetch_folder
from quantkit.gate import gate_folder, report_json
from quantkit.gate.decoding import DECODERS
from quantkit.given import expanded, paths_of, refuse_name
from quantkit.lookalikes import in_place_of_checkpoint, in_place_of_folder, names_in
from quantkit.recipe import Recipe, load_recipe, overrides_of
from quantkit.report import write_report
from quantkit.resources import shipped_folder
from quantkit.source import (
    Source,
    is_hub_id,
    open_source,
    quantization_method,
    quantization_settings,
    read_object,
)
from quantkit.staging import MANIFEST
from quantkit.types import AnyPath, Listener, silent
from quantkit.verb import verb
from quantkit.verification import prove

#: Thresholds for formats without a recipe of ours, by bits: docs/gate.md has the measurements.
_LIMITS: Mapping[int, tuple[str, ...]] = {
    2: ("max_perplexity_ratio=3.0", "max_kl_mean=1.5", "min_top1_agreement=0.5",
        "max_weight_error=0.9", "min_generation_agreement=0.4"),
    3: ("max_perplexity_ratio=1.5", "max_kl_mean=0.5", "min_top1_agreement=0.65",
        "max_weight_error=0.5", "min_generation_agreement=0.5"),
    4: ("max_perplexity_ratio=1.15", "max_kl_mean=0.15", "min_top1_agreement=0.8",
        "max_weight_error=0.25", "min_generation_agreement=0.7"),
    8: ("max_perplexity_ratio=1.02", "max_kl_mean=0.02", "min_top1_agreement=0.93",
        "max_weight_error=0.03", "min_generation_agreement=0.85"),
}  # fmt: skip

#: Beyond it nothing is said twice, and a number of hundreds of digits is no float.
_MOST_PENALTY = 1e6

#: What stands beside a report of ``check``, since a folder of others has no manifest of ours.
_RECORD = "check.json"


@verb
def check(
    dir: AnyPath,
    against: AnyPath,
    *,
    recipe: AnyPath | None = None,
    revision: str | None = None,
    device: Device = "auto",
    text: Texts = None,
    report: AnyPath | None = None,
    set: str | Iterable[str] = (),
    listener: Listener = silent,
) -> dict[str, Any]:
    """Judge the quantized folder ``dir`` against the checkpoint ``against``.

    Thresholds, prompts and settings are the recipe's; without one they are those of the
    folder's own format. ``revision`` is of ``against``. Nothing is written, unless a folder
    ``report`` is named: it gets ``report/report.html``, its plots, and all of this as JSON.

    Raises:
        UsageError: no such folder.
        SourceError: the source or the folder cannot be read.
    """
    folder = quantized_folder(dir, listener)
    if report is not None:
        _make_room(expanded(report), folder, expanded(against))
    source = prove(open_source(against, revision, listener), listener)
    chosen = load_recipe(recipe, set) if recipe is not None else recipe_for(folder, source, set)
    material = read_material(source.folder, chosen, paths_of(text), source.config.get("vocab_size"))
    judged = gate_folder(folder, source, chosen, material, choose_device(device), listener)
    found = {
        "kind": "check",
        "path": str(folder),
        "against": source.given,
        "format": format_name(folder),
        "recipe": chosen.name,
        "thresholds": chosen.gate.model_dump(mode="json"),
        "sizes": {
            "source_bytes": source.weight_bytes,
            "output_bytes": weight_bytes(folder),
        },
        "gate": report_json(judged),
    }
    if report is not None:
        _write_report(found, source, chosen, expanded(report))
    return found


def _make_room(place: Path, *taken: Path) -> None:
    """See that a report can be written into ``place``, before minutes of judging."""
    if (place / MANIFEST).exists() or place.resolve() in [each.resolve() for each in taken]:
        raise UsageError(
            f"report {place}: a folder with a model, which is left as it is; choose another"
        )
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"report {place}: cannot be made: {error.strerror}") from error


def _write_report(found: Mapping[str, Any], source: Source, recipe: Recipe, place: Path) -> None:
    shown = {
        **found,
        "tool": {"name": "quantkit", "version": version("quantkit")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": {"name": source.repo_id or source.given, "status": "not verified by check"},
        "recipe": recipe.model_dump(mode="json")
        | {"summary": f"{found['format']}, {Path(found['path']).name}"},
        "conversion": {"modules": []},
        "record": _RECORD,
    }
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    try:
        write_report(shown, place, more={_RECORD: text.encode("utf-8")})
    except OSError as error:
        raise UsageError(f"report {place}: cannot be written: {error.strerror}") from error


def quantized_folder(given: AnyPath, listener: Listener = silent) -> Path:
    """``given`` as a folder with a config; a Hub id is downloaded, and proven, first.

    Raises:
        UsageError: it is none, or by a name that no library can be given.
        SourceError: the Hub does not give it.
    """
    if is_hub_id(given):
        given = fetch_folder(str(given), None, listener).folder
    folder = expanded(given)
    refuse_name(folder, f"folder {printable(str(given))}")
    if not folder.is_dir():
        raise UsageError(f"folder {folder}: {in_place_of_folder(folder)}")
    if not (folder / "config.json").is_file():
        raise UsageError(f"folder {folder}: {in_place_of_checkpoint(names_in(folder))}")
    return folder


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files that a loader reads; of all there are where it cannot be read."""
    try:
        return sum(open_checkpoint(folder).file_bytes.values())
    except CheckpointError:
        found = (path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
        return sum(path.stat().st_size for path in found if path.is_file())


def format_name(folder: Path) -> str:
    """A folder's format in a word or two, e.g. ``bnb nf4`` or ``gptq 4bit g128``."""
    config = read_object(folder / "config.json")
    settings = quantization_settings(config, folder / "config.json")
    method = str(quantization_method(settings) or "plain")
    if method == "bitsandbytes":
        if settings.get("load_in_8bit"):
            return "bnb int8"
        double = " double" if settings.get("bnb_4bit_use_double_quant") else ""
        return f"bnb {settings.get('bnb_4bit_quant_type', 'fp4')}{double}"
    if method == "plain":
        return f"plain {config.get('dtype') or config.get('torch_dtype') or ''}".rstrip()
    if method not in DECODERS:
        return method
    # a stranger's text, or null, is no part of a name
    bits, size = (each if type(each) is int else "?" for each in DECODERS[method].grid(settings))
    return f"{method} {bits}bit g{size}"


def recipe_for(folder: Path, source: Source, overrides: str | Iterable[str] = ()) -> Recipe:
    """A recipe that judges a folder of this format: ours where there is one.

    The repetition penalty is the source's own where its generation defaults name one.
    """
    settings = quantization_settings(read_object(folder / "config.json"), folder / "config.json")
    penalty = source.generation.get("repetition_penalty")
    more = []
    if isinstance(penalty, int | float) and penalty is not True and 0 < penalty < _MOST_PENALTY:
        more = [f"generation.repetition_penalty={float(penalty)}"]
    more += overrides_of(overrides)
    name = format_name(folder)
    known = "-".join(name.split())
    ours = {path.stem for path in shipped_folder("recipes").glob("*.toml")}
    # fp4 has no recipe of its own for double quantization, and 8 bits have one group size alone
    for each in (known, known.removesuffix("-double"), known.removesuffix("-g128")):
        if each in ours:
            return load_recipe(each, more)
    method = quantization_method(settings)
    if method not in DECODERS:
        kept = "bf16" if name == "plain bfloat16" else "fp16"
        return load_recipe(kept, more)
    bits, _ = DECODERS[method].grid(settings)
    if type(bits) is not int or bits not in _LIMITS:
        raise SourceError(
            f"{folder}/config.json: quantization_config: bits: expected one of "
            f"{', '.join(map(str, _LIMITS))}, got {bits!r}; fetch it again, or give a recipe "
            "(--recipe) where this is right"
        )
    limits = [f"gate.{each}" for each in _LIMITS[bits]]
    named = f'name="{name}"'
    return load_recipe("fp16", [named, *limits, *more])
