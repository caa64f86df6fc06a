"""The plan: every tensor once, every byte known before it is written, and nothing else done."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commanding import command
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, source_state, write_source, write_state
from transformers import AutoConfig, AutoModelForCausalLM

import quantkit
from quantkit.checkpoint.safetensors_header import read_safetensors_header
from quantkit.errors import NonFiniteError, SourceError, UnsupportedModelError

RECIPES = ("bnb-nf4", "bnb-nf4-double", "bnb-fp4", "bnb-int8", "fp16")
OUTPUT = "layers.1.attention.dense"


def convert(source: Path, recipe: str, out: Path, *overrides: str) -> dict[str, object]:
    return quantkit.convert(source, recipe, out, no_gate=True, set=overrides)


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: value
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_plan_is_what_happens(tmp_path: Path, model_type: str, recipe: str) -> None:
    source = write_source(tmp_path / "source", model_type, drop_tied=False)
    plan = quantkit.plan(source, recipe)
    names = [each.source.name for each in plan.tensors]
    assert sorted(names) == sorted(load_file(source / "model.safetensors"))
    assert all(each.reason for each in plan.tensors)
    assert all(each.outputs for each in plan.tensors if each.action != "drop")
    assert not any(each.outputs for each in plan.tensors if each.action == "drop")

    convert(source, recipe, tmp_path / "out")
    written = load_all(tmp_path / "out")
    planned = {each.name: each for shard in plan.shards for each in shard.tensors}
    assert written.keys() == planned.keys()
    for name, value in written.items():
        assert value.dtype == getattr(torch, planned[name].dtype), name
        if planned[name].variable:
            assert 0 < value.nbytes <= planned[name].nbytes, name
        else:
            assert (tuple(value.shape), value.nbytes) == (planned[name].shape, planned[name].nbytes)
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert plan.output_bytes - plan.slack_bytes <= size <= plan.output_bytes
    assert (plan.slack_bytes > 0) == (recipe == "bnb-nf4-double")


def test_the_plan_reads_no_tensor_bytes_and_writes_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    path, files = source / "model.safetensors", {each.name for each in source.iterdir()}
    before = quantkit.plan(source, "bnb-nf4")
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[:start].ljust(path.stat().st_size, b"\xff"))
    assert quantkit.plan(source, "bnb-nf4").digest == before.digest
    assert {each.name for each in source.iterdir()} == files


def test_the_digest_is_of_all_that_matters(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    digests = {
        quantkit.plan(source, recipe, set=overrides).digest
        for recipe, overrides in [
            ("bnb-nf4", []),
            ("bnb-nf4", ["method.block_size=128"]),
            ("bnb-nf4", ["method.compute_dtype=bfloat16"]),
            ("bnb-nf4", ["method.ignore=['layers.0']"]),
            ("bnb-fp4", []),
            ("bnb-int8", []),
        ]
    }
    assert len(digests) == 6
    relaxed = quantkit.plan(source, "bnb-nf4", set=["gate.max_kl_mean=0.5"])
    assert relaxed.digest in digests, "thresholds judge; they do not convert"


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_share_that_is_quantized(tmp_path: Path, model_type: str) -> None:
    source = write_source(tmp_path / "source", model_type)
    plan = quantkit.plan(source, "bnb-nf4")
    by_hand = sum(each.source.elements for each in plan.tensors if each.action == "quantize")
    kept = sum(each.source.elements for each in plan.tensors if each.action in ("copy", "cast"))
    assert plan.quantized_share == pytest.approx(by_hand / (by_hand + kept))
    assert plan.quantized_share > 0.5
    assert quantkit.plan(source, "fp16").quantized_share == 0


# sharding


def test_shards_hold_the_limit_and_the_index_tells_the_truth(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    limit = 40_000
    plan = quantkit.plan(source, "fp16", set=[f"method.max_shard_bytes={limit}"])
    convert(source, "fp16", tmp_path / "out", f"method.max_shard_bytes={limit}")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert [each.name for each in files] == [each.name for each in plan.shards]
    assert [each.stat().st_size for each in files] == [each.nbytes for each in plan.shards]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            sizes = {name: opened.get_tensor(name).nbytes for name in opened.keys()}  # noqa: SIM118
        assert sum(sizes.values()) <= limit or len(sizes) == 1
        found |= dict.fromkeys(sizes, file.name)
    assert index["weight_map"] == found
    written, original = load_all(tmp_path / "out"), load_file(source / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(each.nbytes for each in written.values())
    assert written.keys() == original.keys()
    assert all(torch.equal(written[name], original[name]) for name in original)


def test_shards_reload_as_the_same_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = write_source(tmp_path / "source", "llama", container="torch", shards=3)
    convert(source, "fp16", tmp_path / "out", "method.max_shard_bytes=40_000")
    ids = torch.arange(10)[None]
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        for folder in (source, tmp_path / "out")
    )
    assert torch.equal(before, after)


def test_a_tensor_larger_than_the_limit_gets_a_shard_alone(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    plan = quantkit.plan(source, "fp16", set=["method.max_shard_bytes=1"])
    assert all(len(shard.tensors) == 1 for shard in plan.shards)
    assert len(plan.shards) == len(plan.tensors)


def test_what_is_dropped_opens_no_shard(tmp_path: Path) -> None:
    """The buffer is the last of the file, after a tensor that is larger than the limit."""
    source = write_source(tmp_path / "source")
    state = source_state("gpt_neox", torch.float16)
    state["gpt_neox.layers.1.attention.rotary_emb.inv_freq"] = torch.ones(2, dtype=torch.uint8)
    write_state(source, state, "safetensors")
    plan = quantkit.plan(source, "fp16", set=["method.max_shard_bytes=1"])
    last = max(plan.tensors, key=lambda each: each.source.offset)
    assert last.action == "drop"
    assert all(shard.tensors for shard in plan.shards)


# what is left as it is


@pytest.mark.parametrize(
    ("model_type", "ignore", "head"),
    [
        ("gpt_neox", "gpt_neox.layers.1.attention.dense", "embed_out"),
        ("llama", "model.layers.1.mlp.down_proj", "lm_head"),
        ("opt", "model.decoder.layers.0.fc1", "lm_head"),
        ("gpt2", "transformer.h.0.mlp.c_fc", "lm_head"),
    ],
)
@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-int8"])
def test_ignored_modules_stay_and_the_folder_reloads(
    tmp_path: Path, model_type: str, ignore: str, head: str, recipe: str
) -> None:
    from bitsandbytes import nn
    from transformers import AutoModelForCausalLM

    source = write_source(tmp_path / "source", model_type)
    plain = convert(source, recipe, tmp_path / "plain")
    convert(source, recipe, tmp_path / "out", f'method.ignore=["{ignore}"]')
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    skipped = config["quantization_config"]["llm_int8_skip_modules"]
    assert {ignore, head, "lm_head"} <= {*skipped}
    assert plain["plan"]["tensors"]["quantize"] > 0

    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", device_map="cpu", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    kind = nn.Linear4bit if recipe == "bnb-nf4" else nn.Linear8bitLt
    quantized = {name for name, each in model.named_modules() if isinstance(each, kind)}
    assert len(quantized) == plain["plan"]["tensors"]["quantize"] - 1
    assert ignore not in quantized
    assert "lm_head" not in quantized
    state = load_file(source / "model.safetensors")
    name = f"{ignore.removeprefix('transformer.') if model_type == 'gpt2' else ignore}.weight"
    assert torch.equal(model.get_submodule(ignore).weight, state[name])


def test_what_to_do_about_an_unknown_tensor_can_be_done(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    state = load_file(source / "model.safetensors") | {"v_head.summary.weight": torch.ones(2)}
    write_state(source, state, "safetensors")
    with pytest.raises(SourceError, match="no place for this tensor") as caught:
        quantkit.plan(source, "fp16")
    (advice,) = re.findall(r"\[source\] drop = (.+)\)$", str(caught.value))
    made = quantkit.plan(source, "fp16", set=[f"source.drop={advice}"])
    assert "v_head.summary.weight" in [each.source.name for each in made.with_action("drop")]


def test_a_weight_that_is_there_under_two_names_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "mistral")
    state = source_state("mistral", torch.float16)
    name = "layers.0.mlp.up_proj.weight"
    state[name] = torch.zeros_like(state[f"model.{name}"])
    write_state(source, state, "safetensors")
    with pytest.raises(SourceError, match="has one place for it and for") as caught:
        quantkit.plan(source, "bnb-nf4")
    (advice,) = re.findall(r"\[source\] drop = (.+)\)$", str(caught.value))
    made = quantkit.plan(source, "bnb-nf4", set=[f"source.drop={advice}"])
    assert len(made.with_action("drop")) == 1


def test_a_weight_that_others_are_tied_to_is_not_left_out(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "llama", drop_tied=False)
    assert quantkit.plan(source, "fp16").with_action("drop")
    with pytest.raises(SourceError, match="needs it and the checkpoint does not hold it"):
        quantkit.plan(source, "fp16", set=['source.drop=["embed_tokens"]'])


@pytest.mark.parametrize("recipe", ["bnb-int8", "gptq-4bit-g128"])
def test_an_entry_of_ignore_that_meets_nothing_is_told_of(tmp_path: Path, recipe: str) -> None:
    source = write_source(tmp_path / "source", "gpt_neox")
    sets = ["method.group_size=16"] if recipe.startswith("gptq") else []
    sets.append(f'method.ignore=["{OUTPUT}", "h.0", "dense$"]')
    made = quantkit.plan(source, recipe, set=sets)
    about = [each.split(",")[0] for each in made.warnings if "ignores" in each]
    assert about == ["the recipe ignores 'h.0'", "the recipe ignores 'dense$'"]


def built(folder: Path, model_type: str, **changes: object) -> Path:
    """A checkpoint of a class that the tiny models have not."""
    sizes = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
        "num_key_value_heads": 4, "intermediate_size": 64, "vocab_size": 96,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = AutoConfig.for_model(model_type, **(sizes | changes))
    AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(folder)
    return folder


def test_an_output_names_its_class(tmp_path: Path) -> None:
    source = write_source(tmp_path)
    config = json.loads((source / "config.json").read_text())
    assert not config.get("architectures"), "the source should name none"
    assert quantkit.plan(source, "bnb-nf4").config["architectures"] == ["GPTNeoXForCausalLM"]


@pytest.mark.parametrize("named", [5, "GPTNeoXForCausalLM"])
def test_architectures_that_are_no_list(tmp_path: Path, named: object) -> None:
    source = write_source(tmp_path, "gpt_neox", torch.float32)
    config = json.loads((source / "config.json").read_text()) | {"architectures": named}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="architectures: expected a list of names, got"):
        quantkit.plan(source, "bnb-nf4")


def test_a_dense_model_whose_config_counts_experts(tmp_path: Path) -> None:
    source = built(tmp_path / "source", "doge", is_moe=False, num_experts=16)
    assert quantkit.plan(source, "bnb-nf4").with_action("quantize")
    with pytest.raises(UnsupportedModelError, match="mixture-of-experts"):
        quantkit.plan(built(tmp_path / "moe", "doge", is_moe=True, num_experts=16), "bnb-nf4")


def test_a_model_that_its_own_code_does_not_run_is_one_line(tmp_path: Path) -> None:
    source = built(tmp_path / "source", "gemma2", sliding_window=None)
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([[5, 6, 7, 8] * 8] * 4))
    with pytest.raises(UnsupportedModelError, match=r"does not run on ids alone: .*sliding_window"):
        quantkit.convert(
            source, "gptq-4bit-g128", tmp_path / "out", calibration=ids, no_gate=True,
            set=["method.group_size=32"],
        )  # fmt: skip


def test_modules_that_autogptq_is_not_told_of(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    sets = ["method.group_size=32", f'method.ignore=["{OUTPUT}"]']
    made = quantkit.plan(source, "gptq-4bit-g128", set=sets)
    assert [each for each in made.warnings if "AutoGPTQ" in each and OUTPUT in each]
    made = quantkit.plan(source, "gptq-4bit-g128", set=sets[:1])
    assert not [each for each in made.warnings if "AutoGPTQ" in each]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_only_gpt2_is_told_that_transformers_cannot_open_it(
    tmp_path: Path, model_type: str
) -> None:
    """What is said there is held to transformers in tests/oracle/test_gptq_loaders.py."""
    source = write_source(tmp_path / "source", model_type)
    sets = ["method.group_size=16", "method.max_skipped_share=1"]
    made = quantkit.plan(source, "gptq-4bit-g128", set=sets)
    told = [each for each in made.warnings if "transformers cannot open" in each]
    assert bool(told) == (model_type == "gpt2"), told
    if told:
        (offered,) = re.findall(r"--set '(method\.ignore=[^']+)'", told[0])
        made = quantkit.plan(source, "gptq-4bit-g128", set=[*sets, offered])
        assert not [each for each in made.warnings if "transformers cannot open" in each]
        assert any(each.action == "quantize" for each in made.tensors)


def test_without_ignore_the_loader_finds_the_head_by_itself(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    convert(source, "bnb-nf4", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["llm_int8_skip_modules"] is None


@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-nf4-double", "bnb-int8", "gptq-4bit-g128"])
def test_a_weight_without_elements_is_not_quantized(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "opt", CONFIGS["opt"] | {"ffn_dim": 0})
    source = write_source(tmp_path / "source", "opt")
    with pytest.raises(SourceError, match="there is nothing to quantize") as caught:
        quantkit.plan(source, recipe, set=["method.group_size=32"] if "gptq" in recipe else [])
    assert "model.decoder.layers.0.fc1" in str(caught.value)
    if recipe.startswith("bnb"):
        convert(source, recipe, tmp_path / "out", 'method.ignore=["fc1", "fc2"]')


def test_everything_ignored_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    with pytest.raises(SourceError, match="no module would be quantized"):
        quantkit.plan(source, "bnb-nf4", set=['method.ignore=["gpt_neox"]'])


# memory


def peak_of(*words: str | Path) -> int:
    """Of a conversion that is not the first: what is compiled once a machine is in no forecast."""
    for _ in range(2):
        whole = command("convert", *words, "--no-gate", "--overwrite", "--json")
        done = subprocess.run(whole, capture_output=True, check=True)
    return int(json.loads(done.stdout)["peak_rss_bytes"])


def test_turned_tensors_that_are_cast_keep_to_the_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        CONFIGS, "gpt_neox", CONFIGS["gpt_neox"] | {"vocab_size": 30_000, "hidden_size": 1024}
    )
    source = write_source(tmp_path / "source")
    state = {
        name: value.mT.contiguous().mT if value.dim() == 2 else value
        for name, value in source_state("gpt_neox", torch.half).items()
    }
    (source / "model.safetensors").unlink()
    torch.save(state, source / "pytorch_model.bin")
    del state
    peak = peak_of(source, "--recipe", "bf16", "--out", tmp_path / "out")
    assert peak <= quantkit.plan(source, "bf16").memory_bytes


def test_a_calibration_keeps_to_the_forecast(demo: Path, tmp_path: Path) -> None:
    """It runs transformers' layers, whoever read the config, and encodes a text."""
    sets = ["calibration.samples=4", "method.group_size=32"]
    words = [demo, "--recipe", "gptq-4bit-g128", *(f"--set={each}" for each in sets)]
    peak = peak_of(*words, "--out", tmp_path / "out")
    assert peak <= quantkit.plan(demo, "gptq-4bit-g128", set=sets).memory_bytes


# what is dropped


def test_what_is_dropped_takes_no_memory(tmp_path: Path) -> None:
    plain = write_source(tmp_path / "plain", "llama", drop_tied=True)
    copied = shutil.copytree(plain, tmp_path / "with a head beside it")
    state = load_file(copied / "model.safetensors")
    state["v_head.weight"] = torch.zeros(50_000, 64)
    save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
    drop = ['source.drop=["^v_head"]', "method.group_size=16"]
    with_it = quantkit.plan(copied, "gptq-4bit-g128", set=drop)
    assert with_it.with_action("drop")
    without = quantkit.plan(plain, "gptq-4bit-g128", set=drop[1:])
    assert with_it.memory_bytes == without.memory_bytes


def test_old_buffers_are_dropped_with_reasons(demo: Path) -> None:
    plan = quantkit.plan(demo, "bnb-nf4")
    dropped = {each.source.name: each.reason for each in plan.with_action("drop")}
    kinds = {name.rpartition(".")[2]: reason for name, reason in dropped.items()}
    assert kinds.keys() == {"bias", "masked_bias", "inv_freq"}
    assert len(dropped) == 18
    assert "older versions" in kinds["bias"]
    assert not any(name.endswith("dense.bias") for name in dropped)


def test_gpt2s_causal_mask_is_dropped(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "gpt2")
    (dropped,) = quantkit.plan(source, "bnb-nf4").with_action("drop")
    assert dropped.source.name == "h.0.attn.bias"
    assert dropped.reason


def test_a_head_under_two_names_says_so(tmp_path: Path) -> None:
    """A small model's output is larger for it: people look for why."""
    source = write_source(tmp_path / "source")
    words = ["method.group_size=32", "method.max_skipped_share=1.0"]
    planned = quantkit.plan(source, "gptq-4bit-g128", set=words)
    (head,) = (each for each in planned.tensors if each.source.name == "embed_out.weight")
    assert [each.name for each in head.outputs] == ["embed_out.weight", "lm_head.weight"]
    assert "also written as lm_head.weight" in head.reason


@pytest.mark.parametrize(
    ("model_type", "heads"), [("llama", ["lm_head.weight"]), ("qwen3", []), ("gemma2", [])]
)
def test_a_tied_head_is_written_beside_its_embedding_for_autogptq_alone(
    tmp_path: Path, model_type: str, heads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second copy of a large embedding; vLLM's Gemma 2 stops at a head that it does not have."""
    narrow = CONFIGS["llama"] | {"intermediate_size": 128, "head_dim": 16}
    monkeypatch.setitem(CONFIGS, model_type, narrow)
    source = write_source(tmp_path / "source", model_type)
    planned = quantkit.plan(source, "gptq-4bit-g128", set=["method.group_size=32"])
    (table,) = (each for each in planned.tensors if "embed_tokens" in each.source.name)
    names = [each.name for each in table.outputs]
    assert names == [*heads, "model.embed_tokens.weight"]


def test_a_tied_copy_is_dropped_with_its_reason(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "llama", drop_tied=False)
    (dropped,) = quantkit.plan(source, "bnb-nf4").with_action("drop")
    assert dropped.source.name == "lm_head.weight"
    assert dropped.tied_to == "model.embed_tokens.weight"
    assert "model.embed_tokens.weight" in dropped.reason


def test_a_tied_copy_must_equal_the_weight_that_stays(tmp_path: Path) -> None:
    """Of two embeddings the recipe leaves out the one that the copy equals."""
    source = write_source(tmp_path / "source", "llama")
    state = source_state("llama", torch.float16)
    own = state["model.embed_tokens.weight"]
    state |= {"lm_head.weight": own.clone(), "embed_tokens.weight": own + 1}
    write_state(source, state, "safetensors")
    drop = 'source.drop=["^model.embed_tokens"]'
    plan = quantkit.plan(source, "fp16", set=[drop])
    assert {each.tied_to for each in plan.tensors} == {None, "embed_tokens.weight"}
    with pytest.raises(SourceError, match=r"ties it to .*, and the checkpoint holds other values"):
        convert(source, "fp16", tmp_path / "out", drop)


def test_a_tied_copy_of_the_first_rows_is_no_copy(tmp_path: Path) -> None:
    """It begins where the weight begins that it is tied to."""
    source = write_source(tmp_path / "source", "llama", container="torch")
    state = source_state("llama", torch.float16)
    state["lm_head.weight"] = state["model.embed_tokens.weight"][:5]
    write_state(source, state, "torch")
    with pytest.raises(SourceError, match=r"ties it to .*, and the checkpoint holds other values"):
        convert(source, "bnb-nf4", tmp_path / "out")


def test_a_recipe_may_drop_by_pattern(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    state = load_file(source / "model.safetensors")
    state["extra.head.weight"] = torch.zeros(3)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"extra\.head\.weight"):
        quantkit.plan(source, "bnb-nf4")
    drop = r"""source.drop=['^extra\.']"""
    (dropped,) = quantkit.plan(source, "bnb-nf4", set=[drop]).with_action("drop")
    assert dropped.source.name == "extra.head.weight"
    assert "the recipe drops" in dropped.reason
    manifest = convert(source, "bnb-nf4", tmp_path / "out", drop)
    assert "extra.head.weight" in manifest["plan"]["dropped"]
    assert not any(name.startswith("extra") for name in load_all(tmp_path / "out"))


def test_a_pattern_may_not_drop_what_the_model_needs(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    with pytest.raises(SourceError, match=OUTPUT):
        quantkit.plan(source, "bnb-nf4", set=[f'source.drop=["{OUTPUT}"]'])


# how it was stored


@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-nf4-double", "bnb-int8", "fp16"])
@pytest.mark.parametrize("stored", ["transposed", "in one storage", "every other row"])
def test_the_way_it_was_stored_leaves_no_trace(tmp_path: Path, recipe: str, stored: str) -> None:
    state = source_state("gpt_neox", torch.float16)
    config = write_source(tmp_path / "plain", container="torch")
    strange = shutil.copytree(config, tmp_path / "strange")
    write_state(strange, rearranged(state, stored), "torch")
    for name in ("plain", "strange"):
        convert(tmp_path / name, recipe, tmp_path / f"out-{name}")
    one, two = (tmp_path / f"out-{name}" / "model.safetensors" for name in ("plain", "strange"))
    if stored != "in one storage":  # there they lie as the model has them, not by name
        assert one.read_bytes() == two.read_bytes()
    assert sorted(parts_of(one)) == sorted(parts_of(two))


def parts_of(path: Path) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """All that stands in a file but where."""
    data = path.read_bytes()
    return [
        (each.name, each.dtype, each.shape, data[each.offset : each.offset + each.nbytes])
        for each in read_safetensors_header(path)
    ]


def rearranged(state: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    if how == "in one storage":
        whole = torch.cat([value.reshape(-1) for value in state.values()])
        starts = torch.tensor([0, *(value.numel() for value in state.values())]).cumsum(0).tolist()
        return {
            name: whole[start : start + value.numel()].view(value.shape)
            for (name, value), start in zip(state.items(), starts, strict=False)
        }
    if how == "transposed":
        return {n: v.t().contiguous().t() if v.dim() == 2 else v for n, v in state.items()}
    doubled = {name: value.repeat_interleave(2, dim=0) for name, value in state.items()}
    return {name: value[::2] for name, value in doubled.items()}


# other data types


def test_what_overflows_float16_is_refused(tmp_path: Path) -> None:
    for name in ("gpt_neox.layers.0.mlp.dense_4h_to_h.weight", "gpt_neox.final_layer_norm.weight"):
        folder = tmp_path / name
        source = write_source(folder / "source", dtype=torch.float32)
        state = load_file(source / "model.safetensors")
        state[name].view(-1)[3] = 70_000.0
        save_file(state, source / "model.safetensors", metadata={"format": "pt"})
        for recipe in ("bnb-nf4", "bnb-int8", "fp16"):
            with pytest.raises(NonFiniteError) as caught:
                convert(source, recipe, folder / "out", "method.dtype=float16")
            assert name in str(caught.value)
            made_of_half = recipe == "bnb-int8" and "mlp" in name
            assert ("method.ignore" if made_of_half else "bfloat16") in str(caught.value)
        convert(source, "bnb-nf4", folder / "out", "method.dtype=bfloat16")


def test_what_overflows_the_float16_of_int8_is_left_out(tmp_path: Path) -> None:
    source, module = write_source(tmp_path / "source"), "gpt_neox.layers.0.mlp.dense_4h_to_h"
    state = source_state("gpt_neox", torch.bfloat16)
    state[f"{module}.weight"].view(-1)[3] = 70_000.0
    write_state(source, state, "safetensors")
    said = r"1 values .*whatever method\.dtype; leave it out by method\.ignore"
    with pytest.raises(NonFiniteError, match=said):
        convert(source, "bnb-int8", tmp_path / "out", "method.dtype=bfloat16")
    sets = ["method.dtype=bfloat16", f'method.ignore=["{module}"]']
    convert(source, "bnb-int8", tmp_path / "out", *sets)


@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-nf4-double"])
def test_a_storage_type_that_the_packed_bytes_do_not_fill_is_refused(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's header would speak of more bytes than there are, and none after be aligned."""
    monkeypatch.setitem(
        CONFIGS, "gpt_neox", CONFIGS["gpt_neox"] | {"hidden_size": 20, "intermediate_size": 129}
    )
    source = write_source(tmp_path / "source")
    with pytest.raises(SourceError, match=r"20 x 129 packs into 1290 bytes.*quant_storage=uint8"):
        quantkit.plan(source, recipe, set=["method.quant_storage=float32"])
    convert(source, recipe, tmp_path / "out", "method.quant_storage=float16")
    assert load_all(tmp_path / "out")


def test_what_underflows_is_counted(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", dtype=torch.float32)
    state = load_file(source / "model.safetensors")
    lost = {"embed_out.weight": 5, "gpt_neox.layers.0.mlp.dense_4h_to_h.weight": 7}
    for name, count in lost.items():
        state[name].view(-1)[:count] = 1e-12
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    expected = {
        name: int((value.half() == 0).sum() - (value == 0).sum()) for name, value in state.items()
    }
    expected = {name: count for name, count in expected.items() if count}
    assert lost.items() <= expected.items()
    manifest = convert(source, "bnb-nf4", tmp_path / "out", "method.dtype=float16")
    assert manifest["conversion"]["underflows"] == expected


def test_the_recipes_data_type_is_what_users_get(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", dtype=torch.float32)
    convert(source, "bf16", tmp_path / "out")
    written = load_all(tmp_path / "out")
    original = load_file(source / "model.safetensors")
    assert all(torch.equal(written[name], original[name].bfloat16()) for name in original)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {config.get("dtype"), config.get("torch_dtype")} <= {"bfloat16", None}


def test_a_plan_cannot_be_altered(tmp_path: Path) -> None:
    plan = quantkit.plan(write_source(tmp_path / "source"), "bnb-nf4")
    with pytest.raises(AttributeError):
        plan.dtype = "float32"
    assert replace(plan, dtype="float32").digest != plan.digest


def test_widths_that_bitsandbytes_decodes_wrong_on_a_cpu(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    wide = quantkit.plan(source, "bnb-nf4", set=["method.block_size=128"]).warnings
    assert any("decoder is wrong" in each for each in wide), "64 columns, blocks of 128"
    assert not any("decoder is wrong" in each for each in quantkit.plan(source, "bnb-nf4").warnings)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["method.group_size=-1", "method.sym=false"], "no account of zero points"),
        (["method.group_size=16"], "stops at groups of 16"),
        (["method.group_size=-1"], None),
        (["method.group_size=32", "method.sym=false"], None),
        (["method.group_size=16", "method.bits=8"], None),
        (["method.group_size=-1", "method.sym=false", "method.bits=3"], None),
    ],
)
def test_what_gptqmodel_multiplies_wrong_on_a_cpu(
    tmp_path: Path, sets: list[str], said: str | None
) -> None:
    """tests/oracle/test_gptq_loaders.py sees that it does."""
    warned = quantkit.plan(write_source(tmp_path / "s"), "gptq-4bit-g128", set=sets).warnings
    found = [each for each in warned if "CPU kernel" in each]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


@pytest.mark.parametrize("name", [b"t" * 65, b"a![x](http:evil) **b**", b"\xff", b"a\x1b[1m\nb"])
def test_templates_that_stay_behind_are_counted(tmp_path: Path, name: bytes) -> None:
    """A name that others chose reaches neither the card nor a digest of the plan."""
    source = write_source(tmp_path / "source")
    further = source / "additional_chat_templates"
    further.mkdir()
    template = further / os.fsdecode(name + b".jinja")
    template.write_text("{{ messages }}")
    plan = quantkit.plan(source, "bnb-nf4")
    (said,) = [each for each in plan.warnings if "chat_templates" in each]
    assert said.isascii()
    assert os.fsdecode(name) not in said
    assert len(plan.digest) == 64
    template.rename(further / "tool_use.jinja")
    assert not any("chat_templates" in each for each in quantkit.plan(source, "bnb-nf4").warnings)
