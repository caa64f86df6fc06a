"""What of a layer is final is computed once a window, and given again as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

import quantkit
from quantkit import layer as layers
from quantkit.layer import Layer
from quantkit.skeleton import build_empty
from quantkit.sweep import Sweep

WINDOWS = [[5, 9, 2, 40, 33, 7], [1, 2, 3, 4, 5, 6], [90, 11], [8, 8, 3, 2, 6, 60]]

#: A first part of the quantized modules, as they run, by shape.
FIRST = {
    "llama": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    "gpt_neox": ["attention.query_key_value", "attention.dense"],
    "gpt2": ["attn.c_attn", "attn.c_proj"],
    "opt": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"],
}

#: The rest.
REST = {
    "llama": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    "gpt_neox": ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    "gpt2": ["mlp.c_fc", "mlp.c_proj"],
    "opt": ["fc1", "fc2"],
}


def counted(module: nn.Module) -> list[int]:
    """A list that grows with each call of ``module``'s own forward."""
    seen: list[int] = []
    compute = module.forward

    def forward(*args, **kwargs):
        seen.append(1)
        return compute(*args, **kwargs)

    module.forward = forward
    return seen


def walked(model_type: str, folder: Path, room: int) -> Sweep:
    model = tiny.build(model_type, torch.float32)
    state = model.state_dict()
    empty = build_empty(model.config, "float32", with_buffers=True)
    return Sweep(
        empty, lambda names: {n: state[n].clone() for n in names}, WINDOWS, folder, room=room
    )


def outputs(layer: Layer) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [layer.run(window) for window in layer.windows]


@pytest.mark.parametrize("room", [1 << 30, 0])
@pytest.mark.parametrize("model_type", FIRST)
def test_kept_outputs_are_those_computed(model_type: str, room: int, tmp_path: Path) -> None:
    first, rest = FIRST[model_type], REST[model_type]
    with walked(model_type, tmp_path, room) as sweep:
        for layer in sweep.layers():
            plain = outputs(layer)
            calls = counted(layer.module.get_submodule(first[-1]))
            layer.keep(first[:1], first[1:] + rest)  # alone: its parent still changes
            layer.keep(first, rest)  # now the whole attention block is final
            for _ in range(3):
                assert all(map(torch.equal, outputs(layer), plain))
            assert len(calls) == len(WINDOWS)


def test_a_changed_weight_shows_where_it_is_not_kept(tmp_path: Path) -> None:
    with walked("llama", tmp_path, 0) as sweep:
        layer = next(iter(sweep.layers()))
        plain = outputs(layer)
        layer.keep(FIRST["llama"], REST["llama"])
        outputs(layer)
        layer.weight("mlp.down_proj").zero_()
        assert not torch.equal(outputs(layer)[0], plain[0])
        layer.weight("self_attn.o_proj").zero_()  # too late
        changed = outputs(layer)
        assert all(map(torch.equal, outputs(layer), changed))


@pytest.mark.parametrize("limit", [0, 6 * 64 * 4])
def test_no_room_for_what_is_kept_changes_no_byte(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.write_source(tmp_path / "source", "gpt_neox", torch.float16)
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([[(at * 7 + n) % 96 for n in range(32)] for at in range(6)]))
    written = []
    for kept in (layers.KEPT_BYTES, limit):
        monkeypatch.setattr(layers, "KEPT_BYTES", kept)
        out = tmp_path / f"out-{kept}"
        quantkit.convert(
            source, "gptq-4bit-g128", out, calibration=ids, no_gate=True,
            set=["method.group_size=32", "calibration.length=32", "calibration.packing=apart"],
        )  # fmt: skip
        written.append((out / "model.safetensors").read_bytes())
    assert written[0] == written[1]
