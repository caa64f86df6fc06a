"""The small files beside the weights: config, generation defaults, tokenizer, licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from quantkit.carried import carried_files
from quantkit.errors import SourceError
from quantkit.plans import Plan
from quantkit.prompts import CHAT_TEMPLATE
from quantkit.source import Source, read_object
from quantkit.tokenization import make_files
from quantkit.tokenizer import keeps_piece_ids, sentencepiece_file


def write_companions(plan: Plan, source: Source, folder: Path) -> str:
    """Write them into ``folder``; returns how the tokenizer's files came about."""
    _write_json(folder / "config.json", plan.config)
    _write_json(folder / "generation_config.json", plan.generation)
    quantization = plan.config.get("quantization_config", {})
    if quantization.get("quant_method") == "gptq":  # AutoGPTQ and older GPTQModel look here
        _write_json(folder / "quantize_config.json", quantization)
    for name in carried_files(source.folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((source.folder / name).read_bytes())
    split = plan.split_special_tokens
    route = _write_tokenizer(source, folder, split_special_tokens=split)
    if plan.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(plan.chat_template, encoding="utf-8")
    return route


def _write_tokenizer(source: Source, folder: Path, *, split_special_tokens: bool) -> str:
    """Write a faithful tokenizer.json where the source has a sentencepiece model, even over one
    that the source brings, which may encode otherwise.

    A model that cannot be expressed keeps the source's files; the gate judges those.
    """
    path = sentencepiece_file(source.folder)
    if path is None:
        return "copied from the source"
    config = read_object(source.folder / "tokenizer_config.json")
    try:
        if not keeps_piece_ids(path):
            return f"copied from the source: its class gives other ids than {path.name}"
        files = make_files(path, config, split_special_tokens=split_special_tokens)
    except SourceError as error:
        return f"copied from the source: {error}"
    files.write(folder)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        # they would override what tokenizer_config.json says
        (folder / name).unlink(missing_ok=True)
    kept = f"; with its added tokens {' '.join(files.keeps)}" if files.keeps else ""
    return f"built from {path.name}{kept}; a default call gives: {files.adds}"


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
