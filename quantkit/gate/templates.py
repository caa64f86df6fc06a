"""The chat templates of a folder: fit to be rendered, and the source's.

A template decides what the model is asked. transformers takes ``chat_template.jinja`` and
``additional_chat_templates/`` in place of all that tokenizer_config.json says; older loaders
and other servers read the latter. So both places are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from quantkit.carried import NAMED_TEMPLATES
from quantkit.checkpoint.names import quoted
from quantkit.errors import SourceError
from quantkit.gate.claims import Claim
from quantkit.gate.report import Failure
from quantkit.prompts import CHAT_TEMPLATE
from quantkit.scrutiny import MAX_TEMPLATE, MOST_TEMPLATES, check_template, check_tokenizer_config
from quantkit.source import read_object, read_text

MEASURE = "chat template"

_CONFIG = "tokenizer_config.json"
_DEFAULT = "default"

#: Letters shown before the first that differs.
_BEFORE = 16


@dataclass(frozen=True)
class Templates:
    """A folder's templates by name: those that transformers uses, and those that stand in
    tokenizer_config.json ``beside`` them for others to read. ``where`` names the files used."""

    used: Mapping[str, str]
    beside: Mapping[str, str]
    where: Mapping[str, str]


def unfit_templates(folder: Path) -> Iterator[Failure]:
    """Chat templates that no library should render, and a tokenizer that needs code."""
    further = _further(folder)
    if len(further) > MOST_TEMPLATES:
        yield Failure("structure", NAMED_TEMPLATES, str(len(further)), f"at most {MOST_TEMPLATES}")
    for path in filter(Path.is_file, [folder / CHAT_TEMPLATE, *further[:MOST_TEMPLATES]]):
        if (size := path.stat().st_size) > MAX_TEMPLATE:
            yield Failure("structure", path.name, f"{size:,} bytes", f"at most {MAX_TEMPLATE:,}")
            continue
        try:
            check_template(read_text(path), path.name)
        except SourceError as error:
            yield Failure("structure", path.name, str(error), "a template")
    try:
        check_tokenizer_config(read_object(folder / _CONFIG), _CONFIG)
    except SourceError as error:
        yield Failure("structure", _CONFIG, str(error), "templates and no code")


def compare_templates(
    folder: Path, source: Path, known: Sequence[Claim]
) -> tuple[list[Failure], list[str]]:
    """Failures for templates that prompt the model otherwise than the source's, and remarks.

    Where the source has none at all, a template is a remark: there is nothing to differ from.
    ``known`` are the forms that a recipe has written.
    """
    here, there = _templates(folder), _templates(source)
    recipes = {_plain(each.template): each.by for each in known if each.template is not None}
    failures, remarks = [], []
    for name, text in here.used.items():
        wanted = there.used.get(name)
        if text == wanted:
            continue
        if name == _DEFAULT and text in recipes:
            if recipes[text]:
                remarks.append(f"{MEASURE}: the prompt form of {recipes[text]}")
        elif not there.used:
            remarks.append(
                f"{MEASURE}: {here.where[name]} is there, and the source has none; it forms the "
                f"prompt of whoever sends messages: {quoted(text)}"
            )
        else:
            failures.append(_other(text, wanted, here.where[name]))
    failures += _unlike_beside(here, there)
    for name in sorted(there.used.keys() - here.used.keys()):
        if name == _DEFAULT:
            failures.append(Failure("structure", MEASURE, "missing", "the source's", name))
        else:  # a call that names it fails, and says so
            remarks.append(f"{MEASURE}: the source's {quoted(name)} is missing")
    return failures, remarks


def _unlike_beside(here: Templates, there: Templates) -> Iterator[Failure]:
    """What others read in tokenizer_config.json, where the source has such a template."""
    for name, text in here.beside.items():
        allowed = [each for each in (there.used.get(name), there.beside.get(name)) if each]
        if allowed and text not in (*allowed, here.used.get(name)):
            yield _other(text, allowed[0], f"{_CONFIG}, which older loaders read")


def _other(text: str, wanted: str | None, where: str) -> Failure:
    if wanted is None:
        return Failure("structure", MEASURE, quoted(text), "none, as in the source", where)
    lines = list(zip_longest(text.split("\n"), wanted.split("\n")))
    at = next(at for at, (got, line) in enumerate(lines) if got != line)
    got, line = lines[at]
    value = f"line {at + 1}: {_excerpt(got, line)}"
    return Failure("structure", MEASURE, value, f"the source's {_excerpt(line, got)}", where)


def _excerpt(line: str | None, other: str | None) -> str:
    """A line from shortly before it differs from the ``other``."""
    if line is None:
        return "no such line"
    pairs = zip(line, other or "", strict=False)
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(line), len(other or "")))
    return quoted(line[max(0, same - _BEFORE) :])


def _templates(folder: Path) -> Templates:
    try:
        named = _in_config(read_object(folder / _CONFIG).get("chat_template"))
    except SourceError:  # which is said already
        named = {}
    files = {path.stem: path for path in _further(folder)}
    if (folder / CHAT_TEMPLATE).is_file():
        files = {_DEFAULT: folder / CHAT_TEMPLATE, **files}
    if not files:
        return Templates(named, {}, dict.fromkeys(named, _CONFIG))
    # one that is too long is a finding already
    files = {name: path for name, path in files.items() if path.stat().st_size <= MAX_TEMPLATE}
    used = {name: _plain(read_text(path)) for name, path in files.items()}
    return Templates(used, named, {name: path.name for name, path in files.items()})


def _in_config(found: Any) -> dict[str, str]:
    """One text, or a list of names and texts."""
    listed = found if isinstance(found, list) else [{"name": _DEFAULT, "template": found}]
    pairs = (
        (each.get("name"), each.get("template")) for each in listed if isinstance(each, Mapping)
    )
    return {
        name: _plain(text) for name, text in pairs if isinstance(name, str) and type(text) is str
    }


def _plain(text: str) -> str:
    """A template without what Jinja does not see: how lines end, and the end of the last."""
    return text.replace("\r\n", "\n").removesuffix("\n")


def _further(folder: Path) -> list[Path]:
    return sorted(filter(Path.is_file, (folder / NAMED_TEMPLATES).glob("*.jinja")))
