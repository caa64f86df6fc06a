"""A folder's entry for the registry: its digests and its fingerprint, as TOML to send in."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit.checkpoint.stream import stream_checkpoint
from quantkit.digests import digest_file
from quantkit.errors import UsageError
from quantkit.releases import Entry, parse_entry
from quantkit.source import Source, open_source
from quantkit.types import Event, FileDigest, Listener, silent
from quantkit.verification import small_files


def describe_release(
    folder: str | Path, facts: Mapping[str, Any], listener: Listener = silent
) -> dict[str, Any]:
    """A release as the schema has it: ``facts`` (status, date, ...) and what is measured."""
    source = open_source(folder, None, listener)
    files, found = _digest(source, listener)
    return {
        **{key: value for key, value in facts.items() if value not in (None, "", ())},
        "fingerprint": found,
        "files": [
            {"name": f.name, "bytes": f.bytes, "sha256": f.sha256}
            | ({"md5": f.md5} if f.md5 else {})
            for f in files
        ],
    }


def _digest(source: Source, listener: Listener) -> tuple[list[FileDigest], dict[str, str]]:
    """Both digests of the weights, SHA-256 of the rest, and the fingerprint."""
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        listener(Event("verify", done, source.weight_bytes))

    weights = stream_checkpoint(
        source.folder, source.checkpoint, md5=lambda name, size: True, progress=tell
    )
    small = [digest_file(source.folder / each) for each in small_files(source)]
    # an empty file is everybody's
    return [*weights.files, *(each for each in small if each.bytes)], asdict(weights.fingerprint)


def read_existing(path: Path | None) -> str:
    """The entry that is to get one more release; empty where there is none yet.

    Raises:
        UsageError: it cannot be read.
    """
    if path is None or not path.exists():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"checksums {path}: cannot be read as TOML: {error}") from error


def entry_text(
    repository: str,
    release: Mapping[str, Any],
    *,
    licence: str | None = None,
    aliases: Sequence[str] = (),
    existing: str = "",
) -> str:
    """The entry as TOML: a new one, or ``existing`` with one more release.

    Raises:
        UsageError: it does not hold to the schema, or ``existing`` is another repository's.
    """
    if existing:
        known = parse_entry(existing, "the existing entry")
        if not known.named(repository):
            raise UsageError(
                f"the existing entry is of {known.repository}, not of {repository}; choose "
                "another --into"
            )
        text = existing.rstrip() + "\n\n"
    else:
        text = "\n".join(_head(repository, licence, aliases)) + "\n\n"
    text += "\n".join(_release(release)) + "\n"
    parse_entry(text, "the new entry")
    return text


def as_entry(text: str) -> Entry:
    """The entry that a text of :func:`entry_text` describes."""
    return Entry.model_validate(tomllib.loads(text))


def _head(repository: str, licence: str | None, aliases: Sequence[str]) -> Iterator[str]:
    yield f"repository = {_string(repository)}"
    if aliases:
        yield f"aliases = [{', '.join(map(_string, aliases))}]"
    if licence:
        yield f"licence = {_string(licence)}"


def _release(release: Mapping[str, Any]) -> Iterator[str]:
    yield "[[releases]]"
    for key, value in release.items():
        if isinstance(value, str):
            yield f"{key} = {_string(value)}"
    yield ""
    yield "[releases.fingerprint]"
    yield from (f"{key} = {_string(value)}" for key, value in release["fingerprint"].items())
    for file in release["files"]:
        yield ""
        yield "[[releases.files]]"
        for key, value in file.items():
            yield f"{key} = {_string(value) if isinstance(value, str) else value}"


def _string(value: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's."""
    return json.dumps(value, ensure_ascii=False)
