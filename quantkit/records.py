"""``quantkit-manifest.json`` on the disk: read, written, and sealed.

The last key, ``seal``, is the SHA-256 of the file's own bytes with the seal's digits as
zeros, so that a manifest that changed on the way says so itself. Whoever changes one on
purpose can seal it again: against that stands a signature (docs/verification.md).

It stands apart from what fills a manifest: a reader needs none of the libraries that takes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from quantkit.errors import SourceError
from quantkit.given import kind_of
from quantkit.staging import MANIFEST

#: Raised when a reader of the old schema would misread the new one.
SCHEMA = 1

#: More than any manifest: one of 100,000 tensors takes some 40 MB.
MAX_BYTES = 256 << 20

#: The gate's levels without which nothing has been shown.
REQUIRED = ("structure", "reload", "perplexity")

_OPEN_SEAL = "0" * 64
_SEALED = re.compile(rb'  "seal": "([0-9a-f]{64})"\n}\n\Z')


def finite(value: Any) -> Any:
    """``value`` with numbers that JSON cannot hold as text: "inf", "nan"."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value


def contradictions(manifest: Mapping[str, Any]) -> list[str]:
    """What a manifest says that cannot be so, whoever sealed it."""
    found = []
    if not any(each["is_weight"] for each in manifest["output"]["files"]):
        found.append("it lists no weights")
    gate = manifest["gate"]
    for name, outcome in gate["levels"].items():
        wrong = outcome == "failed" or (name in REQUIRED and outcome != "passed")
        if gate["status"] == "passed" and wrong:
            said = "failed" if outcome == "failed" else "did not run"
            found.append(f"its gate passed, and the {name} level {said}")
    return found


def summary_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder says that it is."""
    source, publication = manifest["source"], manifest["publication"] or {}
    return {
        "source": {key: source[key] for key in ("name", "repo_id", "revision")},
        "recipe": manifest["recipe"]["name"],
        "tool": {key: manifest["tool"][key] for key in ("name", "version")},
        "published_as": publication.get("repo_id"),
    }


def write_manifest(manifest: dict[str, Any], folder: Path) -> None:
    """Seal ``manifest`` and write it into ``folder``."""
    text = manifest_text(manifest)
    manifest["seal"] = json.loads(text)["seal"]
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """What is written into the file: ``manifest``, sealed."""
    content = finite({key: value for key, value in manifest.items() if key != "seal"})

    def written(seal: str) -> str:
        sealed = content | {"seal": seal}
        return json.dumps(sealed, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    return written(hashlib.sha256(written(_OPEN_SEAL).encode()).hexdigest())


def is_sealed(raw: bytes) -> bool:
    """Whether a manifest's bytes are those that were sealed."""
    found = _SEALED.search(raw)
    if found is None:
        return False
    start, end = found.span(1)
    return hashlib.sha256(raw[:start] + _OPEN_SEAL.encode() + raw[end:]).hexdigest() == (
        found[1].decode()
    )


def read_raw(folder: Path) -> bytes:
    """The bytes of the manifest in ``folder``.

    Raises:
        SourceError: it cannot be read, or is too long to be one.
    """
    path = folder / MANIFEST
    try:
        if kind := kind_of(path.stat().st_mode):
            raise SourceError(f"{path}: {kind}, expected a manifest's file; fetch it again")
        if path.stat().st_size > MAX_BYTES:
            raise SourceError(f"{path}: expected at most {MAX_BYTES} bytes, got more")
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: not a readable quantkit manifest: {error}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that quantkit made; whether it is sealed is not asked.

    Raises:
        SourceError: it cannot be read, or is of a later schema.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(read_raw(folder).decode("utf-8"))
        # quantkit writes neither NaN nor half a letter, and could not show or write either again
        json.dumps(manifest, ensure_ascii=False, allow_nan=False).encode()
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{path}: not a readable quantkit manifest: {error}") from error
    if schema != SCHEMA:
        raise SourceError(
            f"{path}: schema {schema!r}, expected {SCHEMA}; use the quantkit that wrote it or newer"
        )
    return dict(manifest)
