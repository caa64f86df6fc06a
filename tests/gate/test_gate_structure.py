"""Each rule of the structure level alone, on a file of a few numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from quantkit.checkpoint import open_checkpoint
from quantkit.gate.structure import _config, _forms, _names, _sizes, nonfinite
from quantkit.types import OutputTensor, TensorRecord

INFINITE = float("inf")


def said(folder: Path, **tensors: Tensor) -> list[str]:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return [each.where for each in nonfinite(folder, open_checkpoint(folder))]


@pytest.mark.parametrize("value", [INFINITE, -INFINITE, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_number_that_is_none(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    good = torch.linspace(-1, 1, 9, dtype=dtype)
    bad = good.clone()
    bad[4] = value
    assert said(tmp_path, bad=bad, good=good, empty=good[:0]) == ["bad"]


def test_packed_codes_in_a_floats_type_are_no_numbers(tmp_path: Path) -> None:
    table, codes = torch.ones(16), torch.full((4,), INFINITE, dtype=torch.float16)
    assert said(tmp_path, **{"w": codes, "w.quant_map": table, "n": torch.ones(2)}) == []
    assert said(tmp_path, **{"w": codes, "v.quant_map": table}) == ["w"]
    assert said(tmp_path, **{"w": codes, "w.quant_map": table * INFINITE}) == ["w.quant_map"]


def test_names_that_lack_and_names_too_many() -> None:
    assert list(_names({"a", "b"}, {"b", "a"})) == []
    found = [str(each) for each in _names({"a", "b", "c"}, {"c", "d"})]
    assert found == [
        "structure: missing tensors: 2 at a, expected 0",
        "structure: unplanned tensors: 1 at d, expected 0",
    ]


@pytest.mark.parametrize(
    ("dtype", "shape", "variable", "fails"),
    [
        ("float16", (2, 3), False, False),
        ("bfloat16", (2, 3), False, True),
        ("float16", (3, 2), False, True),
        ("float16", (3, 2), True, False),
        ("bfloat16", (3, 2), True, True),
    ],
)
def test_a_tensors_form(dtype: str, shape: tuple[int, ...], variable: bool, fails: bool) -> None:
    want = {"w": OutputTensor("w", "float16", (2, 3), 12, variable), "gone": None}
    got = {"w": TensorRecord("w", dtype, shape, "f", 0, 12), "more": None}
    found = list(_forms(want, got))  # type: ignore[arg-type]
    assert [each.where for each in found] == (["w"] if fails else [])


@pytest.mark.parametrize(
    ("size", "fails"), [(89, True), (90, False), (100, False), (101, True), (None, True)]
)
def test_a_files_size(size: int | None, fails: bool) -> None:
    plan = SimpleNamespace(shards=[SimpleNamespace(name="f", nbytes=100, slack=10)])
    index = SimpleNamespace(file_bytes={} if size is None else {"f": size})
    found = [str(each) for each in _sizes(index, plan)]  # type: ignore[arg-type]
    assert found == (
        [f"structure: file size: {size or 0} bytes at f, expected 90 to 100"] if fails else []
    )


@pytest.mark.parametrize(
    ("written", "where"),
    [
        ({"a": 1, "b": None}, []),
        ({"a": 2}, ["a"]),
        ({}, ["a"]),
        ({"a": 1, "c": 3}, ["c"]),
        ("[", [""]),
        ("[1]", [""]),
    ],
)
def test_every_key_of_the_config(tmp_path: Path, written: Any, where: list[str]) -> None:
    text = written if isinstance(written, str) else json.dumps(written)
    (tmp_path / "config.json").write_text(text)
    plan = SimpleNamespace(config={"a": 1})
    assert [each.where for each in _config(tmp_path, plan)] == where  # type: ignore[arg-type]
