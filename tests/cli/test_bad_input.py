"""Bad input: one line that says what and where, the right exit code, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from commanding import command, refused, refused_for_real, succeeded
from conftest import Converted
from safetensors.torch import load_file, save_file
from tiny import source_state, write_source, write_state
from typer.testing import CliRunner

from quantkit.cli.app import app
from quantkit.cli.session import session
from quantkit.resources import demo_model

MakeSource = Callable[..., Path]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("pristine") / "neox")


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    """A good checkpoint, to be broken."""
    return shutil.copytree(pristine, tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def convert(source: Path, out: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("convert", source, "--recipe", "bnb-nf4", "--out", out, "--no-gate", *more)


def refused_unwritten(code: int, source: Path, out: Path, *more: str | Path) -> str:
    said = refused(code, *convert(source, out, *more))
    assert not out.exists()
    assert not out.with_name(f"{out.name}.partial").exists()
    return said


def edit_config(source: Path, **changes: object) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))


def edit_weights(source: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(source / "model.safetensors")
    change(state)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})


def cut(path: Path, count: int = 100) -> None:
    path.write_bytes(path.read_bytes()[:-count])


# the request


def test_a_missing_folder(tmp_path: Path, out: Path) -> None:
    assert "no such folder" in refused_unwritten(2, tmp_path / "nowhere", out)


def test_a_file_in_place_of_a_folder(source: Path, out: Path) -> None:
    assert "give the folder that holds it" in refused_unwritten(2, source / "config.json", out)


def test_an_unknown_recipe_names_the_nearest(source: Path, out: Path) -> None:
    said = refused(2, "convert", source, "--recipe", "bnb-nf", "--out", out)
    assert "did you mean 'bnb-nf4'?" in said


def test_an_unknown_recipe_near_nothing_lists_all(source: Path, out: Path) -> None:
    said = refused(2, "convert", source, "--recipe", "zzzzzz", "--out", out)
    assert "bnb-int8" in said
    assert "rinna-3.6b-ppo-nf4" in said


def test_an_unknown_key_in_a_recipe_file_names_the_nearest(
    source: Path, out: Path, tmp_path: Path
) -> None:
    from quantkit.resources import shipped_folder

    text = (shipped_folder("recipes") / "bnb-nf4.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace("block_size", "blocksize"))
    said = refused(2, "convert", source, "--recipe", mine, "--out", out)
    assert "method.blocksize" in said
    assert "did you mean 'block_size'?" in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("method.block_sise=64", "did you mean 'block_size'?"),
        ("gate.max_kl_meen=1.0", "did you mean 'max_kl_mean'?"),
        ("evaluation.windows=3", "did you mean 'window'?"),
        ("methd.block_size=64", "did you mean 'method'?"),
        ("method.block_size=63", "63"),
        ("method.block_size='64'", "method.block_size"),
        ("method.double_quant=yes", "method.double_quant"),
        ("method.format=gptq5", "gptq5"),
        ("method.ignore=[lm_head]", "method.ignore"),
        ("gate.min_top1_agreement=1.5", "gate.min_top1_agreement"),
        ("name.first=x", "not a section"),
        ("method.block_size", "expected key=value"),
        ("=64", "expected key=value"),
        ("method..block_size=64", "method."),
    ],
)
def test_a_bad_set(source: Path, out: Path, given: str, words: str) -> None:
    assert words in refused_unwritten(2, source, out, "--set", given)


@pytest.mark.parametrize("key", ["source.drop", "method.ignore"])
def test_a_pattern_that_is_no_regular_expression(source: Path, out: Path, key: str) -> None:
    assert key in refused_unwritten(2, source, out, "--set", f'{key}=["layers.[0"]')


def test_a_device_that_is_not_there(source: Path, out: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert "no CUDA device" in refused_unwritten(2, source, out, "--device", "cuda")


def test_a_checksums_folder_that_is_not_there(source: Path, out: Path, tmp_path: Path) -> None:
    said = refused_unwritten(2, source, out, "--checksums", tmp_path / "none")
    assert "no such folder" in said


def test_an_evaluation_text_that_is_not_there(source: Path, out: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.txt"
    said = refused(
        2, "convert", source, "--recipe", "bnb-nf4", "--out", out, "--text", missing
    )  # fmt: skip
    assert "none.txt" in said
    assert not out.exists()


# the output


@pytest.mark.parametrize("what", ["text", "calibration"])
def test_a_text_without_an_end_is_not_encoded(
    source: Path, out: Path, tmp_path: Path, what: str
) -> None:
    """300 MB of zeros took 12 GB of memory."""
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    recipe = "gptq-4bit-g128" if what == "calibration" else "bnb-nf4"
    fits = ["--set", "method.group_size=32"] if what == "calibration" else []
    said = refused(2, "convert", source, "-r", recipe, "-o", out, f"--{what}", path, *fits)
    assert f"{what} {path}: expected at most 67,108,864 bytes" in said


def test_an_output_that_exists_is_left(source: Path, out: Path) -> None:
    out.mkdir()
    assert "exists already" in refused(2, *convert(source, out))
    assert list(out.iterdir()) == []


def test_overwrite_leaves_what_quantkit_did_not_make(source: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    assert "not made by quantkit" in refused(2, *convert(source, out, "--overwrite"))
    assert (out / "thesis.tex").read_text() == "years of work"


def test_overwrite_leaves_a_file_and_a_link(source: Path, out: Path, tmp_path: Path) -> None:
    out.write_text("mine")
    refused(2, *convert(source, out, "--overwrite"))
    assert out.read_text() == "mine"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "dangling")
    refused(2, *convert(source, link, "--overwrite"))
    assert link.is_symlink()


def test_overwrite_replaces_what_quantkit_made(source: Path, out: Path) -> None:
    succeeded(*convert(source, out))
    (out / "stray").write_text("added later")
    assert "exists already" in refused(2, *convert(source, out))
    succeeded(*convert(source, out, "--overwrite", "--set", "method.quant_type=fp4"))
    assert not (out / "stray").exists()
    assert json.loads((out / "quantkit-manifest.json").read_text())["recipe"]["method"][
        "quant_type"
    ] == "fp4"  # fmt: skip
    assert {path.name for path in out.parent.iterdir()} == {"source", "out"}


def test_a_failed_overwrite_leaves_the_old_output(source: Path, out: Path) -> None:
    succeeded(*convert(source, out))
    before = (out / "model.safetensors").read_bytes()
    edit_weights(source, lambda state: state["gpt_neox.embed_in.weight"].fill_(float("nan")))
    refused(1, *convert(source, out, "--overwrite"))
    assert (out / "model.safetensors").read_bytes() == before


def test_a_foreign_partial_folder_is_not_emptied(source: Path, out: Path) -> None:
    """``OUT.partial`` is quantkit's by name only; what is in it may be somebody's work."""
    partial = out.with_name("out.partial")
    partial.mkdir()
    (partial / "thesis.tex").write_text("years of work")
    refused(2, *convert(source, out))
    assert (partial / "thesis.tex").read_text() == "years of work"


# the source's files


def test_no_config(source: Path, out: Path) -> None:
    (source / "config.json").unlink()
    assert "config.json" in refused_unwritten(1, source, out)


def test_no_weights(source: Path, out: Path) -> None:
    (source / "model.safetensors").unlink()
    assert "model.safetensors" in refused_unwritten(1, source, out)


@pytest.mark.parametrize("container", ["safetensors", "torch"])
@pytest.mark.parametrize("shards", [1, 5])
def test_a_truncated_shard_is_named(tmp_path: Path, out: Path, container: str, shards: int) -> None:
    source = write_source(tmp_path / "source", container=container, shards=shards)
    last = sorted([*source.glob("*.safetensors"), *source.glob("*.bin")])[-1]
    cut(last)
    assert last.name in refused_unwritten(1, source, out)


def test_an_index_that_names_a_missing_tensor(tmp_path: Path, out: Path) -> None:
    source = write_source(tmp_path / "source", shards=2)
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["gpt_neox.layers.7.ghost"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    assert "gpt_neox.layers.7.ghost" in refused_unwritten(1, source, out)


def test_an_index_that_names_a_missing_shard(tmp_path: Path, out: Path) -> None:
    source = write_source(tmp_path / "source", shards=2)
    (source / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refused_unwritten(1, source, out)


def test_a_foreign_global_never_runs(source: Path, out: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    (source / "model.safetensors").unlink()
    command = f"touch {sentinel}".encode()
    payload = b"cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R."
    with zipfile.ZipFile(source / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    assert "posix" in refused_unwritten(1, source, out)
    assert not sentinel.exists()
    torch.load(source / "pytorch_model.bin", weights_only=False)
    assert sentinel.exists(), "the attack itself does not work"


# the source's values


@pytest.mark.parametrize(
    "name",
    [
        "gpt_neox.layers.1.mlp.dense_h_to_4h.weight",
        "gpt_neox.layers.1.input_layernorm.weight",
        "embed_out.weight",
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-nf4-double", "bnb-int8", "fp16"])
def test_one_value_that_is_no_number(
    source: Path, out: Path, name: str, value: float, recipe: str
) -> None:
    edit_weights(source, lambda state: state[name].view(-1)[-1].fill_(value))
    said = refused(1, "convert", source, "--recipe", recipe, "--out", out, "--no-gate")
    assert name in said
    assert "1 values" in said
    assert not out.exists()


def test_a_leftover_tensor_is_named(source: Path, out: Path) -> None:
    edit_weights(source, lambda state: state.update({"extra.head.weight": torch.zeros(3)}))
    said = refused_unwritten(1, source, out)
    assert "extra.head.weight" in said
    assert "drop" in said


def test_a_missing_tensor_is_named(source: Path, out: Path) -> None:
    name = "gpt_neox.layers.1.attention.dense.bias"
    edit_weights(source, lambda state: state.pop(name))
    assert name in refused_unwritten(1, source, out)


def test_a_tensor_of_another_shape_is_named(source: Path, out: Path) -> None:
    name = "gpt_neox.layers.1.attention.dense.bias"
    edit_weights(source, lambda state: state.update({name: torch.zeros(65).half()}))
    said = refused_unwritten(1, source, out)
    assert name in said
    assert "[65]" in said


@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_a_tied_copy_that_differs(tmp_path: Path, out: Path, container: str) -> None:
    source = write_source(tmp_path / "source", "llama", drop_tied=False)
    (source / "model.safetensors").unlink()
    state = source_state("llama", torch.float16)
    state["lm_head.weight"] = state["lm_head.weight"].clone()
    state["lm_head.weight"][5, 5] += 1
    write_state(source, state, container)
    said = refused_unwritten(1, source, out)
    assert "lm_head.weight" in said
    assert "tie_word_embeddings" in said


# the source's config


@pytest.mark.parametrize(
    "quantization",
    [{"quant_method": "gptq", "bits": 4}, {}, "gptq", ["gptq"], True],
    ids=["gptq", "empty", "text", "list", "true"],
)
def test_an_already_quantized_source(source: Path, out: Path, quantization: object) -> None:
    if quantization == {}:
        quantization = {"bits": 4}  # a method without a name
    edit_config(source, quantization_config=quantization)
    assert "already quantized" in refused_unwritten(1, source, out)


def test_an_output_as_the_source(source: Path, out: Path, tmp_path: Path) -> None:
    succeeded(*convert(source, out))
    assert "already quantized" in refused_unwritten(1, out, tmp_path / "again")


@pytest.mark.parametrize("named", [["BertForMaskedLM"], ["BertModel"], None])
def test_an_encoder(tmp_path: Path, out: Path, named: list[str] | None) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=64,
    )  # fmt: skip
    source = tmp_path / "source"
    BertForMaskedLM(config).half().save_pretrained(source)
    edit_config(source, architectures=named)
    said = refused_unwritten(1, source, out)
    assert "causal" in said or "decoder" in said


def test_an_encoder_and_decoder(tmp_path: Path, out: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=96, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).half().save_pretrained(tmp_path / "source")
    assert "decoder-only" in refused_unwritten(1, tmp_path / "source", out)


def test_a_mixture_of_experts(tmp_path: Path, out: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=128, num_local_experts=4,
        max_position_embeddings=64,
    )  # fmt: skip
    MixtralForCausalLM(config).half().save_pretrained(tmp_path / "source")
    assert "mixture-of-experts" in refused_unwritten(1, tmp_path / "source", out)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": None},
        {"model_type": "no_such_model"},
        {"model_type": ["gpt_neox"]},
        {"model_type": "no_such_model", "auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"hidden_size": "many"},
        {"hidden_size": 65},
        {"num_hidden_layers": -1},
        {"vocab_size": 97},
        {"torch_dtype": "banana", "dtype": "banana"},
        {"torch_dtype": "float64", "dtype": "float64"},
        {"torch_dtype": "float8_e4m3fn", "dtype": "float8_e4m3fn"},
        {"architectures": "GPTNeoXForCausalLM"},
        {"architectures": [3]},
    ],
    ids=lambda changes: json.dumps(changes),
)
def test_a_config_of_nonsense(source: Path, out: Path, changes: dict[str, object]) -> None:
    edit_config(source, **changes)
    refused_unwritten(1, source, out)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "\xff\xfe"])
def test_a_config_that_is_no_object(source: Path, out: Path, text: str) -> None:
    (source / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refused_unwritten(1, source, out)


# for real


def test_an_error_as_json_is_one_object_that_says_it(source: Path, out: Path) -> None:
    """``refused`` holds standard output to it."""
    (source / "config.json").unlink()
    refused(1, *convert(source, out, "--json"))
    refused(1, "plan", source, "--recipe", "bnb-nf4", "--json")
    refused(1, "verify", source, "--json")
    refused(2, "recipes", "bnb-nf", "--json")
    refused(2, "checksums", "no/such", "--json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert", ".", "--json", "--bogus"), "--bogus"),
        (("convert", ".", "--json"), "--recipe"),
        (("convrt", "--json"), "convrt"),
        (("convert", ".", "-r", "bnb-nf4", "-o", "o", "--device", "moon", "--json"), "moon"),
    ],
)
def test_a_mistyped_option_as_json_is_one_object_too(words: Sequence[str], said: str) -> None:
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == error["exit_code"] == 2
    assert said in error["message"]
    assert error["message"] in " ".join(done.stderr.split())


def test_a_failed_gate_as_json_is_the_whole_result(demo: Path, out: Path) -> None:
    strict = ("--set", "gate.max_perplexity_ratio=0.5", "--set", "evaluation.max_windows=1",
              "--set", "evaluation.new_tokens=1")  # fmt: skip
    result = CliRunner().invoke(
        app, list(map(str, ("convert", demo, "-r", "bnb-nf4", "-o", out, "--json", *strict)))
    )
    assert result.exit_code == 4
    found = json.loads(result.stdout)
    assert (found["gate"]["status"], found["out"]) == ("failed", str(out))
    assert found["gate"]["perplexity"]["ratio"] > 0.5
    assert found["source"]["files"][0]["sha256"]
    assert found["error"]["exit_code"] == 4
    assert "perplexity" in found["error"]["message"]


def test_a_failed_check_as_json_is_the_whole_result(demo_nf4: Converted, demo: Path) -> None:
    words = ("check", demo_nf4.folder, "--against", demo, "--json",
             "--set", "gate.max_perplexity_ratio=0.5", "--set", "evaluation.max_windows=1",
             "--set", "evaluation.new_tokens=1")  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 4
    found = json.loads(result.stdout)
    assert found["gate"]["perplexity"]["ratio"] > 0.5
    assert found["error"]["exit_code"] == 4


def test_real_processes_say_the_same(source: Path, out: Path) -> None:
    assert "no such folder" in refused_for_real(2, *convert(source / "none", out, "--json"))
    edit_weights(source, lambda state: state["embed_out.weight"].fill_(float("nan")))
    assert "embed_out.weight" in refused_for_real(1, *convert(source, out, "--json"))
    cut(source / "model.safetensors")
    assert "model.safetensors" in refused_for_real(1, *convert(source, out))
    assert not out.exists()


# check-tokenizer


def tokenizer_folder(folder: Path, **files: str | None) -> Path:
    """The demo's tokenizer files; each of ``files`` (dots as underscores) changed, or gone."""
    folder.mkdir()
    for name in ("config.json", "spiece.model", "tokenizer_config.json"):
        shutil.copy(demo_model() / name, folder / name)
    for key, text in files.items():
        path = folder / re.sub(r"_(json|model|txt)$", r".\1", key)
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    return folder


NO_TOKENIZERS: dict[str, tuple[dict[str, str | None], str]] = {
    "nothing to hold it to": (
        {"spiece_model": None, "vocab_json": "{}", "merges_txt": ""},
        "no sentencepiece model (spiece.model or tokenizer.model), so its tokenizer (byte-level",
    ),
    "no tokenizer at all": (
        {"spiece_model": None, "tokenizer_config_json": None},
        "no sentencepiece model (spiece.model or tokenizer.model) and no other tokenizer",
    ),
    "the model alone": (
        {"config_json": None, "tokenizer_config_json": None},
        "spiece.model alone: transformers looks in",
    ),
    "no sentencepiece model": (
        {"spiece_model": "version https://git-lfs.github.com/spec/v1\n"},
        "spiece.model: not a sentencepiece model",
    ),
    "a cut tokenizer.json": (
        {"tokenizer_json": '{"version": "1.0"'},
        "tokenizer.json: cannot be read as JSON",
    ),
    "a cut tokenizer_config.json": (
        {"tokenizer_config_json": "{"},
        "tokenizer_config.json: cannot be read as JSON",
    ),
}


@pytest.mark.parametrize("name", NO_TOKENIZERS)
def test_a_tokenizer_that_cannot_be_checked(tmp_path: Path, name: str) -> None:
    files, said = NO_TOKENIZERS[name]
    folder = tokenizer_folder(tmp_path / "folder", **files)
    assert said in refused(1, "check-tokenizer", folder)


def test_check_tokenizer_of_a_file_or_nothing(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "folder")
    assert "a file; give the folder" in refused(2, "check-tokenizer", folder / "spiece.model")
    # it takes no Hub id, and may not ask for one
    said = refused(2, "check-tokenizer", "own/model")
    assert said.endswith("own/model: no such folder; give a checkpoint's folder")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing", "latin"])
def test_a_file_that_is_given_is_a_regular_one(source: Path, tmp_path: Path, kind: str) -> None:
    """None of these is waited for, and each is called what it is."""
    registry = tmp_path / "registry"
    registry.mkdir()
    path = registry / "own.toml"
    said = {"pipe": "named pipe", "device": "a device", "folder": "a folder", "latin": "UTF-8"}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "latin":
        path.write_bytes(b"\xe9")
    texts = tokenizer_folder(tmp_path / "folder")
    expected = said.get(kind, "no such file")
    if kind != "missing":
        assert expected in refused(2, "verify", source, "--checksums", registry)
    file = texts / "spiece.model"
    assert "folder that holds it" in refused(2, "verify", source, "--checksums", file)
    assert expected in refused(2, "check-tokenizer", texts, "--text", path)
    words = ("convert", source, "--recipe", "bnb-nf4", "--out", tmp_path / "out", "--text", path)
    if kind != "latin":  # this source has no tokenizer that would read it
        assert expected in refused(2, *words)


def test_an_empty_name_is_no_entry() -> None:
    assert "no entry for ''" in refused(2, "checksums", "show", "")


def test_an_entry_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    text = succeeded("checksums", "show", "quantkit/demo")
    entry = json.loads(text)["entries"][0]
    file = entry["releases"][0]["files"][0]
    (tmp_path / "own.toml").write_text(
        '\ufeffrepository = "own/model"\n[[releases]]\nstatus = "current"\nstated_at = "x"\n'
        f'[[releases.files]]\nname = "w"\nsha256 = "{file["sha256"]}"\n',
        encoding="utf-8",
    )
    assert "own/model" in succeeded("checksums", "list", "--checksums", tmp_path)


def test_an_interrupt_says_what_a_rerun_does() -> None:
    @app.command("idle")
    def idle() -> None:
        with session(as_json=False):
            raise KeyboardInterrupt

    try:
        said = CliRunner().invoke(app, ["idle"])
    finally:
        app.registered_commands.pop()
    assert said.exit_code == 130
    assert "interrupted; nothing was saved" in said.stderr
    assert "conversion" not in said.stderr


def test_memory_that_torch_does_not_get_is_no_traceback() -> None:
    @app.command("greedy")
    def greedy() -> None:
        with session(as_json=True):
            torch.empty(1 << 60, dtype=torch.uint8)

    try:
        said = CliRunner().invoke(app, ["greedy"])
    finally:
        app.registered_commands.pop()
    assert said.exit_code == 1
    assert json.loads(said.stdout)["error"]["message"].startswith("out of memory; close other")


def test_an_empty_text_checks_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    folder = tokenizer_folder(tmp_path / "folder")
    assert "empty.txt: empty" in refused(
        2, "check-tokenizer", folder, "--text", tmp_path / "empty.txt"
    )


def test_other_weights_that_a_config_names(source: Path, out: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    changed = config | {"transformers_weights": "other.safetensors"}
    (source / "config.json").write_text(json.dumps(changed))
    assert "transformers_weights" in refused_unwritten(1, source, out)
    assert "transformers_weights" in refused(1, "verify", source)


def test_weights_that_are_integers(source: Path, out: Path) -> None:
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    edit_weights(source, lambda state: state.update({name: state[name].int()}))
    assert f"{name}: stored as int32, expected a float's" in refused_unwritten(1, source, out)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["GPTNeoXModel"]},
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        {"model_type": "bert", "architectures": None},
        {"num_attention_heads": 7},
    ],
    ids=str,
)
def test_what_no_model_is_made_of_names_its_file(
    source: Path, out: Path, changes: dict[str, object]
) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    assert f"{source}/config.json: " in refused_unwritten(1, source, out)


def test_what_keeps_a_tokenizer_from_being_compared_is_said(tmp_path: Path) -> None:
    """Here ids that clash, and not that transformers could not load it."""
    folder = tokenizer_folder(tmp_path / "folder", added_tokens_json='{"<new>": 5}')
    said = CliRunner().invoke(app, ["check-tokenizer", str(folder)])
    first = said.stdout.splitlines()[1].strip()
    assert "<new>" in first or "added_tokens" in first, said.stdout


@pytest.mark.parametrize("verb", ["plan", "verify", "check", "compare", "publish"])
def test_an_empty_name_is_not_the_current_folder(
    demo: Path, demo_nf4: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(demo_nf4.folder)  # which would do for each of them
    more = {"plan": ("--recipe", "bnb-nf4"), "publish": ("me/model", "--yes"), "verify": ()}
    assert "a path is empty" in refused(2, verb, "", *more.get(verb, ("--against", demo)))
