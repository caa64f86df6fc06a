"""What people give in place of a checkpoint: each is named, with what to give instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from commanding import refused

from quantkit.lookalikes import in_place_of_checkpoint

CASES = {
    "an adapter": (
        ["adapter_config.json", "adapter_model.safetensors"],
        "unquantized (merge_and_unload)",
    ),
    "a GGUF": (["README.md", "model-Q4_K_M.GGUF"], "model-Q4_K_M.GGUF: a GGUF file"),
    "diffusers": (["model_index.json", "unet/config.json"], "a pipeline of diffusers"),
    "its author's own form": (["params.json", "consolidated.00.pth"], "author's own form"),
    "one folder too high": (["notes.txt", "hf/config.json"], "one in hf: give that folder"),
    "a Hub cache's repository": (
        ["refs/main", "snapshots/abc/config.json", "snapshots/def/config.json"],
        "snapshots/abc or snapshots/def",
    ),
    "none of them": (["notes.txt"], "holds config.json and weights"),
    "nothing": ([], "holds config.json and weights"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("verb", ["plan", "check"])
def test_it_is_named(case: str, verb: str, tmp_path: Path, demo: Path) -> None:
    names, said = CASES[case]
    folder = tmp_path / "given"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    words = ["--recipe", "bnb-nf4"] if verb == "plan" else ["--against", demo]
    assert said in refused(1 if verb == "plan" else 2, verb, folder, *words)


@pytest.mark.parametrize("verb", ["plan", "check", "check-tokenizer"])
@pytest.mark.parametrize(
    ("name", "said"),
    [("model.gguf", "a GGUF file"), ("model.safetensors", "a file; give the folder")],
)
def test_a_file_is_no_folder(verb: str, name: str, said: str, tmp_path: Path, demo: Path) -> None:
    (tmp_path / name).touch()
    more = {"plan": ["--recipe", "bnb-nf4"], "check": ["--against", demo], "check-tokenizer": []}
    assert said in refused(2, verb, tmp_path / name, *more[verb])


def test_an_empty_config_is_told_from_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "config.json is an empty object" in refused(1, "plan", tmp_path, "--recipe", "bnb-nf4")


def test_many_folders_are_not_all_listed() -> None:
    said = in_place_of_checkpoint([f"run-{n}/config.json" for n in range(9)])
    assert "run-0 or run-1 or run-2 (and others)" in said
