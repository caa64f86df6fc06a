"""Checkpoint folders: what is chosen, and indexes that do not keep their promise."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quantkit.checkpoint import open_checkpoint, read_tensor
from quantkit.errors import CheckpointError

SHARDS = {
    "safetensors": ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    "torch": ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
}
INDEX = {"safetensors": "model.safetensors.index.json", "torch": "pytorch_model.bin.index.json"}


def save_weights(tensors: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})


def write_index(folder: Path, container: str, weight_map: object) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX[container]).write_text(json.dumps(index))


@pytest.fixture(params=["safetensors", "torch"])
def container(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sharded(tmp_path: Path, container: str) -> Path:
    """Two shards: ``a`` and ``b`` in the first, ``c`` in the second."""
    first, second = SHARDS[container]
    save_weights({"a": torch.rand(2), "b": torch.rand(3)}, tmp_path / first)
    save_weights({"c": torch.rand(4)}, tmp_path / second)
    write_index(tmp_path, container, {"c": second, "a": first, "b": first})
    return tmp_path


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_single_file(tmp_path: Path, name: str) -> None:
    save_weights({"w": torch.rand(3)}, tmp_path / name)
    found = open_checkpoint(tmp_path)
    assert found.files == (name,)
    assert found.container == ("torch" if name.endswith(".bin") else "safetensors")
    assert found.file_bytes == {name: (tmp_path / name).stat().st_size}
    assert [record.name for record in found.tensors] == ["w"]


def test_shards(sharded: Path, container: str) -> None:
    found = open_checkpoint(sharded)
    assert found.files == SHARDS[container]
    assert found.container == container
    assert {record.name: record.file for record in found.tensors} == {
        "a": SHARDS[container][0],
        "b": SHARDS[container][0],
        "c": SHARDS[container][1],
    }
    assert found.file_bytes == {n: (sharded / n).stat().st_size for n in SHARDS[container]}


def test_order_of_preference(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        save_weights({name.split(".")[0]: torch.rand(2)}, tmp_path / name)
    for kind in ("safetensors", "torch"):
        write_index(tmp_path, kind, {"x": SHARDS[kind][0]})
        save_weights({"x": torch.rand(2)}, tmp_path / SHARDS[kind][0])
    seen = []
    for name in ("model.safetensors", INDEX["safetensors"], "pytorch_model.bin", INDEX["torch"]):
        seen.append(open_checkpoint(tmp_path).files[0])
        (tmp_path / name).unlink()
    assert seen == [
        "model.safetensors",
        SHARDS["safetensors"][0],
        "pytorch_model.bin",
        SHARDS["torch"][0],
    ]


def test_hub_cache_links_into_blobs(sharded: Path, container: str, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate([*SHARDS[container], INDEX[container]]):
        (sharded / name).rename(blobs / f"blob{number}")
        (snapshot / name).symlink_to(f"../../blobs/blob{number}")
    found = open_checkpoint(snapshot)
    assert found.files == SHARDS[container]
    assert [read_tensor(snapshot, record).numel() for record in found.tensors] == [2, 3, 4]


def test_dangling_link_is_no_absent_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../../blobs/gone")
    save_weights({"w": torch.rand(2)}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, r"model\.safetensors: expected a readable weight file, got No such file")


def test_pipe_and_folder_instead_of_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    refused(tmp_path, "expected a regular file")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, "expected a regular file")


def test_no_weights_lists_wanted_and_found(tmp_path: Path) -> None:
    refused(tmp_path, "found nothing")
    for name in ("config.json", "tf_model.h5"):
        (tmp_path / name).touch()
    refused(
        tmp_path,
        r"expected one of model\.safetensors, model\.safetensors\.index\.json, "
        r"pytorch_model\.bin, pytorch_model\.bin\.index\.json, found 'config.json', 'tf_model.h5'",
    )
    for number in range(20):
        (tmp_path / f"z{number}").touch()
    refused(tmp_path, "and 12 more")


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "expected a folder")


def test_shard_missing(sharded: Path, container: str) -> None:
    (sharded / SHARDS[container][1]).unlink()
    refused(sharded, rf"index\.json: .*there is no '{SHARDS[container][1]}'")


def test_tensor_named_by_the_index_alone(sharded: Path, container: str) -> None:
    first, second = SHARDS[container]
    write_index(sharded, container, {"a": first, "b": first, "c": second, "d": second})
    refused(sharded, f"{second}.* missing 'd'")


def test_tensor_of_no_index_entry(sharded: Path, container: str) -> None:
    first, second = SHARDS[container]
    write_index(sharded, container, {"a": first, "c": second})
    refused(sharded, f"{first}.* also holds 'b'")


def test_tensor_in_another_shard_than_named(sharded: Path, container: str) -> None:
    first, second = SHARDS[container]
    write_index(sharded, container, {"a": first, "b": second, "c": second})
    refused(sharded, f"{first}.* also holds 'b'")


def test_tensor_in_two_shards(sharded: Path, container: str) -> None:
    save_weights({"a": torch.rand(2), "c": torch.rand(4)}, sharded / SHARDS[container][1])
    refused(sharded, f"{SHARDS[container][1]}.* also holds 'a'")


@pytest.mark.parametrize(
    "shard",
    ["../x{}", "sub/x{}", "sub\\x{}", "/etc/x{}", "..", "", ".{}", "x\0{}", "x\n{}", "x.json", 5],
)
def test_shard_names_must_be_plain(sharded: Path, container: str, shard: object) -> None:
    suffix = ".bin" if container == "torch" else ".safetensors"
    name = shard.format(suffix) if isinstance(shard, str) else shard
    write_index(sharded, container, {"a": name})
    refused(sharded, "expected shards to be plain file names")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {}, "weight_map": {}}'])
def test_index_is_no_json_object(sharded: Path, container: str, text: str) -> None:
    (sharded / INDEX[container]).write_text(text)
    refused(sharded, "expected a JSON object")


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_index_without_weight_map(sharded: Path, container: str, weight_map: object) -> None:
    write_index(sharded, container, weight_map)
    refused(sharded, "expected weight_map")


def test_duplicate_tensor_in_the_index(sharded: Path, container: str) -> None:
    shard = SHARDS[container][0]
    (sharded / INDEX[container]).write_text(f'{{"weight_map": {{"a": "{shard}", "a": "{shard}"}}}}')
    refused(sharded, "the key 'a' appears twice")


def test_checkpoint_without_tensors(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "expected tensors in pytorch_model.bin, got none")
