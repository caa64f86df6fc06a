"""Torch .bin files in every usual form, compared tensor by tensor with torch.load."""

from __future__ import annotations

import random
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from quantkit.checkpoint.reading import read_tensor
from quantkit.checkpoint.torch_pickle import MAX_EXPANDED_BYTES, read_torch_index
from quantkit.errors import CheckpointError, UnsafePickleError
from quantkit.types import ITEM_BYTES, TensorRecord


def save(path: Path, value: object, **options: object) -> Path:
    torch.save(value, path, **options)
    return path


def assert_reads_as_torch(path: Path) -> dict[str, TensorRecord]:
    """Same names in the same order, and every tensor equal in type, shape and bytes."""
    expected = torch.load(path, weights_only=True)
    records = read_torch_index(path)
    assert [record.name for record in records] == list(expected)
    for record in records:
        want, got = expected[record.name].detach(), read_tensor(path.parent, record)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.is_contiguous()
        assert torch.equal(got, want)
    return {record.name: record for record in records}


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        read_torch_index(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


def test_state_dict_of_a_module_with_metadata(path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    assert hasattr(module.state_dict(), "_metadata")
    assert_reads_as_torch(save(path, module.state_dict()))


def test_plain_dict_and_parameters(path: Path) -> None:
    save(path, {"w": torch.nn.Parameter(torch.rand(2, 3)), "b": torch.rand(3)})
    assert_reads_as_torch(path)


def test_metadata_as_a_key_is_ignored(path: Path) -> None:
    save(path, {"_metadata": OrderedDict({"": {"version": 1}}), "w": torch.rand(3)})
    (record,) = read_torch_index(path)
    assert record.name == "w"


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_dtype(path: Path, dtype: str) -> None:
    save(path, {"w": torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, dtype))})
    record = assert_reads_as_torch(path)["w"]
    assert (record.dtype, record.nbytes, record.stride) == (dtype, 6 * ITEM_BYTES[dtype], None)


def test_scalars_and_empty_tensors(path: Path) -> None:
    base = torch.rand(4, 3)
    save(
        path,
        {
            "scalar": torch.tensor(1.5),
            "item": base[2, 1],
            "empty": torch.empty(0),
            "empty_2d": torch.empty(0, 3),
            "empty_view": base[4:],
            "empty_view_past_the_end": base[::3][1:, 1:][1:],
            "empty_view_of_every_other": base[4:, ::2],
        },
    )
    records = assert_reads_as_torch(path)
    assert records["item"].nbytes == 4
    assert records["empty_view"].nbytes == 0
    assert not any(record.stride for record in records.values())


def test_tied_tensors_share_their_bytes(path: Path) -> None:
    weight = torch.rand(4, 3)
    records = assert_reads_as_torch(save(path, {"in": weight, "out": weight, "row": weight[1]}))
    assert records["in"].offset == records["out"].offset
    assert records["row"].offset == records["in"].offset + 3 * 4


def test_views_cover_just_the_bytes_they_touch(path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    save(
        path,
        {
            "base": base,
            "transposed": base.t(),
            "rows": base[1:3],
            "columns": base[:, 2:4],
            "every_second": base[::2, ::3],
            "column": base[:, 5],
            "row_vector": base[2:3].t(),
            "expanded": base[:1].expand(5, 6),
        },
    )
    records = assert_reads_as_torch(path)
    start = records["base"].offset
    places = {name: (r.offset - start, r.nbytes, r.stride) for name, r in records.items()}
    assert places == {
        "base": (0, 96, None),
        "transposed": (0, 96, (1, 6)),
        "rows": (24, 48, None),
        "columns": (8, 80, (6, 1)),
        "every_second": (0, 64, (12, 3)),
        "column": (20, 76, (6,)),
        "row_vector": (48, 24, None),
        "expanded": (0, 24, (0, 1)),
    }


def test_size_one_dimensions_may_have_any_stride(path: Path) -> None:
    save(path, {"w": torch.arange(6).reshape(2, 3).as_strided((1, 3), (77, 1))})
    assert assert_reads_as_torch(path)["w"].stride is None


def test_permuted_convolution(path: Path) -> None:
    weight = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert assert_reads_as_torch(save(path, {"w": weight}))["w"].stride == (60, 1, 15, 3)


def test_more_tensors_than_a_pickle_batch(path: Path) -> None:
    assert_reads_as_torch(save(path, {f"layer.{i}.w": torch.tensor([i]) for i in range(2500)}))


def test_protocol_4(path: Path) -> None:
    save(path, torch.nn.Linear(2, 3).state_dict(), pickle_protocol=4)
    expected = torch.load(path, weights_only=False)  # made three lines above
    records = read_torch_index(path)
    assert {each.name for each in records} == expected.keys()
    for record in records:
        assert torch.equal(read_tensor(path.parent, record), expected[record.name])


def test_any_archive_name(tmp_path: Path) -> None:
    first = save(tmp_path / "pytorch_model-00001-of-00002.bin", {"w": torch.rand(3)})
    assert_reads_as_torch(first)
    assert_reads_as_torch(first.rename(tmp_path / "renamed.bin"))


@pytest.mark.parametrize("seed", range(10))
def test_random_views(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    tensors: dict[str, torch.Tensor] = {}
    for index in range(30):
        shape = [rng.randint(1, 6) for _ in range(rng.randint(0, 4))]
        view = torch.randint(0, 2, shape).to(getattr(torch, rng.choice(list(ITEM_BYTES))))
        view = view.permute(rng.sample(range(view.dim()), view.dim()))
        for dim in range(view.dim()):
            begin, step = rng.randint(0, view.shape[dim]), rng.randint(1, 3)
            chosen = [slice(None)] * dim + [slice(begin, rng.choice([None, 4]), step)]
            view = view[tuple(chosen)]
        tensors[f"t{index}"] = view
    assert_reads_as_torch(save(path, tensors))


@pytest.mark.parametrize(
    ("leaf", "match"),
    [
        (5, "key 'x', got a int"),
        ("text", "key 'x', got a str"),
        (None, "key 'x', got a NoneType"),
        ([torch.ones(2)], "key 'x', got a list"),
        ([torch.ones(2), torch.ones(2)], "key 'x', got a list"),
        ({"w": torch.ones(2)}, "key 'x', got a dict .*'w'.* inner state dict"),
        ({}, "key 'x', got a dict"),
    ],
)
def test_other_leaves_are_refused_by_key(path: Path, leaf: object, match: str) -> None:
    refused(save(path, {"w": torch.ones(2), "x": leaf}), match)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_training_checkpoints_are_explained(path: Path, key: str) -> None:
    refused(save(path, {key: {"w": torch.ones(2)}, "epoch": 3}), f"'{key}'.*training checkpoint")


@pytest.mark.parametrize("value", [torch.ones(2), [torch.ones(2)], "text", 5])
def test_a_file_that_is_no_dict(path: Path, value: object) -> None:
    refused(save(path, value), "expected a dict of tensors")


def test_keys_must_be_names(path: Path) -> None:
    refused(save(path, {5: torch.ones(2)}), "expected names as keys, got a int")


def test_other_attributes_on_the_dict(path: Path) -> None:
    state = OrderedDict(w=torch.ones(2))
    state.note = "hello"  # type: ignore[attr-defined]
    refused(save(path, state), "the attribute 'note'")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2).to(torch.uint16),
        torch.ones(2).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
    ],
    ids=["float8", "uint16", "sparse", "complex"],
)
def test_other_kinds_of_tensors_are_refused(path: Path, tensor: torch.Tensor) -> None:
    save(path, {"w": tensor})
    with pytest.raises(UnsafePickleError, match=r"the global 'torch"):
        read_torch_index(path)


def test_negated_views_are_not_read_as_their_bytes(path: Path) -> None:
    refused(save(path, {"w": torch._neg_view(torch.ones(2))}), "without hooks and metadata")


def test_a_whole_module_is_refused(path: Path) -> None:
    save(path, torch.nn.Linear(2, 2))
    with pytest.raises(UnsafePickleError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_torch_index(path)


def test_expanded_views_are_bounded(path: Path) -> None:
    save(path, {"w": torch.zeros(1).expand(MAX_EXPANDED_BYTES // 4 + 1)})
    refused(path, "expanded view")


def test_legacy_file_is_named(path: Path) -> None:
    save(path, {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    refused(path, r"a torch file from before 1\.6; .*save it again with a current torch")


def test_torchscript_is_named(path: Path) -> None:
    scripted = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    scripted.save(str(path))
    refused(path, "TorchScript")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "beginning with b''"),
        (b"<html>not found</html>", "beginning with b'<htm'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x80\x04N.", "bare pickle"),
        (bytes(257) + b"ustar\0" + bytes(300), "a tar"),
    ],
)
def test_files_that_are_no_zip(path: Path, content: bytes, match: str) -> None:
    path.write_bytes(content)
    refused(path, match)
