"""Configs, templates, links and names that would hurt: one line, and nothing was run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commanding import refused
from tiny import write_source

import quantkit
from quantkit.errors import CheckpointError, SourceError
from quantkit.rendering import misbehaviour
from quantkit.report import write_report
from quantkit.scrutiny import MAX_SMALL_BYTES
from quantkit.source import open_source


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("pristine") / "neox", shards=2)


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "source")


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(value | changes))


# config.json


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 2**63},
        {"hidden_size": 2**40},
        {"vocab_size": 2**62},
        {"num_attention_heads": 10**8},
        {"max_position_embeddings": 2**40},
        {"num_labels": 10**9},
        {"intermediate_size": 10**30},
        {"unheard_of": 10**12},
        {"rope_scaling": {"original_max_position_embeddings": 10**15}},
        {"layer_types": ["full"] * 10, "text_config": {"num_hidden_layers": 10**7}},
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_before_anything_is_built(
    source: Path, changes: dict[str, object]
) -> None:
    edit(source / "config.json", **changes)
    start = time.monotonic()
    with pytest.raises(SourceError, match="expected at most"):
        open_source(source)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "paged|evil/kernel@main:run"},
        {"attn_implementation": {"": "sdpa", "text_config": "evil/kernel"}},
        {"text_config": {"_attn_implementation_internal": "evil/kernel"}},
        {"experts_implementation": "evil/kernel"},
    ],
    ids=str,
)
def test_a_kernel_on_the_hub_is_neither_fetched_nor_run(
    source: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    edit(source / "config.json", **changes)
    with pytest.raises(SourceError, match="names code on the Hub"):
        quantkit.plan(source, "fp16")
    with pytest.raises(SourceError, match="names code on the Hub"):
        quantkit.check(source, write_source(tmp_path / "against"))


def test_an_implementation_of_transformers_own_passes(source: Path) -> None:
    edit(source / "config.json", attn_implementation="eager")
    assert quantkit.plan(source, "fp16").tensors


def test_sizes_of_the_largest_models_pass(source: Path) -> None:
    edit(
        source / "config.json", rope_theta=1e11, max_position_embeddings=10_485_760,
        eos_token_id=[151645, 151643], vocab_size=262_400, num_labels=2, initializer_range=0.02,
        block_ff_dim=12288, vocab_size_per_layer_input=262_144,  # LFM2's, Gemma 3n's
    )  # fmt: skip
    assert open_source(source).config["vocab_size"] == 262_400


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a": [' + "[]," * 400_000 + "1]}",
        '{"a":' * 40 + "1" + "}" * 40,
        '{"a": 1e999}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": "\\ud800"}',
    ],
    ids=["objects", "lists", "many lists", "beyond 32", "infinity", "digits", "surrogate"],
)
def test_json_made_to_hurt(source: Path, text: str) -> None:
    (source / "config.json").write_text(text)
    with pytest.raises(SourceError, match=r"config\.json"):
        open_source(source)


def test_a_pipe_or_a_device_in_place_of_a_small_file(source: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "LICENSE", "generation_config.json"):
        (source / name).rename(source / "kept") if (source / name).exists() else None
        os.mkfifo(source / name)
        with pytest.raises(SourceError, match=f"{name}: expected a regular file"):
            open_source(source)
        (source / name).unlink()
        (source / "kept").rename(source / name) if (source / "kept").exists() else None
    assert open_source(source)


@pytest.mark.parametrize("name", ["README.md", "chat_template.jinja", "LICENSE"])
def test_a_pipe_in_place_of_a_file_that_is_carried_on(source: Path, name: str) -> None:
    os.mkfifo(source / name)
    with pytest.raises(SourceError, match="expected a"):
        open_source(source)


def test_a_small_file_that_is_none(source: Path) -> None:
    with (source / "tokenizer.json").open("wb") as file:
        file.truncate(MAX_SMALL_BYTES + 1)
    with pytest.raises(SourceError, match=r"tokenizer\.json: expected at most"):
        open_source(source)


def test_a_tokenizer_that_brings_code_is_refused(source: Path) -> None:
    auto_map = {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]}
    edit(source / "tokenizer_config.json", auto_map=auto_map)
    with pytest.raises(SourceError, match=r"tokenizer_config\.json: auto_map"):
        quantkit.plan(source, "bnb-nf4")


@pytest.mark.parametrize(
    ("name", "key", "other"),
    [
        ("config.json", "configuration_files", "config.4.0.0.json"),
        ("tokenizer_config.json", "fast_tokenizer_files", "tokenizer.4.0.0.json"),
    ],
)
def test_another_file_for_each_version_of_transformers(
    source: Path, tmp_path: Path, name: str, key: str, other: str
) -> None:
    """What is looked at would not be what is loaded: a config of a billion layers, say."""
    folder = shutil.copytree(source, tmp_path / "folder")
    edit(folder / name, **{key: [other]})
    with pytest.raises(SourceError, match=rf"{name}: '{key}'"):
        quantkit.plan(folder, "bnb-nf4")
    if name == "config.json":
        assert key in refused(1, "check", folder, "--against", source)
    else:
        found = quantkit.check(folder, source)["gate"]
        assert found["levels"]["structure"] == "failed"
        assert key in found["failures"][0]


def test_a_models_code_is_never_run(source: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    (source / "evil.py").write_text(f"open({str(sentinel)!r}, 'w')\n")
    edit(
        source / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    )
    quantkit.convert(source, "bnb-nf4", tmp_path / "out", no_gate=True)
    assert not sentinel.exists()
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not (tmp_path / "out" / "evil.py").exists()
    edit(source / "config.json", model_type="evil")
    assert "brings code of its own" in refused(1, "plan", source, "--recipe", "bnb-nf4")
    assert not sentinel.exists()


# chat templates

SOUND = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{% generation %}{{ m['content'] | trim }}{% endgeneration %}{% break %}{% endfor %}"
    "{{ raise_exception('no') if false }}{{ strftime_now('%d') if false }}"
)
HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ x|attr('__class__') }}",
    "{{ (lambda: 0).gi_frame }}",
    "{{ messages[0] ",
    "{% include '/etc/passwd' %}{% endif %}",
    "{{" + "(" * 5_000 + ")" * 5_000 + "}}",
    "{{ " + "9" * 5_000 + " }}",
    "{{ ''['__cl' ~ 'ass__'] }}",
    "{{ lipsum['__glo' ~ 'bals__']['os'].popen('id').read() }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10 ** 9 }}",
    "{% for a in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
    7,
]


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_template_is_refused(source: Path, template: object) -> None:
    edit(source / "tokenizer_config.json", chat_template=template)
    with pytest.raises(SourceError, match="chat_template"):
        open_source(source)
    edit(source / "tokenizer_config.json", chat_template=[{"name": "x", "template": template}])
    with pytest.raises(SourceError, match="chat_template"):
        open_source(source)
    edit(source / "tokenizer_config.json", chat_template=None)
    (source / "chat_template.jinja").write_text(str(template))
    if isinstance(template, str):
        with pytest.raises(SourceError, match=r"chat_template\.jinja"):
            open_source(source)


@pytest.mark.parametrize(
    ("by", "said"),
    [(signal.SIGKILL, "more than 2 seconds"), (signal.SIGXCPU, "more than 2 seconds"),
     (signal.SIGSEGV, "it ended by signal 11")],
)  # fmt: skip
def test_what_ended_a_template_is_told(
    monkeypatch: pytest.MonkeyPatch, by: signal.Signals, said: str
) -> None:
    died = subprocess.CompletedProcess([], -by, b"", b"")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: died)
    assert said in misbehaviour("{{ 1 }}")


def test_a_sound_template_passes(source: Path) -> None:
    edit(source / "tokenizer_config.json", chat_template=SOUND)
    (source / "chat_template.jinja").write_text(SOUND)
    assert open_source(source)


# links


@pytest.mark.parametrize(
    "name", ["config.json", "LICENSE", "tokenizer.json", "model-00001-of-00002.safetensors",
             "model.safetensors.index.json", "generation_config.json"],
)  # fmt: skip
def test_a_link_out_of_the_folder_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    """A LICENSE that points to ~/.ssh/id_rsa would be published."""
    secret = tmp_path / "secret"
    if (source / name).exists():
        (source / name).rename(secret)
    else:
        secret.write_text("{}")
    (source / name).symlink_to(secret)
    with pytest.raises((SourceError, CheckpointError), match=f"{name}: a link that leaves"):
        open_source(source)


def test_links_inside_the_folder_and_of_the_folder_are_followed(
    source: Path, tmp_path: Path
) -> None:
    (source / "config.json").rename(source / "real.json")
    (source / "config.json").symlink_to("real.json")
    (tmp_path / "alias").symlink_to(source)
    assert open_source(tmp_path / "alias")


def test_links_in_a_circle(source: Path) -> None:
    (source / "config.json").unlink()
    (source / "config.json").symlink_to("other.json")
    (source / "other.json").symlink_to("config.json")
    with pytest.raises(SourceError, match=r"config\.json"):
        open_source(source)


# names


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/x.safetensors", "a b.safetensors", "$(id).safetensors",
              "<b>.safetensors", "a;b.safetensors", "`id`.safetensors", "-rf.safetensors",
              "a\u202e.safetensors", "x" * 300 + ".safetensors", ".safetensors"],
)  # fmt: skip
def test_shards_by_names_that_something_would_act_on(source: Path, shard: str) -> None:
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = shard
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="plain file names"):
        open_source(source)


def test_a_folder_by_such_a_name_breaks_no_page(pristine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)> `id` $(id)"
    shutil.copytree(pristine, folder)
    manifest = quantkit.convert(folder, "bnb-nf4", tmp_path / "out", no_gate=True)
    assert manifest["source"]["name"] == folder.name
    write_report(manifest, tmp_path)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<img src=x" not in page
