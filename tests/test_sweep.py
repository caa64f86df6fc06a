"""The sweep: one layer at a time gives what the whole model gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, FalconH1Config, GitConfig

from quantkit.calls import Call, does_not_run, same
from quantkit.errors import UnsupportedModelError, explained
from quantkit.skeleton import build_empty, layer_names
from quantkit.sweep import Sweep

WINDOWS = [[5, 9, 2, 40, 33, 7], [1, 2, 3, 4, 5, 6], [90, 11], [8, 8, 3, 2, 6, 60]]

#: Shapes beside those of ``tiny``: layers that return tuples, ALiBi, two kinds of attention.
MORE: dict[str, dict[str, object]] = {
    "bloom": {"vocab_size": 96, "hidden_size": 64, "n_layer": 3, "n_head": 4},
    "gemma2": {
        "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "sliding_window": 3,
    },
    "gptj": {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "phi": {
        "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128,
    },
}  # fmt: skip


def whole(model_type: str):
    tiny.CONFIGS.update(MORE)
    return tiny.build(model_type, torch.float32)


def loader(model):
    state = model.state_dict()

    def load(names: Sequence[str]) -> Mapping[str, Tensor]:
        return {name: state[name].clone() for name in names}

    return load


@pytest.mark.parametrize("model_type", [*tiny.CONFIGS, *MORE])
@pytest.mark.parametrize("room", [1 << 30, 0])
def test_logits_are_the_whole_models(model_type: str, room: int, tmp_path: Path) -> None:
    model = whole(model_type)
    empty = build_empty(model.config, "float32", with_buffers=True)
    with Sweep(empty, loader(model), WINDOWS, tmp_path, room=room) as sweep:
        names = [layer.name for layer in sweep.layers()]
        swept = [sweep.logits(at) for at in range(len(WINDOWS))]
    assert names == list(layer_names(model))
    for ids, got in zip(WINDOWS, swept, strict=True):
        with torch.inference_mode():
            assert torch.equal(got, model(input_ids=torch.tensor([ids])).logits[0])


def test_one_layer_alone_that_returns_a_tuple(tmp_path: Path) -> None:
    config = FalconH1Config(
        vocab_size=96, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, head_dim=16,
        num_key_value_heads=4, intermediate_size=128, mamba_d_ssm=64, mamba_n_heads=4,
        mamba_d_head=16, mamba_d_state=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    empty = build_empty(config, "float32", with_buffers=True)
    with Sweep(empty, loader(model), WINDOWS[:1], tmp_path) as sweep, torch.inference_mode():
        assert len([*sweep.layers()]) == 1
        whole = model(input_ids=torch.tensor(WINDOWS[:1]), use_cache=False).logits[0]
        assert torch.equal(sweep.logits(0), whole)


@pytest.mark.parametrize("deep", [4, 2])
def test_a_tower_that_sees_is_not_walked(deep: int) -> None:
    """Deeper than the language model, or as deep."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = GitConfig(
        vision_config={**sizes, "num_hidden_layers": deep, "image_size": 32, "patch_size": 16},
        **sizes, vocab_size=96, num_hidden_layers=2,
    )  # fmt: skip
    names = layer_names(build_empty(config, "float32"))
    assert names == ("git.encoder.layer.0", "git.encoder.layer.1")


@pytest.mark.parametrize("room", [1 << 30, 0])
@pytest.mark.parametrize("model_type", [*tiny.CONFIGS, *MORE])
def test_texts_side_by_side(model_type: str, room: int, tmp_path: Path) -> None:
    """Two texts of one length together come out of every layer as each does alone."""
    model = whole(model_type)
    empty = build_empty(model.config, "float32", with_buffers=True)
    pairs = [[WINDOWS[0], WINDOWS[1]], [WINDOWS[3], WINDOWS[0]]]

    def outputs(windows: Sequence[object], folder: Path) -> list[list[Tensor]]:
        sweep = Sweep(empty, loader(model), windows, folder, room=room, to_logits=False)
        with sweep, torch.inference_mode():
            return [[layer.run(at) for at in layer.windows] for layer in sweep.layers()]

    together = outputs(pairs, tmp_path)
    empty = build_empty(model.config, "float32", with_buffers=True)
    apart = outputs([each for pair in pairs for each in pair], tmp_path)
    for both, alone in zip(together, apart, strict=True):
        for at, each in enumerate(alone):
            assert torch.allclose(both[at // 2][at % 2], each[0], rtol=1e-5, atol=1e-5)


def test_a_changed_layer_changes_what_follows(tmp_path: Path) -> None:
    model = whole("llama")
    empty = build_empty(model.config, "float32", with_buffers=True)
    with Sweep(empty, loader(model), WINDOWS, tmp_path) as sweep:
        for layer in sweep.layers():
            if layer.index == 1:
                layer.module.mlp.down_proj.weight.data.zero_()
        swept = sweep.logits(0)
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    with torch.inference_mode():
        assert torch.equal(swept, model(input_ids=torch.tensor(WINDOWS[:1])).logits[0])


def test_the_models_own_layers_stay_empty(tmp_path: Path) -> None:
    """Memory is one layer: nothing of a walked layer is kept."""
    model = whole("gpt_neox")
    empty = build_empty(model.config, "float32", with_buffers=True)
    with Sweep(empty, loader(model), WINDOWS, tmp_path) as sweep:
        for _ in sweep.layers():
            inside = [
                value for name in layer_names(empty)
                for value in empty.get_submodule(name).parameters()
            ]  # fmt: skip
            assert all(value.is_meta for value in inside)


@pytest.mark.parametrize("model_type", ["gpt_neox", "gpt2"], ids=["untied", "tied"])
def test_all_else_is_let_go_while_layers_are_walked(model_type: str, tmp_path: Path) -> None:
    """An embedding and a head may weigh as much as many layers; for logits the head comes back."""
    model = whole(model_type)
    empty = build_empty(model.config, "float32", with_buffers=True)
    asked: list[str] = []

    def load(names: Sequence[str]) -> Mapping[str, Tensor]:
        asked.extend(names)
        return loader(model)(names)

    with Sweep(empty, load, WINDOWS, tmp_path) as sweep:
        assert not empty.get_output_embeddings().weight.is_meta
        for _ in sweep.layers():
            assert all(value.is_meta for value in empty.parameters())
        asked.clear()
        sweep.logits(0)
        embedding = (
            "gpt_neox.embed_in.weight" if model_type == "gpt_neox" else "transformer.wte.weight"
        )
        assert asked
        assert embedding not in asked, "nothing is to enter any more"
        asked.clear()
        sweep.logits(1)
        assert not asked, "it is read once"


def test_logits_that_are_made_of_the_embeddings_too(tmp_path: Path) -> None:
    model = whole("gpt_neox")

    def with_embeddings(made):
        inner = made.forward

        def forward(input_ids, **kwargs):
            found = inner(input_ids=input_ids, **kwargs)
            found.logits += made.get_input_embeddings()(input_ids).mean(-1, keepdim=True)
            return found

        made.forward = forward
        return made

    empty = with_embeddings(build_empty(model.config, "float32", with_buffers=True))
    with Sweep(empty, loader(model), WINDOWS, tmp_path) as sweep:
        list(sweep.layers())
        swept = [sweep.logits(at) for at in range(len(WINDOWS))]
    with_embeddings(model)
    for ids, got in zip(WINDOWS, swept, strict=True):
        with torch.inference_mode():
            assert torch.equal(got, model(input_ids=torch.tensor([ids])).logits[0])


def test_a_model_that_gives_nan_gives_nan(tmp_path: Path) -> None:
    model = whole("gpt_neox")
    model.lm_head.weight.data[7] = torch.nan
    empty = build_empty(model.config, "float32", with_buffers=True)
    with Sweep(empty, loader(model), WINDOWS, tmp_path) as sweep:
        list(sweep.layers())
        swept = sweep.logits(0)
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor(WINDOWS[:1])).logits[0]
    assert torch.equal(swept.isnan(), wanted.isnan())
    assert torch.equal(swept.nan_to_num(0.0), wanted.nan_to_num(0.0))


@pytest.mark.parametrize(
    "windows", [WINDOWS, WINDOWS[:1], [[1, 2], *WINDOWS]], ids=["alike", "one", "another first"]
)
def test_a_model_that_tells_its_layers_the_ids_is_refused(
    tmp_path: Path, windows: list[list[int]]
) -> None:
    model = whole("llama")
    empty = build_empty(model.config, "float32", with_buffers=True)
    inner = empty.model.forward

    def forward(input_ids, **kwargs):
        return inner(input_ids, secret=input_ids, **kwargs)

    empty.model.forward = forward
    with pytest.raises(UnsupportedModelError, match="token ids themselves"):
        Sweep(empty, loader(model), windows, tmp_path).__enter__()


def test_a_models_own_error_is_told_from_the_machines() -> None:
    model = partial(does_not_run, torch.nn.Linear(2, 2))
    own = "Linear: transformers' own code does not run"
    with pytest.raises(UnsupportedModelError, match=own), explained(model):
        torch.empty(3).view(2)
    with pytest.raises(RuntimeError, match="can't allocate memory"), explained(model):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_calls_are_alike_to_the_last_bit() -> None:
    ones = torch.ones(2)
    for other in (torch.ones(3), torch.zeros(2), None, 1, (ones,)):
        assert not same(Call((ones,), {}), Call((other,), {}))
        assert not same(Call((other,), {}), Call((ones,), {}))
    for one in ((ones,), [ones], {"at": 3}):
        assert not same(Call((one,), {}), Call((None,), {}))
    assert not same(Call((ones,), {}), Call((ones.half(),), {}))
    assert not same(Call((), {"at": 3}), Call((), {"at": 4}))
    assert not same(Call((), {"at": 1}), Call((), {"at": True}))
    assert same(Call((ones, None), {"at": 3}), Call((ones.clone(), None), {"at": 3}))
