"""What a stranger's small files may ask for, before a library acts on them.

Libraries take a config at its word: a billion layers are built, a billion labels become
a dict, a template reaches for Python's own insides. The limits here are far beyond any
model that exists, and far below what a machine can be made to suffer.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint.names import quoted
from quantkit.checkpoint.reading import leads_out
from quantkit.errors import SourceError
from quantkit.rendering import misbehaviour

#: The longest small file that is read whole: a tokenizer.json of 250,000 pieces takes 35 MB.
MAX_SMALL_BYTES = 128 << 20

#: The longest card of a source: it stands in the manifest, and folded in the new card.
MAX_CARD_BYTES = 4 << 20

#: Keys that count things which each cost time and memory to build, and how many are too many.
#: Sizes come first: LFM2's ``block_ff_dim`` is no number of blocks.
_COUNTS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"vocab|size|dim|n_embd|n_inner|width|rank", re.IGNORECASE), 1 << 26),
    (re.compile(r"layer|block|depth|stage", re.IGNORECASE), 1024),
    (re.compile(r"expert|head|beam|group|label|codebook|channel", re.IGNORECASE), 1 << 16),
    (re.compile(r"position|n_ctx|seq|window|length", re.IGNORECASE), 1 << 28),
)

#: The most that any other whole number of a config may be, except those that count no things.
_MAX_NUMBER = 1 << 31
_NO_NUMBER_OF_THINGS = re.compile(r"theta|seed|base|scale|factor", re.IGNORECASE)

_MAX_DEPTH = 32

#: How transformers is told which attention, or which experts, to compute with.
_IMPLEMENTATION = re.compile(r"_implementation(_internal)?$")

#: Names the file that transformers loads, whatever else lies there.
_OTHER_WEIGHTS = "transformers_weights"

#: By these transformers reads another file in place of config.json or tokenizer.json, one for
#: each of its versions.
_OTHER_CONFIGS, _OTHER_TOKENIZERS = "configuration_files", "fast_tokenizer_files"

#: Characters of a chat template; bytes of its file.
MAX_TEMPLATE = 1 << 20

#: Each is rendered in a process of its own; a model has three.
MOST_TEMPLATES = 16

#: How templates reach for what is behind the values they are given.
_INSIDES = re.compile(r"__\w+__|\b(mro|gi_frame|cr_frame|func_globals|f_globals|tb_frame)\b")


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse sizes that no model has, before transformers allocates them, and code on the Hub.

    Raises:
        SourceError: a number is absurd, or the nesting is; a kernel is to be fetched and run;
            other weights, or another config, than those of the usual names are meant.
    """
    _refuse_versions(config, _OTHER_CONFIGS, where)
    for key, value, depth in _walk(config):
        if key == _OTHER_WEIGHTS and value is not None:
            raise SourceError(
                f"{where}: {quoted(key)}: transformers would load {quoted(str(value))} in place of "
                "the weights that everyone else reads; take the key out of the file"
            )
        if _IMPLEMENTATION.search(key) and (named := _kernel(value)):
            raise SourceError(
                f"{where}: {quoted(key)}: {quoted(named)} names code on the Hub, which "
                "transformers would fetch and run; quantkit runs no code from a repository: take "
                "it out of the file"
            )
        if depth > _MAX_DEPTH:
            raise SourceError(
                f"{where}: expected at most {_MAX_DEPTH} levels of nesting, got more; "
                "do not trust this file"
            )
        if type(value) is int and abs(value) > (limit := _limit(key)):
            raise SourceError(
                f"{where}: {quoted(key)}: expected at most {limit:,}, got {_shown(value)}; no "
                "model is of this size, do not trust this file"
            )


def _refuse_versions(found: Mapping[str, Any], key: str, where: str) -> None:
    """What is looked at here, and what everyone else reads, would not be what transformers does."""
    if key in found:
        raise SourceError(
            f"{where}: {quoted(key)}: by it transformers reads another file in place of the usual "
            "one, which everyone else reads; take the key out of the file"
        )


def _kernel(value: object) -> str | None:
    """A repository named in ``attn_implementation`` and the like: a text, or one a submodel."""
    texts = (each for _, each, depth in _walk(value) if depth <= _MAX_DEPTH)
    return next((each for each in texts if isinstance(each, str) and re.search("[/:]", each)), None)


def _walk(value: object) -> Iterator[tuple[str, object, int]]:
    """Every key and value, however deep; without recursion."""
    waiting: list[tuple[str, object, int]] = [("", value, 0)]
    while waiting:
        key, found, depth = waiting.pop()
        yield key, found, depth
        if depth > _MAX_DEPTH:
            continue
        if isinstance(found, Mapping):
            waiting += [(str(name), each, depth + 1) for name, each in found.items()]
        elif isinstance(found, list):
            waiting += [(key, each, depth + 1) for each in found]


def _limit(key: str) -> int:
    if _NO_NUMBER_OF_THINGS.search(key):
        return 1 << 63
    return next((limit for pattern, limit in _COUNTS if pattern.search(key)), _MAX_NUMBER)


def _shown(value: int) -> str:
    return f"{value:,}" if abs(value) < 1 << 64 else f"a number of {value.bit_length()} bits"


def check_tokenizer_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse a tokenizer that needs code of its own, and templates that are no templates.

    Raises:
        SourceError: it names code, or another tokenizer.json, or a template of it is unfit.
    """
    _refuse_versions(config, _OTHER_TOKENIZERS, where)
    if "auto_map" in config:
        raise SourceError(
            f"{where}: auto_map points to code in the repository, and quantkit neither runs it nor "
            "passes it on; start from a repository whose tokenizer needs none"
        )
    found = config.get("chat_template")
    named = found if isinstance(found, list) else [{"name": "default", "template": found}]
    if len(named) > MOST_TEMPLATES:
        raise SourceError(
            f"{where}: chat_template: expected at most {MOST_TEMPLATES} templates, got "
            f"{len(named)}; do not trust this file"
        )
    for each in named:
        text = each.get("template") if isinstance(each, Mapping) else None
        if text is not None:
            check_template(text, f"{where}: chat_template")


def check_template(text: object, where: str) -> None:
    """Refuse a chat template that is no Jinja, reaches for Python's insides, or never ends.

    It is rendered only where nothing can come of it: :mod:`quantkit.rendering`.

    Raises:
        SourceError: it is refused.
    """
    if not isinstance(text, str) or len(text) > MAX_TEMPLATE:
        raise SourceError(f"{where}: expected a text of at most {MAX_TEMPLATE} characters")
    if found := _INSIDES.search(text):
        raise SourceError(
            f"{where}: reaches for {quoted(found[0])}, which no chat template needs; nothing was "
            "run: do not use this repository"
        )
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # without the tags that transformers adds
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text)
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except TemplateSyntaxError as error:
        raise SourceError(
            f"{where}: not a Jinja template: line {error.lineno}: {(error.message or '')[:100]}"
        ) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise SourceError(f"{where}: not a Jinja template: {str(error)[:100]}") from None
    except RecursionError:
        raise SourceError(f"{where}: nested too deeply") from None
    if found_out := misbehaviour(plain):
        raise SourceError(f"{where}: {found_out}; do not use this repository")


def check_small_file(path: Path, most: int = MAX_SMALL_BYTES) -> None:
    """Refuse what is no plain file of sensible size, or a link that leaves its folder.

    Raises:
        SourceError: it is refused.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{path}: expected a regular file, got {stat.filemode(found.st_mode)}")
    if found.st_size > most:
        raise SourceError(
            f"{path}: expected at most {most:,} bytes, got {found.st_size:,}; no such file of a "
            "model is so large: remove it, or make it smaller"
        )
    if leads_out(path):
        raise SourceError(
            f"{path}: a link that leaves the folder, to {quoted(os.path.realpath(path))}; what it "
            "points to would be published: put the file itself there"
        )
