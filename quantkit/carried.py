"""The small files beside the weights that an output carries on, by name."""

from __future__ import annotations

import re
from pathlib import Path

#: Files of a tokenizer. The first two are sentencepiece models.
TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "sentencepiece.bpe.model",
    "tekken.json",  # Mistral's own, for servers that are told to use it
    "chat_template.jinja",
    "spiece.vocab",
)

#: Other small files that a quantized repository carries on.
COMPANION_FILES = (
    *(f"{name}{end}" for name in ("LICENSE", "LICENCE") for end in ("", ".txt", ".md")),
    *("license", "license.txt", "license.md", "COPYING", "COPYING.txt"),
    *("NOTICE", "NOTICE.txt", "NOTICE.md", "USE_POLICY.md"),
)

#: Chat templates that a caller asks for by name lie in a folder of their own.
NAMED_TEMPLATES = "additional_chat_templates"

#: Other names stay behind: a stranger's may be a link on a card, or no Unicode at all.
_NAMED_TEMPLATE = re.compile(rf"{NAMED_TEMPLATES}/[A-Za-z0-9_-][A-Za-z0-9_.-]{{0,63}}\.jinja")


def is_carried(name: str) -> bool:
    """Whether an output carries on a file of this name."""
    return name in (*TOKENIZER_FILES, *COMPANION_FILES) or bool(_NAMED_TEMPLATE.fullmatch(name))


def carried_files(folder: Path) -> tuple[str, ...]:
    """Those that ``folder`` holds."""
    names = (*TOKENIZER_FILES, *COMPANION_FILES, *named_templates(folder))
    return tuple(name for name in names if is_carried(name) and (folder / name).is_file())


def named_templates(folder: Path) -> list[str]:
    """The names of all templates that a caller may ask for, ``additional_chat_templates/NAME``."""
    place = folder / NAMED_TEMPLATES
    if place.is_symlink():  # it may lead out of the folder
        return []
    return sorted(f"{NAMED_TEMPLATES}/{each.name}" for each in place.glob("*.jinja"))
