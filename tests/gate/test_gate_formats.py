"""Folders by others: GPTQ and AWQ packed here by hand, bitsandbytes by transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Converted
from safetensors.torch import load_file, save_file
from tiny import source_state, write_source, write_state
from torch import Tensor

import quantkit
from quantkit.errors import SourceError, UnsupportedModelError
from quantkit.gate.accounting import check_accounts
from quantkit.gate.decoding import decode_awq, decode_gptq, unpack
from quantkit.gate.opened import open_original, open_saved
from quantkit.source import open_source

GROUP = 32
LAX = ["gate.min_generation_agreement=0.0", "gate.min_top1_agreement=0.0"]
LAX += ["evaluation.new_tokens=2", "gate.max_perplexity_ratio=9.0", "gate.max_kl_mean=9.0"]


def rounded(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (out, in), zeros and scales (out, groups): plain rounding, asymmetric."""
    blocks = weight.float().reshape(weight.shape[0], -1, GROUP)
    low, high = blocks.amin(-1), blocks.amax(-1)
    scales = ((high - low) / (2**bits - 1)).half().float()
    zeros = (-low / scales).round().clamp(1, 2**bits - 1)
    codes = (blocks / scales[..., None] + zeros[..., None]).round().clamp(0, 2**bits - 1)
    return codes.reshape(weight.shape).int(), zeros.int(), scales


def pack(codes: Tensor, bits: int) -> Tensor:
    """Rows of codes as a stream of bits, lowest first, in words of 32: one by one."""
    rows = []
    for row in codes.tolist():
        stream = sum(code << (bits * at) for at, code in enumerate(row))
        words = [(stream >> (32 * at)) & 0xFFFFFFFF for at in range(len(row) * bits // 32)]
        rows.append([word - (1 << 32) if word >= 1 << 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def gptq_parts(weight: Tensor, bits: int, offset: int = 1) -> dict[str, Tensor]:
    codes, zeros, scales = rounded(weight, bits)
    return {
        "qweight": pack(codes, bits).T.contiguous(),
        "qzeros": pack((zeros.T - offset) & (2**bits - 1), bits),
        "scales": scales.T.half().contiguous(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }


def awq_parts(weight: Tensor) -> dict[str, Tensor]:
    codes, zeros, scales = rounded(weight, 4)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    shuffle = [8 * (at // 8) + order[at % 8] for at in range(weight.shape[0])]
    return {
        "qweight": pack(codes.T[:, shuffle], 4),
        "qzeros": pack(zeros.T[:, shuffle], 4),
        "scales": scales.T.half().contiguous(),
    }


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_gptq_decodes_to_what_was_rounded(bits: int, layout: str) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(bits))
    codes, zeros, scales = rounded(weight, bits)
    wanted = (codes.reshape(64, -1, GROUP) - zeros[..., None]).float() * scales[..., None]
    settings = {"bits": bits, "group_size": GROUP, "checkpoint_format": layout}
    parts = gptq_parts(weight, bits, offset=1 if layout == "gptq" else 0)
    assert torch.equal(decode_gptq(parts, settings), wanted.reshape(64, 96))


def test_awq_decodes_to_what_was_rounded() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    codes, zeros, scales = rounded(weight, 4)
    wanted = (codes.reshape(64, -1, GROUP) - zeros[..., None]).float() * scales[..., None]
    found = decode_awq(awq_parts(weight), {"bits": 4, "group_size": GROUP})
    assert torch.equal(found, wanted.reshape(64, 96))


def quantized(folder: Path, source: Path, model_type: str, method: str) -> Path:
    """``source`` as a stranger's tool writes it: layers packed, the head under a new name."""
    state = source_state(model_type, torch.float16)
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        module = name.removesuffix(".weight")
        if ".layers." in name and value.dim() == 2:
            parts = gptq_parts(value, 4) if method == "gptq" else awq_parts(value)
            made |= {f"{module}.{part}": each for part, each in parts.items()}
        elif name == "embed_out.weight":
            made["lm_head.weight"] = value
        else:
            made[name] = value
    shutil.copytree(source, folder)
    write_state(folder, made, "safetensors")
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": method, "bits": 4, "group_size": GROUP, "sym": False}
    more = {"checkpoint_format": "gptq"} if method == "gptq" else {"version": "gemm"}
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": settings | more})
    )
    return folder


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.json"
    drawn = torch.randint(0, 96, (3, 40), generator=torch.Generator().manual_seed(0))
    path.write_text(json.dumps(drawn.tolist()))
    return path


@pytest.mark.parametrize("more", [[], ["evaluation.by_layer=true"]])
def test_the_renamed_head_of_a_gptq_folder_is_found(
    tmp_path: Path, ids: Path, more: list[str]
) -> None:
    source = write_source(tmp_path / "source", "gpt_neox")
    folder = quantized(tmp_path / "out", source, "gpt_neox", "gptq")
    found = quantkit.check(folder, source, text=ids, set=[*LAX, *more])["gate"]
    assert found["levels"]["structure"] == "failed"
    assert found["failures"] == [
        "structure: renamed tensors: lm_head.weight at lm_head.weight, expected embed_out.weight"
    ]
    assert found["levels"]["reload"] == "passed", "the weights themselves are right"
    assert found["levels"]["perplexity"] == "passed"
    assert found["reload"]["modules_quantized"] == 8


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_good_folder_passes_and_one_doubled_scale_does_not(
    tmp_path: Path, ids: Path, method: str
) -> None:
    source = write_source(tmp_path / "source", "mistral")
    folder = quantized(tmp_path / "out", source, "mistral", method)
    good = quantkit.check(folder, source, text=ids, set=LAX)["gate"]
    assert good["failures"] == []
    assert good["status"] == "passed"

    name = "model.layers.1.mlp.up_proj.scales"
    change(folder, lambda state: state[name][1, 5].mul_(2))
    bad = quantkit.check(folder, source, text=ids, set=LAX)["gate"]
    assert bad["levels"]["reload"] == "failed"
    assert "up_proj" in bad["failures"][0]


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("group_size", None),
        ("group_size", "128x"),
        ("dynamic", [3]),
        ("dynamic", {"(((": {}}),
        ("dynamic", {"+:.*": {"modules_in_block_to_quantize": 3}}),
        ("modules_in_block_to_quantize", [3]),
    ],
)
def test_what_cannot_be_stated_is_a_finding(
    tmp_path: Path, ids: Path, method: str, key: str, value: object
) -> None:
    source = write_source(tmp_path / "source", "mistral")
    folder = quantized(tmp_path / "out", source, "mistral", method)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    found = quantkit.check(folder, source, text=ids, set=LAX)["gate"]
    assert found["levels"]["structure"] == "failed"
    assert key in found["failures"][0]


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "make"),
    [
        ("qweight", lambda q: q.long()),
        ("qweight", lambda q: q[:-1]),
        ("qweight", lambda q: q[:, :-1]),
        ("qzeros", lambda q: q.long()),
        ("qzeros", lambda q: torch.cat([q, q])),
        ("qzeros", lambda q: q[:, :-1]),
        ("scales", lambda s: s.float()),
        ("scales", lambda s: s[:-1]),
        ("scales", lambda s: s.T),
    ],
)
def test_a_part_of_awq_that_does_not_fit(
    tmp_path: Path, part: str, make: Callable[[Tensor], Tensor]
) -> None:
    source = write_source(tmp_path / "source", "mistral")
    folder = quantized(tmp_path / "out", source, "mistral", "awq")
    assert structure(source, folder) == []
    name = f"model.layers.1.mlp.up_proj.{part}"
    change(folder, lambda state: state.update({name: make(state[name]).contiguous()}))
    (said,) = structure(source, folder)
    assert said.startswith(f"structure: {part}: ")
    assert f" at {name}, expected " in said
    change(folder, lambda state: state.pop(name))
    assert any(each.startswith(f"structure: {part}: missing") for each in structure(source, folder))


def structure(source: Path, folder: Path) -> list[str]:
    original = open_original(open_source(source))
    return [str(each) for each in check_accounts(open_saved(folder), original, {}).failures]


def test_a_head_stored_under_both_names(tmp_path: Path, ids: Path) -> None:
    """Alike it is no fault, and unlike it is: which of them is loaded depends on the loader."""
    source = write_source(tmp_path / "source", "gpt_neox")
    folder = quantized(tmp_path / "out", source, "gpt_neox", "gptq")
    change(folder, lambda s: s.update({"embed_out.weight": s["lm_head.weight"].clone()}))
    assert quantkit.check(folder, source, text=ids, set=LAX)["gate"]["failures"] == []
    change(folder, lambda s: s["lm_head.weight"].zero_())
    found = quantkit.check(folder, source, text=ids, set=LAX)["gate"]
    assert found["levels"]["structure"] == "failed"
    assert "tensors for one weight" in found["failures"][0]


def test_words_need_not_hold_a_whole_number_of_codes() -> None:
    assert unpack(torch.zeros(2, 5, dtype=torch.int32), 3).shape == (2, 53)


@pytest.mark.parametrize(
    ("bits", "storage"),
    [("load_in_4bit", "uint8"), ("load_in_4bit", "bfloat16"), ("load_in_8bit", "uint8")],
)
def test_a_folder_that_transformers_wrote(
    tmp_path: Path, ids: Path, bits: str, storage: str
) -> None:
    """Packed codes in a float's type (as FSDP wants them) are no numbers, and may look like NaN."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings: dict[str, Any] = {bits: True, "bnb_4bit_quant_storage": storage}
    if bits == "load_in_4bit":
        settings |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float16}
    source = write_source(tmp_path / "source", "gpt_neox")
    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=torch.float16,
        quantization_config=BitsAndBytesConfig(**settings),
        device_map="cpu",
    )
    out = tmp_path / "out"
    model.save_pretrained(out)
    if storage != "uint8":
        packed = load_file(out / "model.safetensors").values()
        assert any(each.dtype.is_floating_point and not each.isfinite().all() for each in packed)
    for more in ([], ["evaluation.by_layer=true"]):
        found = quantkit.check(out, source, text=ids, set=[*LAX, *more])["gate"]
        assert found["failures"] == []
        assert found["levels"]["structure"] == "passed"
        assert found["status"] == "passed"
    change(out, lambda state: state["gpt_neox.final_layer_norm.weight"].fill_(torch.nan))
    said = quantkit.check(out, source, text=ids, set=LAX)["gate"]["failures"]
    assert any(
        each.startswith("structure: values: NaN or infinite at gpt_neox.final") for each in said
    )


def test_an_unknown_method_is_refused_by_name(tmp_path: Path, ids: Path) -> None:
    source = write_source(tmp_path / "source", "mistral")
    folder = quantized(tmp_path / "out", source, "mistral", "gptq")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "hqq"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(quantkit.QuantkitError, match="hqq"):
        quantkit.check(folder, source, recipe="bnb-nf4", text=ids)


def in_pickles(folder: Path, copy: Path) -> Path:
    """The folder with its weights in a .bin instead."""
    shutil.copytree(folder, copy)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    return copy


def test_no_pickle_of_a_strangers_is_run(
    tmp_path: Path, demo: Path, demo_nf4: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantkit.convert(demo, "fp16", tmp_path / "plain", no_gate=True)
    plain = in_pickles(tmp_path / "plain", tmp_path / "plain-bin")
    packed = in_pickles(demo_nf4.folder, tmp_path / "nf4-bin")
    seen: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: seen.append(args) or {})
    few = ["evaluation.max_windows=2", "evaluation.new_tokens=2"]
    found = quantkit.check(plain, demo, text=demo / "heldout.txt", set=few)
    assert found["gate"]["status"] == "passed", found["gate"]
    with pytest.raises(UnsupportedModelError, match=r"weights in a \.bin.*runs no pickle"):
        quantkit.check(packed, demo, set=few)
    assert not seen


def setting(**values: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], object]:
    """A change of what ``quantization_config`` states; ``None`` takes a key out."""

    def change(settings: dict[str, Any], _: dict[str, Tensor]) -> None:
        settings |= values
        for key in [key for key, value in values.items() if value is None]:
            del settings[key]

    return change


def shuffled(settings: dict[str, Any], state: dict[str, Tensor]) -> None:
    for name in [name for name in state if name.endswith("g_idx")]:
        state[name] = state[name].flip(0)


def with_packed_head(settings: dict[str, Any], state: dict[str, Tensor]) -> None:
    make = awq_parts if settings["quant_method"] == "awq" else lambda head: gptq_parts(head, 4)
    state |= {f"lm_head.{part}": each for part, each in make(state.pop("lm_head.weight")).items()}


def with_packed_norm(settings: dict[str, Any], state: dict[str, Tensor]) -> None:
    state["model.norm.qweight"] = torch.zeros(8, 8, dtype=torch.int32)


@pytest.mark.parametrize(
    ("method", "edit", "said"),
    [
        ("gptq", setting(sym=None), "sym: model"),
        ("gptq", shuffled, "desc_act: model"),
        ("gptq", setting(lm_head=True), "true at lm_head"),
        ("gptq", setting(block_name_to_quantize="model.other"), "block_name_to_quantize"),
        ("gptq", setting(block_name_to_quantize=["model.layers"]), "block_name_to_quantize"),
        ("gptq", setting(modules_to_not_convert=["up_proj"]), "modules_to_not_convert: model"),
        ("awq", setting(modules_to_not_convert=["up_proj"]), "modules_to_not_convert: model"),
        ("awq", setting(zero_point=False), "zero_point: model"),
        ("awq", setting(zero_point="no"), "zero_point"),
        ("awq", setting(group_size=48), "a divisor of 64"),
        ("gptq", with_packed_head, "lm_head: true"),
        ("awq", with_packed_head, "lm_head: true"),
        ("gptq", with_packed_norm, "parts: quantized (qweight) at model.norm.weight"),
        ("awq", with_packed_norm, "parts: quantized (qweight) at model.norm.weight"),
        ("gptq", setting(load_in_4bit=True), "tensors without a place"),
    ],
)
def test_what_loaders_would_read_otherwise(
    tmp_path: Path,
    method: str,
    edit: Callable[[dict[str, Any], dict[str, Tensor]], object],
    said: str,
) -> None:
    source = write_source(tmp_path / "source", "mistral")
    folder = quantized(tmp_path / "out", source, "mistral", method)
    assert structure(source, folder) == []
    config = json.loads((folder / "config.json").read_text())
    change(folder, lambda state: edit(config["quantization_config"], state))
    (folder / "config.json").write_text(json.dumps(config))
    assert any(said in each for each in structure(source, folder))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_is_declared_as_it_is_stored_is_no_fault(tmp_path: Path, method: str) -> None:
    source = write_source(tmp_path / "source", "mistral")
    folder = quantized(tmp_path / "out", source, "mistral", method)
    config = json.loads((folder / "config.json").read_text())
    settings = config["quantization_config"]
    settings |= {"lm_head": True, "block_name_to_quantize": "model.layers", "zero_point": True}
    change(folder, lambda state: with_packed_head(settings, state))
    (folder / "config.json").write_text(json.dumps(config))
    assert structure(source, folder) == []


@pytest.mark.parametrize(
    "stated", [{"version": "gemv"}, {"version": None, "format": "gemv"}, {"backend": "llm-awq"}]
)
def test_awq_in_a_layout_that_is_not_decoded(stated: dict[str, Any]) -> None:
    parts = awq_parts(torch.randn(64, 96))
    with pytest.raises(UnsupportedModelError, match="gemm layout"):
        decode_awq(parts, {"bits": 4, "group_size": GROUP, **stated})
    decode_awq(parts, {"bits": 4, "group_size": GROUP, "version": "GEMM"})


@pytest.mark.parametrize("stated", [{}, {"bits": 4}, {"quant_method": None, "bits": 4}])
def test_a_quantization_without_a_name_is_refused(tmp_path: Path, stated: dict[str, Any]) -> None:
    """transformers stops at it, and one layer at a time nothing else would show that."""
    source = write_source(tmp_path / "source", "mistral")
    folder = shutil.copytree(source, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    with pytest.raises(SourceError, match="quant_method"):
        open_saved(folder)
    if stated != {"bits": 4}:
        with pytest.raises(SourceError, match="already quantized"):
            open_source(folder)


def test_a_tied_head_is_its_embedding(tmp_path: Path) -> None:
    """transformers 5 loads both where they are unlike, and others tie them all the same."""
    source = write_source(tmp_path / "source", "gpt2")
    folder = shutil.copytree(source, tmp_path / "out")
    state = source_state("gpt2", torch.float16)
    embedding = next(name for name in state if name.endswith("wte.weight"))
    write_state(folder, state | {"lm_head.weight": state[embedding].clone()}, "safetensors")
    assert structure(source, folder) == []
    other = state[embedding].clone()
    other[3] *= 1.5
    write_state(folder, state | {"lm_head.weight": other}, "safetensors")
    (said,) = structure(source, folder)
    assert said.startswith("structure: tensors for one weight: unlike at lm_head.weight")


def test_a_folder_names_its_class(tmp_path: Path) -> None:
    """transformers does without the name; vLLM does not."""
    bare = write_source(tmp_path / "bare", "mistral")
    source = shutil.copytree(bare, tmp_path / "source")
    named = ["MistralForCausalLM"]
    config = json.loads((source / "config.json").read_text()) | {"architectures": named}
    (source / "config.json").write_text(json.dumps(config))
    assert structure(source, bare) == [
        f"structure: config.json: None at architectures, expected {named}"
    ]
    assert structure(bare, source) == [], "a source may leave it out"
