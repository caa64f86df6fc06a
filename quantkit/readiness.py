"""Whether a finished folder may be published: every reason against it, each with its override."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.card import NAME as CARD
from quantkit.card import render_card
from quantkit.digests import digest_bytes, digest_file
from quantkit.errors import (
    GateError,
    LicenceError,
    MismatchError,
    QuantkitError,
    UsageError,
    WithdrawnError,
    printable,
)
from quantkit.licences import Licence, licence_json
from quantkit.lineage import differing
from quantkit.records import contradictions
from quantkit.signatures import SIGNATURE, visible
from quantkit.staging import MANIFEST
from quantkit.types import Listener, Verdict
from quantkit.verification import Policy, enforce

Kind = Literal["unjudged", "changed", "withdrawn", "licence"]

_ERRORS: Mapping[Kind, type[QuantkitError]] = {
    "unjudged": GateError,
    "changed": MismatchError,
    "withdrawn": WithdrawnError,
    "licence": LicenceError,
}

#: How many characters of a refused name are shown.
_LONGEST_NAME = 120

#: What to do about each, beside the override.
_ADVICE: Mapping[Kind, str] = {
    "unjudged": "convert again with the gate",
    "changed": "convert again; own words for the card belong in the recipe's [card]",
    "withdrawn": "use another release",
    "licence": "where you know it, state it (--licence)",
}


@dataclass(frozen=True)
class Refusal:
    """One reason against publishing. ``--allow-KIND`` overrides it, and the card says so.

    It is ``old`` where an earlier publication overrode it, and left no other trace.
    """

    kind: Kind
    said: str
    old: bool = False

    def __str__(self) -> str:
        return f"{self.said}{_override(self.kind)}"


def _override(kind: Kind) -> str:
    return f" (--allow-{kind})"


def refusals(
    folder: Path,
    manifest: Mapping[str, Any],
    verdict: Verdict,
    licence: Licence,
    listener: Listener,
) -> tuple[Refusal, ...]:
    """Everything that speaks against it, not the first. All files are digested.

    ``verdict`` is today's of the source.

    Raises:
        MismatchError: the source is not what it says that it is, which nothing overrides.
    """
    found = []
    if (status := manifest["gate"]["status"]) != "passed":
        found.append(Refusal("unjudged", f"its gate is {status.replace('_', ' ')}"))
    found += _changed_before(manifest)
    if changed := [*contradictions(manifest), *differing(folder, manifest, listener)]:
        found.append(Refusal("changed", f"it is not as it was judged: {'; '.join(changed)}"))
    source = manifest["source"]
    enforce(f"{folder}: its source", verdict, Policy(allow_withdrawn=True))
    if "withdrawn" in (verdict.status, source["status"]):
        today = verdict.status == "withdrawn"
        why = verdict.reason if today else source["verdict"]["reason"]
        found.append(Refusal("withdrawn", f"its source was withdrawn: {why}"))
    if licence.forbids:
        found.append(Refusal("licence", licence.forbids))
    return tuple(found)


def _changed_before(manifest: Mapping[str, Any]) -> list[Refusal]:
    """What an earlier publication let pass as changed: the manifest lists those files since, but
    its figures are still of what was judged."""
    end = _override("changed")
    said = (manifest.get("publication") or {}).get("overrides", [])
    return [Refusal("changed", each[: -len(end)], old=True) for each in said if each.endswith(end)]


def refuse(folder: Path, found: Sequence[Refusal], allowed: Sequence[Kind]) -> None:
    """Stop unless everything in ``found`` is allowed.

    Raises:
        GateError, MismatchError, WithdrawnError, LicenceError: by the first that is not.
    """
    against = [each for each in found if each.kind not in allowed]
    if against:
        said = "; ".join(
            f"{each.said} ({_ADVICE[each.kind]}, or --allow-{each.kind} and the card will say so)"
            for each in against
        )
        raise _ERRORS[against[0].kind](f"{folder}: not to be published: {said}")


def manifest_and_card(
    folder: Path,
    manifest: Mapping[str, Any],
    where: tuple[str, str],
    verdict: Verdict,
    licence: Licence,
    overridden: Sequence[Refusal],
) -> tuple[dict[str, Any], bytes]:
    """The manifest and the card for ``where``, a repository and its branch.

    ``verdict`` is today's of the source. The same each time: a rerun changes nothing.
    """
    made = dict(manifest)
    made["publication"] = {
        "repo_id": where[0],
        "branch": where[1],
        "source_status": verdict.status,
        "source_repository": verdict.repository,
        "licence": licence_json(licence),
        "overrides": [str(each) for each in overridden],
    }
    files = [each for each in manifest["output"]["files"] if each["name"] != CARD]
    if any(each.kind == "changed" and not each.old for each in overridden):
        # all are read again: differing() has digested none that is missing from the manifest, or
        # of another size
        weights = {each["name"] for each in files if each["is_weight"]}
        files = [
            asdict(digest_file(folder / name, name, is_weight=name in weights))
            for name in _present(folder)
        ]
    made["output"] = {**manifest["output"], "files": files}
    card = render_card(made).encode("utf-8")
    made["output"]["files"] = [*files, asdict(digest_bytes(CARD, card))]
    return made, card


def _present(folder: Path) -> list[str]:
    """Files that are there now, of those that may be published: nothing hidden, no links."""
    return [
        name
        for name, path in visible(folder)
        if path.is_file() and not path.is_symlink() and name not in (MANIFEST, CARD, SIGNATURE)
    ]


def refuse_odd_files(folder: Path) -> None:
    """See that what lies in ``folder`` is its own, under names that nothing acts on.

    Publishing writes the card and the manifest, and through a link it would write, or send,
    what lies elsewhere.

    Raises:
        UsageError: a link, or a name with control characters; all are named.
    """
    links, strange = [], []
    for name, path in visible(folder):
        if not name.isprintable():
            strange.append(printable(name)[:_LONGEST_NAME])
        elif path.is_symlink():
            links.append(name)
    if links:
        raise UsageError(
            f"{folder}: not to be published: links in it ({', '.join(links[:5])}); remove them, or "
            "put the files there that they lead to (cp -rL)"
        )
    if strange:
        raise UsageError(
            f"{folder}: not to be published: names with line breaks or control characters "
            f"({', '.join(strange[:5])}); rename or remove them"
        )
