"""The fingerprint: the same tensors in any files have one, and one other bit has another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tiny import write_state

from quantkit.checkpoint import open_checkpoint
from quantkit.checkpoint.fingerprint import TensorDigest, fingerprint
from quantkit.checkpoint.stream import SEGMENT_BYTES, stream_checkpoint
from quantkit.types import Fingerprint

State = Mapping[str, torch.Tensor]


def state(dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Values of eight bits, so that each type of two bytes holds them; some in two segments."""
    made = torch.Generator().manual_seed(7)
    values = torch.randint(-128, 128, (1100, 1024), generator=made)
    found = {
        "a.weight": values.to(dtype) / 64,
        "b.weight": (values.T[:32] + 1).contiguous().to(dtype) / 64,
        "b.bias": values[5].to(dtype),
        "mask": torch.ones(1, 1, 8, 8, dtype=torch.bool).tril(),
        "scalar": torch.tensor(-0.0, dtype=dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
    }
    assert found["a.weight"].nbytes > SEGMENT_BYTES or dtype.itemsize < 2
    return found


def taken(
    folder: Path, tensors: State, container: str = "safetensors", shards: int = 1
) -> Fingerprint:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    write_state(folder, tensors, container, shards)
    return stream_checkpoint(
        folder, open_checkpoint(folder), md5=lambda name, size: False
    ).fingerprint


@pytest.fixture
def known(tmp_path: Path) -> Fingerprint:
    return taken(tmp_path / "known", state())


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("shards", [1, 3])
def test_container_shards_and_order_play_no_part(
    tmp_path: Path, known: Fingerprint, container: str, shards: int
) -> None:
    backwards = dict(reversed(state().items()))
    assert taken(tmp_path / "other", backwards, container, shards) == known


def test_a_strided_tensor_is_its_values(tmp_path: Path, known: Fingerprint) -> None:
    tensors = state()
    tensors["a.weight"] = tensors["a.weight"].T.contiguous().T
    assert not tensors["a.weight"].is_contiguous()
    assert taken(tmp_path / "other", tensors, "torch") == known


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_exact_cast_has_the_same_values(
    tmp_path: Path, known: Fingerprint, dtype: torch.dtype
) -> None:
    cast = taken(tmp_path / "other", state(dtype))
    assert cast.tensors != known.tensors
    assert cast.values == known.values
    assert cast.matrices == known.matrices


def test_a_cast_that_loses_something_is_another(tmp_path: Path) -> None:
    """Eleven bits of float16 do not fit into bfloat16's eight."""
    fine = state() | {"a.weight": torch.full((8, 8), 1 + 2**-10, dtype=torch.float16)}
    cast = {n: t.bfloat16() if t.dtype == torch.float16 else t for n, t in fine.items()}
    one, other = taken(tmp_path / "one", fine), taken(tmp_path / "other", cast)
    assert one.values != other.values
    assert one.matrices != other.matrices


@pytest.mark.parametrize("value", [2**-30, 70000.0, float("inf"), float("nan"), -0.0], ids=str)
def test_odd_values_survive_the_way_to_float32(tmp_path: Path, value: float) -> None:
    """Smaller and larger than float16 can, and what is equal to nothing."""
    wide = {"w": torch.full((4, 4), value, dtype=torch.bfloat16)}
    cast = {"w": wide["w"].float()}
    one, other = taken(tmp_path / "one", wide), taken(tmp_path / "other", cast)
    assert one.values == other.values
    zero = {"w": torch.zeros((4, 4), dtype=torch.bfloat16)}
    assert taken(tmp_path / "zero", zero).values != one.values


def test_names_and_buffers_leave_the_matrices(tmp_path: Path, known: Fingerprint) -> None:
    tensors = state()
    renamed = {f"model.{n}": t for n, t in tensors.items() if n not in ("mask", "scalar")}
    renamed["copy.of.a"] = tensors["a.weight"].clone()  # a tie written out
    found = taken(tmp_path / "other", renamed)
    assert found.tensors != known.tensors
    assert found.values != known.values
    assert found.matrices == known.matrices


@pytest.mark.parametrize("name", ["a.weight", "b.weight", "b.bias", "mask", "scalar"])
@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_one_other_bit_is_another_model(
    tmp_path: Path, known: Fingerprint, name: str, container: str
) -> None:
    tensors = state()
    tensors[name].reshape(-1).view(torch.uint8)[-1] ^= 1
    found = taken(tmp_path / "other", tensors, container)
    assert found.tensors != known.tensors
    assert found.values != known.values
    assert (found.matrices == known.matrices) == (name not in ("a.weight", "b.weight"))


def test_a_shape_is_part_of_it(tmp_path: Path, known: Fingerprint) -> None:
    tensors = state()
    tensors["a.weight"] = tensors["a.weight"].reshape(1024, 1100)
    found = taken(tmp_path / "other", tensors)
    assert {found.tensors, found.values, found.matrices} & {
        known.tensors, known.values, known.matrices
    } == set()  # fmt: skip


def test_tied_and_partly_shared_storages(tmp_path: Path) -> None:
    """In a .bin two tensors may be of one storage, and a third of a part of it."""
    base = torch.arange(2048, dtype=torch.float32).reshape(64, 32)
    shared = {"a": base, "b": base, "part": base[3:9]}
    apart = {name: value.clone() for name, value in shared.items()}
    assert taken(tmp_path / "one", shared, "torch") == taken(tmp_path / "two", apart)


def test_what_registries_and_manifests_hold_stays_what_it_is() -> None:
    """Another form of it would recognize no release that is listed (``FORM``)."""
    matrix = TensorDigest("w", "float32", (2, 3), "0" * 64, "float16", "1" * 64)
    mask = TensorDigest("mask", "bool", (2, 2), "2" * 64, "bool", "2" * 64)
    assert fingerprint([mask, matrix]) == Fingerprint(
        tensors="f19ce443738aaea0cc05aa48d9e8b4aa21a4329279dc3121f8fd19b8207ccd16",
        values="74b6ecea67b629149e5948af3f5fa60bd132d086a39d51f159fa8b0a73afeb7a",
        matrices="61214fc0cc75d78081b227d9c97ebeed88386666848223aff513a53bfd87ecb4",
    )
    assert fingerprint([matrix]).matrices == fingerprint([mask, matrix]).matrices
    assert fingerprint([mask]).matrices != fingerprint([]).matrices, "of no matrices, all"
