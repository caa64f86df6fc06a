"""The verb ``publish``, and how it asks before anything leaves this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer

import quantkit
from quantkit.cli.display import Display
from quantkit.cli.options import AsJson, Checksums, SigningKey
from quantkit.cli.session import session, settled
from quantkit.errors import UsageError
from quantkit.signatures import SIGNATURE

Folder = Annotated[str, typer.Argument(metavar="DIR", help="A folder that 'convert' made.")]
RepoId = Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the Hub.")]
Public = Annotated[bool, typer.Option("--public", help="For all to see; otherwise private.")]
Branch = Annotated[str, typer.Option("--branch", help="The branch to commit to.")]
PullRequest = Annotated[bool, typer.Option("--pr", help="Open a pull request instead.")]
Collection = Annotated[
    str | None, typer.Option("--collection", help="A collection's slug, to be added to.")
]
Licence = Annotated[
    str | None, typer.Option("--licence", help="The source's, where its card states none.")
]
Unjudged = Annotated[
    bool, typer.Option("--allow-unjudged", help="Without a passed gate; the card says so.")
]
Changed = Annotated[
    bool, typer.Option("--allow-changed", help="Files changed since; the card says so.")
]
Withdrawn = Annotated[
    bool, typer.Option("--allow-withdrawn", help="A withdrawn source; the card says so.")
]
AgainstLicence = Annotated[
    bool, typer.Option("--allow-licence", help="Against its licence; the card says so.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace another model, and what others put there.")
]
Quick = Annotated[
    bool, typer.Option("--quick", help="Do not read weights back; compare what is listed.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be pushed; push nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def publish(
    dir: Folder,
    repo_id: RepoId,
    public: Public = False,
    branch: Branch = "main",
    pr: PullRequest = False,
    collection: Collection = None,
    licence: Licence = None,
    allow_unjudged: Unjudged = False,
    allow_changed: Changed = False,
    allow_withdrawn: Withdrawn = False,
    allow_licence: AgainstLicence = False,
    overwrite: Overwrite = False,
    quick: Quick = False,
    dry_run: DryRun = False,
    sign: SigningKey = None,
    checksums: Checksums = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Push a finished folder to the Hub, read it back, and only then commit it."""
    again = "interrupted; run the same command again: what has arrived is not sent twice"
    with session(as_json=as_json, interrupted=again) as display:
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
            sign=sign,
            checksums=checksums or (),
            confirm=partial(_ask, display, yes=yes, as_json=as_json),
            listener=display.listener,
        )
        settled()
        display.shown(str(found.get("url", repo_id)), _rows(found), found)


def _ask(display: Display, offer: Mapping[str, Any], *, yes: bool, as_json: bool) -> bool:
    if yes:
        return True
    if as_json or not someone_is_there():
        raise UsageError(
            "publish asks before it pushes, and nobody is there to answer; say --yes, or --dry-run "
            "to look only"
        )
    display.say(_text(offer))
    return typer.confirm("Push this?", err=True)


def someone_is_there() -> bool:
    """Whether a question would be answered."""
    return sys.stdin.isatty()


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
        *(((SIGNATURE, "signed anew, or as it is"),) if found["signed"] else ()),
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
