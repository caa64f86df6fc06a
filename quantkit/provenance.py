"""The manifest's story for machines: one in-toto statement with SLSA provenance.

Specifications: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and
https://slsa.dev/spec/v1.0/provenance. The statement says which files (``subject``) were
built from which (``resolvedDependencies``), by what and how. Two runs of one conversion write
the same statement: it holds no times, and none of the files that do (the card, the report).
It is unsigned by itself: the signature over the whole folder covers it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

PROVENANCE = "quantkit-provenance.json"

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"

#: Files about the run and not of the model.
_ABOUT = (PROVENANCE, "README.md", "report/")

# URIs that name, not addresses that answer: the project has no site of its own.
BUILD_TYPE = "urn:quantkit:convert:1"
BUILDER = "urn:quantkit:local"


def statement(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The statement that ``manifest`` supports, and nothing that is not in it."""
    source, tool = manifest["source"], manifest["tool"]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": each["name"], "digest": {"sha256": each["sha256"]}}
            for each in manifest["output"]["files"]
            if not each["name"].startswith(_ABOUT)
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "source": {"name": source["name"], "revision": source["revision"]},
                    "recipe": manifest["recipe"],
                },
                "internalParameters": {
                    "plan": manifest["plan"]["digest"],
                    "device": manifest["conversion"]["device"],
                    "threads": manifest["conversion"]["threads"],
                },
                "resolvedDependencies": [
                    *(_source_file(source, each) for each in source["files"]),
                    *_calibration(manifest["conversion"]["calibration"]),
                ],
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER,
                    "version": {tool["name"]: tool["version"], **manifest["versions"]},
                },
            },
        },
    }


def _source_file(source: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """One file that was read; its address only where the source came by one."""
    found: dict[str, Any] = {"name": file["name"], "digest": {"sha256": file["sha256"]}}
    if file["md5"]:
        found["digest"]["md5"] = file["md5"]
    if source["repo_id"] and source["revision"]:
        place = f"{source['repo_id']}/resolve/{source['revision']}/{file['name']}"
        found["uri"] = f"https://huggingface.co/{quote(place)}"
    return found


def _calibration(used: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if used is None:
        return []
    return [{"name": f"calibration: {used['name']}", "digest": {"sha256": used["sha256"]}}]


def write_provenance(manifest: Mapping[str, Any], folder: Path) -> None:
    """Write the statement into ``folder``, beside the manifest that it is made from."""
    text = json.dumps(statement(manifest), indent=2, ensure_ascii=False) + "\n"
    (folder / PROVENANCE).write_text(text, encoding="utf-8")
