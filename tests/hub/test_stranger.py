"""End to end: a Hub id in, a repository out, and a stranger who runs what its card says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Converted
from hub.loopback import TOKEN, Loopback
from hub.test_hub_sources import files_of

import quantkit
from quantkit.records import read_manifest

QUICK = ("evaluation.max_windows=2", "evaluation.window=128", "evaluation.new_tokens=2")

#: What a stranger types besides the card's own lines: nothing. These only look at the result.
LOOK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
asked = AutoTokenizer.from_pretrained(sys.argv[1])
ids = asked(sys.argv[2], add_special_tokens=False)["input_ids"]
kinds = sorted({type(each).__name__ for each in model.modules()})
print(json.dumps({"ids": ids, "kinds": kinds, "said": said}))
"""


def snippet_of(card: str) -> str:
    """The Python on the card, as one copies it."""
    found = re.search(r"## Use\n.*?```python\n(.*?)```", card, re.DOTALL)
    assert found
    return found[1]


def as_a_stranger(
    hub: Loopback, folder: Path, repo: str, text: str, python: str = sys.executable
) -> dict[str, object]:
    """Download the card, run its code in a new process with an empty cache, and look."""
    import json

    files = hub.repositories[repo].files
    script = folder / "snippet.py"
    script.write_text(snippet_of((files["README.md"] or b"").decode()) + LOOK)
    home = folder / "home"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "QUANTKIT"))},
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "GPTQMODEL_CPU_WORKERS": "2", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    done = subprocess.run(
        [python, str(script), repo, text],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def sentencepiece_ids(folder: Path, text: str) -> list[int]:
    from sentencepiece import SentencePieceProcessor

    return list(SentencePieceProcessor(model_file=str(folder / "spiece.model")).encode(text))


def convert_and_publish(
    hub: Loopback, source: str, recipe: str, out: Path, *more: str, text: Path
) -> None:
    quantkit.convert(source, recipe, out, text=text, set=[*QUICK, *more])
    quantkit.publish(out, "me/published", licence=None if source == "quantkit/demo" else "mit")


def test_the_demo_model_in_nf4(
    hub: Loopback, demo: Path, demo_nf4: Converted, tmp_path: Path
) -> None:
    hub.add("quantkit/demo", files_of(demo))
    out = tmp_path / "out"
    convert_and_publish(hub, "quantkit/demo", "bnb-nf4", out, text=demo / "heldout.txt")
    text = "The value of the  list ｶﾞ 😀\n日本"
    found = as_a_stranger(hub, tmp_path, "me/published", text)
    assert found["ids"] == sentencepiece_ids(demo, text)
    assert "Linear4bit" in found["kinds"]  # type: ignore[operator]
    assert found["said"], "it went on from the prompt"
    source = read_manifest(out)["source"]
    assert source["revision"] == hub.repositories["quantkit/demo"].branches["main"]
    assert (source["repo_id"], source["status"]) == ("quantkit/demo", "verified")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (out / name).read_bytes() == (demo_nf4.folder / name).read_bytes(), name
    card = (out / "README.md").read_text()
    assert "add_special_tokens=False" in snippet_of(card), "a default call ends the text"
    commit = hub.repositories["quantkit/demo"].branches["main"]
    assert f"quantkit convert quantkit/demo --recipe bnb-nf4 --revision {commit}" in card


PPO = ("source.repo=''", "evaluation.prompts=['今日は']")


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("recipe", "kind"), [("rinna-3.6b-ppo-nf4", "Linear4bit"), ("rinna-3.6b-ppo-int8",
                                                                "Linear8bitLt")]
)  # fmt: skip
def test_mini_rinna_in_its_prompt_form(
    hub: Loopback, mini_rinna: Path, tmp_path: Path, recipe: str, kind: str
) -> None:
    hub.add("me/mini-rinna", files_of(mini_rinna), private=True)
    out = tmp_path / "out"
    convert_and_publish(hub, "me/mini-rinna", recipe, out, *PPO, text=mini_rinna / "heldout.txt")
    text = "吾輩は猫である。  名前は\tまだ無い 😀 გ"
    found = as_a_stranger(hub, tmp_path, "me/published", text)
    assert found["ids"] == sentencepiece_ids(mini_rinna, text)
    assert kind in found["kinds"]  # type: ignore[operator]
    card = (out / "README.md").read_text()
    assert "repetition_penalty=1.1" in snippet_of(card)
    assert "apply_chat_template" in snippet_of(card)
    assert 'replace("<NL>", "\\n")' in snippet_of(card)


@pytest.mark.oracle
@pytest.mark.parametrize("which", ["demo", "mini-rinna"])
def test_gptq(hub: Loopback, which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Where the library is installed: ``QUANTKIT_GPTQMODEL_PYTHON`` names its interpreter."""
    python = os.environ.get("QUANTKIT_GPTQMODEL_PYTHON")
    if python is None:
        pytest.skip("QUANTKIT_GPTQMODEL_PYTHON is not set")
    source = request.getfixturevalue("demo" if which == "demo" else "mini_rinna")
    name = "quantkit/demo" if which == "demo" else "me/mini-rinna"
    hub.add(name, files_of(source))
    out = tmp_path / "out"
    more = ["calibration.samples=32", "calibration.length=128"]
    recipe = "gptq-4bit-g128" if which == "demo" else "rinna-3.6b-ppo-gptq"
    claims = ["source.repo=''"] if which != "demo" else []
    convert_and_publish(hub, name, recipe, out, *more, *claims, text=source / "heldout.txt")
    text = "The value of 吾輩は猫"
    found = as_a_stranger(hub, tmp_path, "me/published", text, python)
    assert found["ids"] == sentencepiece_ids(source, text)
    assert not any("4bit" in each for each in found["kinds"])  # type: ignore[attr-defined]
