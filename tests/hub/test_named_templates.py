"""Chat templates that are asked for by name: carried on, judged, published, and read back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commanding import succeeded
from hub.loopback import Loopback
from huggingface_hub import constants
from transformers import AutoTokenizer

import quantkit
from quantkit.errors import GateError, MismatchError, SourceError

PLAIN, TOOL, RAG = ("{{ messages[0]['content'] }} " + each for each in ("answer:", "use:", "cite:"))
QUICK = ["evaluation.max_windows=1", "evaluation.new_tokens=1"]
OTHERS = ("tekken.json", "vocab.txt", "sentencepiece.bpe.model")
NAMED = {"tool_use": TOOL, "rag.v2": RAG}


@pytest.fixture
def source(demo: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(demo, tmp_path / "source")
    (folder / "chat_template.jinja").write_text(PLAIN)
    (folder / "additional_chat_templates").mkdir()
    for name, text in NAMED.items():
        place(folder, name).write_text(text)
    for name in OTHERS:
        (folder / name).write_text(name)
    return folder


def place(folder: Path, name: str) -> Path:
    return folder / "additional_chat_templates" / f"{name}.jinja"


def templates(folder: Path) -> object:
    return AutoTokenizer.from_pretrained(folder).chat_template


def test_they_are_carried_on_judged_and_listed(demo: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = quantkit.convert(source, "bnb-nf4", out, text=demo / "heldout.txt", set=QUICK)
    assert templates(out) == {"default": PLAIN, **NAMED}
    for files in (made["source"]["files"], made["output"]["files"]):
        names = {each["name"] for each in files}
        assert {f"additional_chat_templates/{name}.jinja" for name in NAMED} <= names
        assert {*OTHERS} <= names
    assert not any("additional_chat" in each for each in made["plan"]["warnings"])
    quantkit.verify(out)
    place(out, "tool_use").write_text(TOOL.replace("use", "buy"))
    with pytest.raises(MismatchError, match=r"tool_use\.jinja has changed"):
        quantkit.verify(out)
    found = quantkit.check(out, source, text=demo / "heldout.txt", set=QUICK)
    assert found["gate"]["status"] == "failed"


def test_one_that_changes_starts_a_rerun_over(demo: Path, source: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []
    asked = {"text": demo / "heldout.txt", "listener": said.append}
    with pytest.raises(GateError):
        quantkit.convert(source, "bnb-nf4", out, set=[*QUICK, "gate.max_kl_mean=1e-9"], **asked)
    with pytest.raises(GateError):
        quantkit.convert(source, "bnb-nf4", out, set=[*QUICK, "gate.max_kl_mean=2e-9"], **asked)
    assert any("judging the staged files again" in event.message for event in said)
    place(source, "tool_use").write_text("{{ messages[0]['content'] }} reach for:")
    said.clear()
    quantkit.convert(source, "bnb-nf4", out, set=QUICK, **asked)
    assert any("the source's small files changed since" in event.message for event in said)
    assert templates(out)["tool_use"].endswith("reach for:")


def test_a_registry_may_list_them(source: Path, tmp_path: Path) -> None:
    entry = tmp_path / "registry" / "own.toml"
    entry.parent.mkdir()
    succeeded(
        "checksums", "add", source, "--repository", "own/model", "--status", "current",
        "--stated-at", "https://example.org/own", "--into", entry,
    )  # fmt: skip
    assert "additional_chat_templates/tool_use.jinja" in entry.read_text()
    asked = {"repo": "own/model", "checksums": [entry.parent]}
    assert quantkit.verify(source, **asked)["status"] == "verified"
    place(source, "tool_use").write_text("{{ messages[0]['content'] }} buy:")
    with pytest.raises(MismatchError):
        quantkit.verify(source, **asked)


def test_what_is_not_to_be_trusted_is_refused(source: Path, tmp_path: Path) -> None:
    place(source, "tool_use").write_text("{{ ''.__class__ }}")
    with pytest.raises(SourceError, match=r"tool_use\.jinja.*__class__"):
        quantkit.plan(source, "bnb-nf4")
    place(source, "tool_use").unlink()
    place(source, "tool_use").symlink_to("/etc/hostname")
    with pytest.raises(SourceError, match="a link that leaves the folder"):
        quantkit.plan(source, "bnb-nf4")
    place(source, "tool_use").unlink()
    for at in range(17):
        place(source, f"t{at}").write_text(TOOL)
    with pytest.raises(SourceError, match="at most 16 templates, got 18"):
        quantkit.plan(source, "bnb-nf4")
    moved = (source / "additional_chat_templates").rename(tmp_path / "elsewhere")
    (source / "additional_chat_templates").symlink_to(moved)
    with pytest.raises(SourceError, match="put the folder itself there"):
        quantkit.plan(source, "bnb-nf4")


def test_they_come_from_the_hub_and_go_there(
    hub: Loopback, demo: Path, source: Path, tmp_path: Path
) -> None:
    held = (path for path in source.rglob("*") if path.is_file())
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in held}
    hub.add("me/demo", files)
    out, text = tmp_path / "demo-nf4", demo / "heldout.txt"
    quantkit.convert("me/demo", "bnb-nf4", out, text=text, set=QUICK)
    assert templates(out) == {"default": PLAIN, **NAMED}
    (snapshot,) = Path(constants.HF_HUB_CACHE).glob("models--me--demo/snapshots/*")
    assert place(snapshot, "tool_use").is_symlink(), "into the blobs of the cache"
    quantkit.convert(snapshot, "fp16", tmp_path / "again", no_gate=True)
    assert templates(tmp_path / "again") == {"default": PLAIN, **NAMED}
    quantkit.publish(out, "me/demo-nf4")
    there = hub.repositories["me/demo-nf4"].files
    for name, text in NAMED.items():
        assert there[f"additional_chat_templates/{name}.jinja"] == text.encode()
