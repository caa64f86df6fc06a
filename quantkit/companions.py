"""The small files beside the weights: config, generation defaults, tokenizer, licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from quantkit.errors import SourceError
from quantkit.plans import Plan
from quantkit.prompts import CHAT_TEMPLATE
from quantkit.source import COMPANION_FILES, TOKENIZER_FILES, Source, read_object
from quantkit.tokenization import make_files
from quantkit.tokenizer import SENTENCEPIECE_FILES


def write_companions(plan: Plan, source: Source, folder: Path) -> str:
    """Write them into ``folder``; returns how the tokenizer's files came about."""
    _write_json(folder / "config.json", plan.config)
    _write_json(folder / "generation_config.json", plan.generation)
    quantization = plan.config.get("quantization_config", {})
    if quantization.get("quant_method") == "gptq":  # AutoGPTQ and older GPTQModel look here
        _write_json(folder / "quantize_config.json", quantization)
    for name in source.present((*TOKENIZER_FILES, *COMPANION_FILES)):
        (folder / name).write_bytes((source.folder / name).read_bytes())
    route = _write_tokenizer(source, folder)
    if plan.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(plan.chat_template, encoding="utf-8")
    return route


def _write_tokenizer(source: Source, folder: Path) -> str:
    """A faithful tokenizer.json, where the source has a sentencepiece model and none of its own.

    A model that cannot be expressed keeps the source's files; the gate judges those.
    """
    models = source.present(SENTENCEPIECE_FILES)
    if not models or source.present(("tokenizer.json",)):
        return "copied from the source"
    config = read_object(source.folder / "tokenizer_config.json")
    try:
        files = make_files(source.folder / models[0], config)
    except SourceError as error:
        return f"copied from the source: {error}"
    files.write(folder)
    # it would override what tokenizer_config.json says
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    return f"built from {models[0]}; a default call gives: {files.adds}"


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
