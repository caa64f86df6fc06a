"""Which licence a source has, and whether it lets a quantized copy be published.

Names are the Hub's own identifiers. This knows what a licence's name says, not law.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: A quantized copy is a derivative, and these let none be shared.
_NO_DERIVATIVES = ("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0")

#: The Hub's identifiers that a registry entry may name in its own spelling.
_KNOWN = ("mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "openrail")


#: How the Hub's identifiers are spelt.
ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


@dataclass(frozen=True)
class Licence:
    """``id`` is the Hub's name, empty where none is stated; ``stated_by`` says where it is."""

    id: str = ""
    name: str = ""
    link: str = ""
    stated_by: str = ""

    @property
    def forbids(self) -> str:
        """Why a quantized copy may not be published under it; empty where it may."""
        if self.id == "unknown":
            return "the source's card calls its licence unknown, which lets nothing be shared"
        if not self.id:
            return "the source states no licence, and without one nothing may be shared"
        if self.id in _NO_DERIVATIVES:
            return f"the source's licence is {self.id}, which lets no derivative be shared"
        return ""


def licence_of(card: Mapping[str, Any], registered: str | None = None) -> Licence:
    """What the source's card states, else what the registry does (``registered``)."""
    stated = card.get("license")
    several = [each for each in _texts(stated) if each]
    if several:
        forbidding = [each for each in several if each.lower() in _NO_DERIVATIVES]
        name, link = card.get("license_name"), card.get("license_link")
        stated_id = (forbidding or several)[0].lower()
        if len({each.lower() for each in several}) > 1 and not forbidding:
            name, stated_id = ", ".join(several), "other"  # one alone would leave a duty out
        if not ID.fullmatch(stated_id):  # words of its own, where the Hub wants a name
            name, stated_id = name or stated_id, "other"
        return Licence(
            stated_id,
            name if isinstance(name, str) else "",
            link if isinstance(link, str) else "",
            "the source's card",
        )
    if registered and registered.lower() in _KNOWN:
        return Licence(registered.lower(), stated_by="the registry")
    return Licence()


def licence_json(licence: Licence) -> dict[str, Any]:
    """For the manifest."""
    return asdict(licence)


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        return [value.strip()]
    if isinstance(value, list):
        return [each.strip() for each in value if isinstance(each, str)]
    return []
