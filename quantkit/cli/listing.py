"""``quantkit checksums list|show|add``: what the registry knows, and an entry for a folder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import quantkit
from quantkit.cli.options import AsJson, Checksums
from quantkit.cli.session import session, settled


class _Group(TyperGroup):
    """``checksums OWNER/NAME`` shows that entry, as ``recipes NAME`` does."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and "/" in args[0] and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


class Status(StrEnum):
    current = "current"
    superseded = "superseded"
    withdrawn = "withdrawn"


class Kind(StrEnum):
    licence = "licence"
    corrupt_upload = "corrupt-upload"
    leak = "leak"
    relicensed = "relicensed"
    mistaken_upload = "mistaken-upload"
    replaced = "replaced"
    unstated = "unstated"


listing = typer.Typer(cls=_Group, invoke_without_command=True, rich_markup_mode=None)


@dataclass(frozen=True)
class _Before:
    """The options that stand before a subcommand: they count for it too."""

    folders: tuple[Path, ...]
    as_json: bool


@listing.callback()
def _default(context: typer.Context, folders: Checksums = None, as_json: AsJson = False) -> None:
    """List the releases that the registry knows, show one repository's, or add a folder's."""
    context.obj = _Before(tuple(folders or ()), as_json)
    if context.invoked_subcommand is None:
        _list(context)


@listing.command("list")
def _list(context: typer.Context, folders: Checksums = None, as_json: AsJson = False) -> None:
    """Every release, with its status and the reason."""
    before: _Before = context.obj
    with session(as_json=as_json or before.as_json) as display:
        display.registry(quantkit.checksums([*before.folders, *(folders or ())]), None)


@listing.command("show")
def _show(
    context: typer.Context,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Whose entry.")],
    folders: Checksums = None,
    as_json: AsJson = False,
) -> None:
    """One repository's entry, whole, as JSON."""
    before: _Before = context.obj
    with session(as_json=as_json or before.as_json) as display:
        display.registry(quantkit.checksums([*before.folders, *(folders or ())]), repository)


@listing.command("add")
def _add(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The checkpoint to describe.")],
    repository: Annotated[str, typer.Option("--repository", help="Whose it is: OWNER/NAME.")],
    status: Annotated[Status, typer.Option("--status", help="What its publisher says of it.")],
    stated_at: Annotated[str, typer.Option("--stated-at", help="The address where that stands.")],
    date: Annotated[str, typer.Option("--date", help="Of the release: YYYY-MM-DD.")] = "",
    revision: Annotated[str | None, typer.Option("--revision", help="Its commit.")] = None,
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="What kind of reason; not for a current one.")
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", help="Why, in a sentence; not for a current one.")
    ] = "",
    advice: Annotated[str, typer.Option("--advice", help="What to use instead.")] = "",
    licence: Annotated[str | None, typer.Option("--licence", help="Of the repository.")] = None,
    alias: Annotated[
        list[str] | None, typer.Option("--alias", help="Another name of it; may be repeated.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", help="Write to this .toml; an entry there gets the release."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Digest a checkpoint and print its entry as TOML, ready for a pull request."""
    from quantkit.checkpoint.shards import put_whole
    from quantkit.registering import check_request, describe_release, entry_text
    from quantkit.releases import parse_entry

    facts = {
        "date": date, "revision": revision, "status": status.value,
        "kind": kind.value if kind else None, "stated_at": stated_at,
        "reason": reason, "advice": advice,
    }  # fmt: skip
    before: _Before = context.obj
    with session(as_json=as_json or before.as_json) as display:
        asked = check_request(repository, facts, licence=licence, aliases=alias or (), into=into)
        release = describe_release(folder, facts, display.listener)
        text = entry_text(asked, release)
        if into is not None:
            put_whole(into, text)
            settled()
        display.entry(text, parse_entry(text, "the new entry"), into)
