"""Random fp16 GPT-NeoX models of several sizes, made once and kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 256, "num_hidden_layers": 2, "vocab_size": 4096},
    "267M, 4 of its 16 layers": {"hidden_size": 1024, "num_hidden_layers": 4, "vocab_size": 32000},
    "267M": {"hidden_size": 1024, "num_hidden_layers": 16, "vocab_size": 32000},
    "1.1B": {"hidden_size": 2048, "num_hidden_layers": 18, "vocab_size": 50432},
    # rinna's 3.6B and bilingual 4B: with the masks that their files hold, the latter in shards
    "3.6B": {"hidden_size": 2816, "num_hidden_layers": 36, "vocab_size": 32000, "mask": "uint8"},
    "3.8B": {"hidden_size": 2816, "num_hidden_layers": 36, "vocab_size": 65536, "mask": "bool",
             "shards": 5},
}  # fmt: skip


def make_model(work: Path, size: str, container: str, tokenizer: Path | None = None) -> Path:
    """A random fp16 GPT-NeoX under its old names, written tensor by tensor."""
    source = make_source(model_folder(work, size, container), SIZES[size], container)
    return with_tokenizer(source, tokenizer) if tokenizer else source


def model_folder(work: Path, size: str, container: str) -> Path:
    return work / f"{size}-{container}".replace(" ", "-")


def make_source(folder: Path, size: dict[str, Any], container: str) -> Path:
    """One of ``size`` in ``folder``, unless it is there."""
    if (folder / "done").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import random_neox as r; " + (
        f"r.write({str(folder)!r}, {json.dumps(size)}, {container!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    (folder / "done").touch()
    return folder


def with_tokenizer(source: Path, tokenizer: Path) -> Path:
    """The same weights, linked, beside a sentencepiece model and its config."""
    folder = source.with_name(f"{source.name}-{tokenizer.name}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, copy_function=os.link)
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder
