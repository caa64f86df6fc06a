"""A folder's entry for the registry: its digests and its fingerprint, as TOML to send in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from quantkit.checkpoint.stream import stream_checkpoint
from quantkit.digests import digest_file
from quantkit.errors import UsageError, printable
from quantkit.given import read_given_text
from quantkit.hub import HUB_ID
from quantkit.releases import Entry, Release, parse_entry
from quantkit.source import Source, open_source
from quantkit.types import AnyPath, FileDigest, Fingerprint, Listener, counted, silent
from quantkit.verification import small_files


def describe_release(
    folder: AnyPath, facts: Mapping[str, Any], listener: Listener = silent
) -> dict[str, Any]:
    """A release as the schema has it: ``facts`` (status, date, ...) and what is measured."""
    source = open_source(folder, None, listener)
    files, found = _digest(source, listener)
    return {
        **_stated(facts),
        "fingerprint": found,
        "files": [
            {"name": f.name, "bytes": f.bytes, "sha256": f.sha256}
            | ({"md5": f.md5} if f.md5 else {})
            for f in files
        ],
    }


def _stated(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value not in (None, "", ())}


def _digest(source: Source, listener: Listener) -> tuple[list[FileDigest], dict[str, str]]:
    """Both digests of the weights, SHA-256 of the rest, and the fingerprint."""
    tell = counted(listener, "verify", source.weight_bytes)
    weights = stream_checkpoint(
        source.folder, source.checkpoint, md5=lambda name, size: True, progress=tell
    )
    small = [digest_file(source.folder / each, each) for each in small_files(source)]
    # an empty file is everybody's
    return [*weights.files, *(each for each in small if each.bytes)], asdict(weights.fingerprint)


@dataclass(frozen=True)
class Request:
    """What is to be stated, ``into`` which file, and the text of the ``existing`` entry in it;
    empty for a new one."""

    repository: str
    licence: str | None
    aliases: tuple[str, ...]
    into: Path | None
    existing: str

    @property
    def known(self) -> Entry | None:
        return parse_entry(self.existing, "the existing entry") if self.existing else None


def check_request(
    repository: str,
    facts: Mapping[str, Any],
    *,
    licence: str | None = None,
    aliases: Sequence[str] = (),
    into: Path | None = None,
) -> Request:
    """See that an entry can be made of it, before gigabytes are digested.

    Raises:
        UsageError: a name, a date, a reason or a place will not do, or the entry that is there is
            another repository's.
    """
    for option, name in (("repository", repository), *(("alias", each) for each in aliases)):
        if not HUB_ID.fullmatch(name):
            raise UsageError(f"--{option} {printable(name)}: expected OWNER/NAME")
    for option, said in (("licence", licence), *facts.items()):
        _refuse_broken(f"--{option.replace('_', '-')}", said)
    _check_facts(facts)
    asked = _with_existing(Request(repository, licence, tuple(aliases), into, ""))
    # what is measured later holds to the schema; what was given is seen by a stand-in
    measured = {"fingerprint": {}, "files": [{"name": "weights", "sha256": "0" * 64}]}
    parse_entry(_text(asked, {**_stated(facts), **measured}), "the new entry")
    return asked


def _refuse_broken(option: str, said: str | None) -> None:
    """Refuse an option's value whose bytes were no UTF-8."""
    try:
        (said or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{option} {printable(said or '')}: not UTF-8; write it anew") from error


def _check_facts(facts: Mapping[str, Any]) -> None:
    withdrawn = facts["status"] == "withdrawn"
    for name in ("kind", "reason"):
        if withdrawn and not facts[name]:
            raise UsageError(f"--status withdrawn: needs --{name}: why it was withdrawn; state it")
    # a superseded release may have been replaced for a reason; a current one stands
    if facts["status"] == "current" and (given := [n for n in ("kind", "reason") if facts[n]]):
        raise UsageError(
            f"--{given[0]} {printable(str(facts[given[0]]))}: says why a release was withdrawn or "
            "replaced; drop it, or correct --status current"
        )
    stated = facts["date"]
    try:
        if stated:
            date.fromisoformat(f"{stated}{'-01-01'[len(stated) - 4 :]}")  # completes 2024, 2024-05
    except ValueError as error:
        raise UsageError(
            f"--date {printable(stated)}: expected a date, YYYY-MM-DD ({error})"
        ) from error


def _with_existing(asked: Request) -> Request:
    """The same, beside what is in its file by now."""
    asked = replace(asked, existing=_read_existing(asked.into))
    if asked.known is not None:
        _check_existing(asked, asked.known)
    return asked


def _read_existing(path: Path | None) -> str:
    """The entry that is to get one more release; empty where there is none yet."""
    if path is None:
        return ""
    if path.suffix != ".toml" or not path.parent.is_dir():
        said = f"no folder {path.parent}" if path.suffix == ".toml" else "a registry reads *.toml"
        raise UsageError(f"--into {path}: {said}; give a .toml in a folder that is there")
    return read_given_text(path, f"--into {path}") if os.path.lexists(path) else ""


def _check_existing(asked: Request, known: Entry) -> None:
    if not known.named(asked.repository):
        raise UsageError(
            f"the existing entry is of {known.repository}, not of {asked.repository}; choose "
            "another --into"
        )
    others = [each for each in asked.aliases if not known.named(each)]
    if others or asked.licence not in (None, known.licence):
        what = f"--alias {others[0]}" if others else f"--licence {asked.licence}"
        raise UsageError(
            f"{what}: {asked.into} does not say so, and only a release is added to an entry that "
            "is there; write it at its head, or drop the option"
        )


def entry_text(asked: Request, release: Mapping[str, Any]) -> str:
    """The entry as TOML: a new one, or the existing one with one more release.

    Its file is read anew: digesting takes minutes, and another release may have got in.

    Raises:
        UsageError: it does not hold to the schema, or another release of it says otherwise.
    """
    text = _text(_with_existing(asked), release)
    *others, added = parse_entry(text, "the new entry").releases
    files = [FileDigest(**each, is_weight="md5" in each) for each in release["files"]]
    _check_consistent(others, added, files, Fingerprint(**release["fingerprint"]))
    return text


def _text(asked: Request, release: Mapping[str, Any]) -> str:
    if asked.existing:
        text = asked.existing.rstrip()
    else:
        text = "\n".join(_head(asked.repository, asked.licence, asked.aliases))
    return f"{text}\n\n" + "\n".join(_release(release)) + "\n"


def _check_consistent(
    others: Sequence[Release], added: Release, files: Sequence[FileDigest], found: Fingerprint
) -> None:
    """No release is listed twice, nor one as withdrawn and in good standing.

    Weights that a release in good standing lists too tell nothing of a withdrawn one, so
    that the registry spares them (:func:`quantkit.registry.Registry.judge`): whichever of the
    two came second, the withdrawal would no longer be seen. What was withdrawn may come back
    with another tokenizer, say: then it is another release, whatever its weights.
    """
    weights = [each for each in files if each.is_weight]
    for each in others:
        if each == added:
            raise UsageError(
                f"the existing entry has this release of {added.label} already; nothing to add"
            )
        contrary = (added.status == "withdrawn") != (each.status == "withdrawn")
        listed = all(any(one.matches(file) for one in each.files) for file in weights)
        by_tensors = each.fingerprint is not None and each.fingerprint.match(found) == "tensors"
        # nothing of a withdrawn one is another file by now
        whole = all(any(one.matches(file) for file in files) for one in each.files)
        if contrary and (listed or by_tensors) and (added.status == "withdrawn" or whole):
            raise UsageError(
                f"the existing entry lists these weights as the {each.status} release of "
                f"{each.label}, and a release in good standing is found first: change the status "
                "of that release in the file"
            )


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
