"""docs/manifest.md names every key that is printed or recorded, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Converted
from test_layerwise import SMALL
from typer.testing import CliRunner

import quantkit
from quantkit.cli.app import app
from quantkit.resources import shipped_folder

MANIFEST = "quantkit-manifest.json"
GATE = "The gate's figures"

#: Keys that a run of these tests does not bring about: what, and where it is shown instead.
ELSEWHERE = {
    MANIFEST: {
        "publication.repo_id", "publication.branch", "publication.source_status",  # hub/
        "publication.source_repository", "publication.licence.*", "publication.overrides[]",
        "benchmarks[]",  # test_eval.py
        "source.withdrawn[].repository", "source.withdrawn[].release",
        "source.withdrawn[].reason", "source.withdrawn[].stated_at",  # test_card.py
        "conversion.underflows.*", "plan.warnings[]", "request.checksums[]",
    },
    "publish": {  # once it is published: hub/
        "commit", "url", "sent[]", "sent_bytes", "removed[]", "read_back_bytes", "collection",
    },
    "compare": {"noise_floor"},  # null where the first folder computes in float32
    GATE: {"noise_floor", "reasons.*", "failures[]", "tokenizer.limits[]", "structure.remarks[]"},
}  # fmt: skip


@pytest.fixture(scope="module")
def page() -> dict[str, set[str]]:
    """Each section's keys."""
    text = (shipped_folder("recipes").parent / "docs" / "manifest.md").read_text(encoding="utf-8")
    sections = {}
    for part in text.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        rows = [line for line in body.splitlines() if line.startswith("| `")]
        sections[title] = {
            key for row in rows for key in re.findall(r"`([^`]+)`", row.split("|")[1])
        }
    return sections


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """``a.b[].c`` of every value that holds no others; empty ones too."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for each in value:
            yield from leaves(each, f"{path}[]")
    elif isinstance(value, list):
        yield f"{path}[]"
    else:
        yield path


def held(section: set[str], made: Any) -> set[str]:
    """What of a section occurs in ``made``, all of whose keys it must name."""
    used = set()
    for path in {*leaves(made)}:
        wild = {key for key in section if key.endswith("*") and f"{path}.".startswith(key[:-1])}
        empty = {key for key in section if key.startswith((f"{path}.", f"{path}[")) or path == key}
        found = wild or empty
        assert found, f"docs/manifest.md does not name {path}"
        used |= found
    return used


@pytest.fixture(scope="module")
def gptq(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("page") / "out"
    return quantkit.convert(demo, "gptq-4bit-g128", out, no_gate=True, set=SMALL)


def test_the_manifest(page: dict[str, set[str]], demo_nf4: Converted, gptq: dict[str, Any]) -> None:
    recorded = json.loads((demo_nf4.folder / MANIFEST).read_text(encoding="utf-8"))
    used = held(page[MANIFEST], recorded) | held(page[MANIFEST], gptq)
    assert page[MANIFEST] - used == ELSEWHERE[MANIFEST] - used


def test_the_gate(page: dict[str, set[str]], demo: Path, demo_nf4: Converted) -> None:
    judged = quantkit.check(
        demo_nf4.folder, demo, text=[demo / "heldout.txt", demo / "README.md"],
        set=["evaluation.window=64", "evaluation.max_windows=8", "evaluation.new_tokens=4"],
    )  # fmt: skip
    used = held(page[GATE], judged["gate"]) | held(page[GATE], demo_nf4.manifest["gate"])
    assert page[GATE] - used == ELSEWHERE[GATE] - used
    named = held(page["check"], judged)
    assert page["check"] == named


def printed(*args: str | Path) -> Any:
    return json.loads(CliRunner().invoke(app, [*map(str, args), "--json"]).stdout)


def test_what_the_verbs_print(
    page: dict[str, set[str]], demo: Path, demo_nf4: Converted, tmp_path: Path
) -> None:
    out = demo_nf4.folder
    shown = {
        "convert": [
            printed("convert", demo, "--recipe", "fp16", "--out", tmp_path / "o", "--no-gate")
        ],
        "plan": [printed("plan", demo, "--recipe", "bnb-nf4")],
        "verify": [printed("verify", demo), printed("verify", out)],
        "check-tokenizer": [printed("check-tokenizer", out)],
        "compare": [
            printed("compare", out, "--against", demo, "--text", demo_nf4.text,
                    "--set", "evaluation.max_windows=4")
        ],
        "publish": [printed("publish", out, "someone/name", "--dry-run")],
        "recipes, checksums": [printed("recipes"), printed("checksums")],
        "After an error": [printed("plan", tmp_path / "nowhere", "--recipe", "bnb-nf4")],
    }  # fmt: skip
    for title, objects in shown.items():
        used = set().union(*(held(page[title], each) for each in objects))
        assert page[title] - used <= ELSEWHERE.get(title, set()), title
