"""The in-toto statement: valid by the published specifications, and only the manifest's facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tiny import write_source

import quantkit
from quantkit.provenance import PROVENANCE, statement

#: Written down from https://github.com/in-toto/attestation/blob/main/spec/v1/ (statement,
#: resource_descriptor, digest_set) and https://slsa.dev/spec/v1.0/provenance, with each
#: field of theirs that we use and no other.
DIGESTS = {
    "type": "object", "minProperties": 1,
    "properties": {
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "md5": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "additionalProperties": False,
}  # fmt: skip
DESCRIPTOR = {
    "type": "object",
    "properties": {
        "name": {"type": "string"}, "uri": {"type": "string", "format": "uri"},
        "digest": DIGESTS, "annotations": {"type": "object"},
    },
    "anyOf": [{"required": ["uri"]}, {"required": ["digest"]}],
    "additionalProperties": False,
}  # fmt: skip
TYPE_URI = {"type": "string", "pattern": r"^[a-z][a-z0-9+.-]*:\S+$"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["_type", "subject", "predicateType", "predicate"],
    "additionalProperties": False,
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "predicateType": {"const": "https://slsa.dev/provenance/v1"},
        "subject": {
            "type": "array", "minItems": 1,
            "items": {**DESCRIPTOR, "required": ["name", "digest"]},
        },
        "predicate": {
            "type": "object",
            "required": ["buildDefinition", "runDetails"],
            "additionalProperties": False,
            "properties": {
                "buildDefinition": {
                    "type": "object",
                    "required": ["buildType", "externalParameters"],
                    "additionalProperties": False,
                    "properties": {
                        "buildType": TYPE_URI,
                        "externalParameters": {"type": "object", "minProperties": 1},
                        "internalParameters": {"type": "object"},
                        "resolvedDependencies": {"type": "array", "items": DESCRIPTOR},
                    },
                },
                "runDetails": {
                    "type": "object",
                    "required": ["builder"],
                    "additionalProperties": False,
                    "properties": {
                        "builder": {
                            "type": "object",
                            "required": ["id"],
                            "additionalProperties": False,
                            "properties": {
                                "id": TYPE_URI,
                                "version": {
                                    "type": "object",
                                    "additionalProperties": {"type": "string"},
                                },
                                "builderDependencies": {"type": "array", "items": DESCRIPTOR},
                            },
                        },
                        "metadata": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "invocationId": {"type": "string"},
                                "startedOn": {"type": "string"},
                                "finishedOn": {"type": "string"},
                            },
                        },
                        "byproducts": {"type": "array", "items": DESCRIPTOR},
                    },
                },
            },
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("provenance")
    source = write_source(folder / "source")
    quantkit.convert(source, "bnb-nf4", folder / "out", no_gate=True)
    return folder / "out"


def written(saved: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((saved / PROVENANCE).read_text())
    return found


def manifest_of(saved: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((saved / "quantkit-manifest.json").read_text())
    return found


def test_it_is_valid(saved: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(written(saved), SCHEMA)


def test_the_in_toto_project_takes_it(saved: Path) -> None:
    attestation = pytest.importorskip("in_toto_attestation.v1.statement")
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2

    parsed = json_format.Parse((saved / PROVENANCE).read_text(), statement_pb2.Statement())
    attestation.Statement.copy_from_pb(parsed).validate()


def test_its_subjects_are_the_files_and_its_dependencies_the_sources(saved: Path) -> None:
    found, manifest = written(saved), manifest_of(saved)
    listed = {each["name"]: each["sha256"] for each in manifest["output"]["files"]}
    for about in (PROVENANCE, "README.md"):  # what tells of the run is no part of the model
        listed.pop(about)
    assert {each["name"]: each["digest"]["sha256"] for each in found["subject"]} == listed
    inputs = found["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {each["name"]: each["digest"]["sha256"] for each in inputs} == {
        each["name"]: each["sha256"] for each in manifest["source"]["files"]
    }
    assert not any("uri" in each for each in inputs), "a local folder has no address"


def test_it_follows_from_the_manifest(saved: Path) -> None:
    assert statement(manifest_of(saved)) == written(saved)


def test_two_runs_write_the_same(saved: Path, tmp_path: Path) -> None:
    quantkit.convert(saved.parent / "source", "bnb-nf4", tmp_path / "out", no_gate=True)
    assert (tmp_path / "out" / PROVENANCE).read_bytes() == (saved / PROVENANCE).read_bytes()


def test_a_hub_source_has_its_address_and_a_calibration_its_digest(saved: Path) -> None:
    manifest = manifest_of(saved)
    manifest["source"] |= {"repo_id": "own/model", "revision": "1" * 40}
    manifest["conversion"]["calibration"] = {"name": "own.txt", "sha256": "2" * 64}
    found = statement(manifest)
    jsonschema.validate(found, SCHEMA)
    *weights, calibration = found["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert all(f"own/model/resolve/{'1' * 40}/" in each["uri"] for each in weights)
    assert calibration["digest"] == {"sha256": "2" * 64}
