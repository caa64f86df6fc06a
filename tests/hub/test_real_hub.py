"""The same push against a real endpoint, for whoever has a token that may create repositories.

    HF_HUB_OFFLINE=0 HF_TOKEN=... QUANTKIT_HUB_REPO=me/quantkit-test pytest -m hub

``HF_ENDPOINT`` chooses the hub. The repository must not exist; it is deleted at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Converted

import quantkit

pytestmark = pytest.mark.hub


@pytest.fixture
def repo() -> Iterator[str]:
    name = os.environ.get("QUANTKIT_HUB_REPO")
    if name is None or os.environ.get("HF_HUB_OFFLINE") != "0":
        pytest.skip("QUANTKIT_HUB_REPO is not set, or HF_HUB_OFFLINE is not 0")
    from huggingface_hub import HfApi

    assert not HfApi().repo_exists(name), f"{name} exists: it would be deleted"
    yield name
    HfApi().delete_repo(name, missing_ok=True)


def test_a_folder_is_published_found_whole_and_not_sent_twice(
    repo: str, demo_nf4: Converted, tmp_path: Path
) -> None:
    folder = shutil.copytree(demo_nf4.folder, tmp_path / "demo-nf4")
    done = quantkit.publish(folder, repo)
    assert done["private"]
    assert done["read_back_bytes"] == done["sent_bytes"]
    assert quantkit.verify(repo)["status"] == "verified"
    again = quantkit.publish(folder, repo)
    assert (again["sent"], again["commit"]) == ([], done["commit"])
    asked = quantkit.publish(folder, repo, branch="second", pr=True)
    assert asked["sent"] == [], "the branch starts where main is"
