"""The verb ``publish``, and how it asks before anything leaves this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import quantkit
from quantkit.cli.options import AsJson, Checksums
from quantkit.cli.session import session
from quantkit.errors import UsageError


def publish(
    dir: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that 'convert' made.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the Hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="For all to see; otherwise private.")
    ] = False,
    branch: Annotated[str, typer.Option("--branch", help="The branch to commit to.")] = "main",
    pr: Annotated[bool, typer.Option("--pr", help="Open a pull request instead.")] = False,
    collection: Annotated[
        str | None, typer.Option("--collection", help="A collection's slug, to be added to.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="The source's, where its card states none.")
    ] = None,
    allow_unjudged: Annotated[
        bool, typer.Option("--allow-unjudged", help="Without a passed gate; the card says so.")
    ] = False,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Files changed since; the card says so.")
    ] = False,
    allow_withdrawn: Annotated[
        bool, typer.Option("--allow-withdrawn", help="A withdrawn source; the card says so.")
    ] = False,
    allow_licence: Annotated[
        bool, typer.Option("--allow-licence", help="Against its licence; the card says so.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what others put there.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read weights back; compare what is listed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be pushed; push nothing.")
    ] = False,
    checksums: Checksums = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Push a finished folder to the Hub, read it back, and only then commit it."""
    with session(as_json=as_json) as display:

        def confirm(offer: Mapping[str, Any]) -> bool:
            if yes:
                return True
            if as_json or not sys.stdin.isatty():
                raise UsageError(
                    "publish asks before it pushes, and nobody is there to answer; say --yes, or "
                    "--dry-run to look only"
                )
            display.say(_text(offer))
            return typer.confirm("Push this?", err=True)

        found = quantkit.publish(
            dir,
            repo_id,
            public=public,
            branch=branch,
            pr=pr,
            collection=collection,
            licence=licence,
            allow_unjudged=allow_unjudged,
            allow_changed=allow_changed,
            allow_withdrawn=allow_withdrawn,
            allow_licence=allow_licence,
            overwrite=overwrite,
            quick=quick,
            dry_run=dry_run,
            checksums=checksums or (),
            confirm=confirm,
            listener=display.listener,
        )
        display.shown(str(found.get("url", repo_id)), _rows(found), found)


def _text(offer: Mapping[str, Any]) -> str:
    return "\n".join(f"{name:<12} {value}" for name, value in _rows(offer))


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is about to be pushed, or was."""
    rows = [
        ("status", str(found["status"])),
        ("repository", f"{found['repo_id']}, {'private' if found['private'] else 'public'}"),
        ("branch", f"{found['branch']}{', by pull request' if found['pull_request'] else ''}"),
        *(("although", each) for each in found["overrides"]),
        *((each["name"], f"{each['bytes']:,} bytes") for each in found["files"]),
        *((each, "to be removed there") for each in found["removes"]),
    ]
    if "commit" in found:
        rows += [
            ("commit", found["commit"]),
            ("sent", f"{len(found['sent'])} files, {found['sent_bytes']:,} bytes"),
            ("read back", f"{found['read_back_bytes']:,} bytes, as they were sent"),
            ("address", found["url"]),
        ]
    return rows
