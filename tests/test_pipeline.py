"""The whole story: converted, judged, recorded, committed; or refused, with nothing left."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from commanding import command, refused, succeeded
from conftest import Converted
from jinja2 import UndefinedError
from safetensors.torch import load_file
from tiny import write_source

import quantkit
from quantkit import clock, execution, pipeline
from quantkit.card import render_card
from quantkit.errors import (
    GateError,
    MismatchError,
    OutputExistsError,
    StorageError,
    UnlistedError,
    WithdrawnError,
)
from quantkit.types import Event
from quantkit.verification import Policy

#: Enough for a verdict, little enough for a test.
QUICK = (
    "evaluation.max_windows=2",
    "evaluation.new_tokens=2",
    'evaluation.prompts=["The value of the"]',
    "gate.min_generation_agreement=0.1",
)

#: A threshold that nothing quantized can meet.
STRICT = "gate.max_kl_mean=1e-9"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def options(*overrides: str) -> list[str]:
    return [word for each in overrides for word in ("--set", each)]


def partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


# a conversion that passes


def test_the_demo_model_passes(demo_nf4: Converted) -> None:
    gate = demo_nf4.manifest["gate"]
    assert gate["status"] == "passed"
    assert gate["levels"] == {
        "structure": "passed",
        "tokenizer": "passed",
        "reload": "passed",
        "perplexity": "passed",
        "generation": "passed",
    }
    assert gate["failures"] == []
    assert 20 < gate["perplexity"]["reference"] < 30, "a trained model"
    assert 1 < gate["perplexity"]["ratio"] < 1.02
    assert gate["perplexity"]["text_sha256"] == sha256(demo_nf4.text)


def test_the_folder_holds_what_was_promised(demo_nf4: Converted) -> None:
    assert sorted(path.name for path in demo_nf4.folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantkit-manifest.json",
        "quantkit-provenance.json",
        "report",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sorted(path.name for path in (demo_nf4.folder / "report").iterdir()) == [
        "divergence.png",
        "modules.png",
        "perplexity.png",
        "report.html",
        "size.png",
    ]
    written = json.loads((demo_nf4.folder / "quantkit-manifest.json").read_text())
    assert written == demo_nf4.manifest
    assert not partial(demo_nf4.folder).exists()


def test_the_manifest_has_every_files_digest(demo_nf4: Converted) -> None:
    listed = {each["name"]: each["sha256"] for each in demo_nf4.manifest["output"]["files"]}
    folder = demo_nf4.folder
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    assert found.pop("quantkit-manifest.json")
    assert listed == found
    source = {each["name"]: each["sha256"] for each in demo_nf4.manifest["source"]["files"]}
    assert source == {name: sha256(demo_nf4.source / name) for name in source}
    assert {"pytorch_model.bin", "config.json", "spiece.model"} <= source.keys()


def test_the_sizes_are_the_forecast(demo_nf4: Converted) -> None:
    sizes = demo_nf4.manifest["sizes"]
    weights = demo_nf4.folder / "model.safetensors"
    assert sizes["output_bytes"] == weights.stat().st_size == sizes["expected_output_bytes"]
    assert sizes["source_bytes"] == (demo_nf4.source / "pytorch_model.bin").stat().st_size


def test_every_figure_on_the_card_is_in_the_manifest(demo_nf4: Converted) -> None:
    card = (demo_nf4.folder / "README.md").read_text()
    known = {form for value in leaves(demo_nf4.manifest) for form in forms(value)}
    figures = re.findall(r"(?<![\w.-])\d+(?:\.\d+)*(?![\w.]*\w)", without_code(card))
    assert len(figures) > 15
    assert [each for each in figures if each not in known] == []


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def forms(value: object) -> set[str]:
    """How a card may print a value: as it is, in four digits or places, in GB or in per cent."""
    if isinstance(value, str):
        return {value, *re.findall(r"\d+(?:\.\d+)*", value)}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return set()
    return {
        str(value), f"{value:.4g}", f"{value:.4f}", f"{value / 1e9:.3f}", f"{100 * value:.1f}"
    }  # fmt: skip


def without_code(card: str) -> str:
    """The card's prose: without digests, code and the measures' own names."""
    text = re.sub(r"```.*?```|`[^`]*`", "", card, flags=re.DOTALL)
    for words in ("99th", "top-1", "SHA-256", "float16", "float32"):
        text = text.replace(words, "")
    return text


def test_the_card_changes_with_the_manifest(demo_nf4: Converted) -> None:
    """No figure is written into the template."""
    changed = json.loads(json.dumps(demo_nf4.manifest))
    changed["gate"]["perplexity"]["quantized"] = 123.456
    changed["gate"]["top1_agreement"] = 0.1234
    card = render_card(changed)
    assert "123.5" in card
    assert "0.1234" in card
    del changed["gate"]["kl_divergence"]["mean"]
    with pytest.raises((KeyError, TypeError, UndefinedError), match=r"Undefined|mean"):
        render_card(changed)


def test_who_listens_to_the_gate_prints_where_they_printed_before(
    demo_nf4: Converted, capsys: pytest.CaptureFixture[str]
) -> None:
    """What libraries print is held back, and nothing of the caller's."""
    quantkit.check(
        demo_nf4.folder, demo_nf4.source, recipe="bnb-nf4", set=QUICK,
        listener=lambda event: print(event.stage),
    )  # fmt: skip
    captured = capsys.readouterr()
    assert {"perplexity", "generation"} <= set(captured.out.split())
    assert "perplexity" not in captured.err


def test_the_output_verifies_and_any_change_is_listed(demo_nf4: Converted, tmp_path: Path) -> None:
    copy = shutil.copytree(demo_nf4.folder, tmp_path / "copy")
    assert quantkit.verify(copy)["status"] == "verified"
    (copy / "config.json").write_text("{}")
    (copy / "spiece.model").unlink()
    (copy / "extra.py").write_text("")
    with pytest.raises(MismatchError) as caught:
        quantkit.verify(copy)
    for words in ("config.json has changed", "spiece.model is missing", "extra.py is not in"):
        assert words in str(caught.value)


def test_the_output_opens_for_users_and_speaks(demo_nf4: Converted) -> None:
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo_nf4.folder, device_map="cpu")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    pieces = SentencePieceProcessor(model_file=str(demo_nf4.folder / "spiece.model"))
    ids = torch.tensor([pieces.encode("The value of the")])
    said = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=3)
    assert said.shape[1] > ids.shape[1]


def test_two_runs_write_the_same_bytes(demo_nf4: Converted, tmp_path: Path) -> None:
    quantkit.convert(demo_nf4.source, "bnb-nf4", tmp_path / "again", no_gate=True)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert sha256(tmp_path / "again" / name) == sha256(demo_nf4.folder / name), name


@pytest.mark.parametrize("recipe", ["bnb-nf4-double", "bnb-fp4", "bnb-int8", "fp16", "bf16"])
def test_two_runs_write_the_same_bytes_with_each_recipe(
    demo: Path, tmp_path: Path, recipe: str
) -> None:
    for name in ("one", "two"):
        quantkit.convert(demo, recipe, tmp_path / name, no_gate=True)
    for name in ("model.safetensors", "config.json"):
        assert sha256(tmp_path / "one" / name) == sha256(tmp_path / "two" / name), name


# the contract's JSON


def test_the_json_is_the_contracts(demo: Path, tmp_path: Path) -> None:
    said = succeeded(
        "convert", demo, "--recipe", "bnb-nf4", "--out", tmp_path / "out", "--json",
        "--text", demo / "heldout.txt", *options(*QUICK),
    )  # fmt: skip
    assert said.count("\n") == 1
    found = json.loads(said, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert shape(found) == shape(CONTRACT)
    assert found["out"] == str(tmp_path / "out")
    assert found["recipe"] == "bnb-nf4"
    assert found["source"]["status"] == "verified"
    assert found["source"]["path"] == str(demo)
    assert set(found["gate"]["levels"]) == set(CONTRACT["gate"]["levels"])
    seconds = found["seconds"]
    assert 0 < seconds["convert"] + seconds["gate"] <= seconds["total"]


#: The contract of design.md, section 3: names and kinds. ``...``: any value.
CONTRACT = {
    "out": "", "recipe": "", "device": "",
    "source": {"path": "", "revision": ..., "status": "", "files": ...},
    "sizes": {"source_bytes": 0, "output_bytes": 0, "expected_output_bytes": 0},
    "seconds": {"verify": 0.0, "convert": 0.0, "gate": 0.0, "total": 0.0},
    "peak_rss_bytes": 0,
    "gate": {
        "status": "",
        "levels": {"structure": "", "tokenizer": "", "reload": "", "perplexity": "",
                   "generation": ""},
        "perplexity": {"reference": 0.0, "quantized": 0.0, "ratio": 0.0, "tokens": 0,
                       "protocol": ""},
        "kl_divergence": {"mean": 0.0, "p99": 0.0},
        "top1_agreement": 0.0,
        "generation": {"prompts": 0, "token_agreement": 0.0, "identical": 0},
    },
}  # fmt: skip


def shape(value: object, like: object = CONTRACT) -> object:
    """Kinds of what the contract names; what it does not name may be there too."""
    if isinstance(like, dict):
        assert isinstance(value, dict)
        return {key: shape(value.get(key, "absent"), each) for key, each in like.items()}
    return ... if like is ... else type(value)


def test_the_peak_is_this_processs_own(source: Path, tmp_path: Path) -> None:
    """Linux hands a parent's ``ru_maxrss`` on to what it starts; the card must not."""
    ballast = b"x" * 1_500_000_000
    asked = ("convert", source, "--recipe", "bnb-nf4", "--out", tmp_path / "out", "--no-gate")
    done = subprocess.run(command(*asked, "--json"), capture_output=True, check=True)
    assert len(ballast) > 1e9
    assert 1e8 < json.loads(done.stdout)["peak_rss_bytes"] < 1e9


@pytest.mark.parametrize("said", [None, "", "Name:\tpython\nVmRSS:\t1024 kB\n"])
def test_a_system_that_does_not_say_the_peak_costs_no_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    """gVisor's ``/proc/self/status`` has no ``VmHWM``."""
    if said is not None:
        (tmp_path / "status").write_text(said)
    monkeypatch.setattr(clock, "_STATUS", tmp_path / "status")
    assert clock.Clock().measured().peak_rss_bytes > 1e6


@pytest.mark.parametrize("odd", ["8", [8], {"a": 8}, 0, -8, 8.5, None], ids=str)
def test_a_key_that_is_not_the_classs_own_costs_no_conversion(tmp_path: Path, odd: object) -> None:
    """transformers looks at the keys that a class has: GPT-NeoX has no num_key_value_heads."""
    source = write_source(tmp_path / "source")
    made = []
    for change in ({}, {"num_key_value_heads": odd}):
        config = json.loads((source / "config.json").read_text()) | change
        (source / "config.json").write_text(json.dumps(config))
        made.append(quantkit.convert(source, "fp16", tmp_path / f"{change}", no_gate=True))
    cache = [each["sizes"]["kv_cache_bytes_per_token"] for each in made]
    assert cache[0] == cache[1] > 0


def test_the_plans_json_is_one_object(demo: Path) -> None:
    found = json.loads(succeeded("plan", demo, "--recipe", "bnb-nf4", "--json"))
    assert found["digest"] == quantkit.plan(demo, "bnb-nf4").digest
    assert sum(each["action"] == "quantize" for each in found["tensors"]) == 24


# a gate that fails


def test_a_failed_gate_publishes_nothing_and_can_be_judged_again(
    demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = ("--text", demo / "heldout.txt")
    asked = ("convert", demo, "--recipe", "bnb-nf4", "--out", out, *text, *options(*QUICK))
    said = refused(4, *asked, "--set", STRICT)
    assert "mean KL divergence" in said
    assert str(partial(out)) in said
    assert not out.exists()
    note = json.loads((partial(out) / "quantkit-staging.json").read_text())
    assert note["state"] == "failed"
    assert "mean KL divergence" in note["gate"]["failures"][0]
    weights = (partial(out) / "model.safetensors").stat()

    refused(4, *asked, "--set", "gate.max_kl_mean=2e-9")
    again = (partial(out) / "model.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (weights.st_ino, weights.st_mtime_ns)

    staged = partial(out) / "quantkit-staging.json"
    note = json.loads(staged.read_text())
    del note["threads"]  # as a run of before they were noted left it
    staged.write_text(json.dumps(note))
    succeeded(*asked)
    final = (out / "model.safetensors").stat()
    assert (final.st_ino, final.st_mtime_ns) == (weights.st_ino, weights.st_mtime_ns)
    assert not partial(out).exists()
    assert not (out / "quantkit-staging.json").exists()
    assert json.loads((out / "quantkit-manifest.json").read_text())["gate"]["status"] == "passed"
    assert quantkit.verify(out)["gate"] == "passed"


@pytest.fixture
def failed(demo: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the demo model, and an output whose gate failed."""
    source = shutil.copytree(demo, tmp_path / "source")
    out = tmp_path / "out"
    with pytest.raises(GateError):
        quantkit.convert(source, "bnb-nf4", out, set=[*QUICK, STRICT])
    return source, out


def events_of(source: Path, out: Path, *overrides: str, no_gate: bool = True) -> set[str]:
    """The stages that a conversion went through."""
    heard: list[Event] = []
    quantkit.convert(
        source, "bnb-nf4", out, no_gate=no_gate, set=[*QUICK, *overrides], listener=heard.append
    )
    return {each.stage for each in heard}


def test_another_plan_starts_over(failed: tuple[Path, Path]) -> None:
    source, out = failed
    assert "convert" in events_of(source, out, "method.block_size=128")


def test_a_disk_that_fills_while_starting_over_leaves_no_weights(
    failed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = failed

    def full(plan, source, recipe, registry, folder, **_):
        (folder / "model.safetensors").write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(execution, "run", full)
    with pytest.raises(StorageError, match="is full"):
        events_of(source, out, "method.block_size=128")
    assert {path.name for path in partial(out).iterdir()} == {"quantkit-staging.json"}


def test_damaged_staged_files_are_made_anew(failed: tuple[Path, Path], demo_nf4: Converted) -> None:
    source, out = failed
    with (partial(out) / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert "convert" in events_of(source, out)
    name = "model.safetensors"
    assert sha256(out / name) == sha256(demo_nf4.folder / name)


def test_a_changed_source_starts_over(failed: tuple[Path, Path]) -> None:
    source, out = failed
    raw = bytearray((source / "pytorch_model.bin").read_bytes())
    record = next(
        each.source
        for each in quantkit.plan(source, "bnb-nf4").tensors
        if each.source.name == "embed_out.weight"
    )
    raw[record.offset] ^= 1
    (source / "pytorch_model.bin").write_bytes(raw)
    assert "convert" in events_of(source, out)
    changed = torch.frombuffer(raw, dtype=torch.float16, count=1, offset=record.offset)
    written = load_file(out / "model.safetensors")["embed_out.weight"]
    assert written.flatten()[0] == changed[0]


def test_a_tokenizer_changed_since_the_gate_failed_is_not_published_stale(
    failed: tuple[Path, Path],
) -> None:
    """The manifest would otherwise list the new file's digest as the source of the old one."""
    source, out = failed
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 7}))
    events_of(source, out)
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 7


def test_a_mistake_in_the_text_does_not_cost_the_conversion(
    failed: tuple[Path, Path], tmp_path: Path
) -> None:
    """The staged files were worth keeping when the gate failed; a typo must not delete them."""
    source, out = failed
    with pytest.raises(quantkit.QuantkitError, match="nowhere"):
        quantkit.convert(source, "bnb-nf4", out, text=tmp_path / "nowhere.txt", set=QUICK)
    assert (partial(out) / "model.safetensors").is_file()


def test_no_gate_is_recorded_as_not_run(demo: Path, tmp_path: Path) -> None:
    manifest = quantkit.convert(demo, "bnb-nf4", tmp_path / "out", no_gate=True)
    assert manifest["gate"]["status"] == "not_run"
    assert set(manifest["gate"]["levels"].values()) == {"not_run"}
    assert manifest["gate"]["perplexity"] is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Gate: **not run**" in card
    assert "passed" not in card


# the registry's word


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("pristine") / "neox", container="torch")


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "source")


def registry(
    folder: Path, source: Path, *, status: str, repository: str = "own/model", digest: str = ""
) -> Path:
    """A folder with one entry: the weights of ``source``, by SHA-256 unless ``digest`` is given."""
    digest = digest or f'sha256 = "{sha256(source / "pytorch_model.bin")}"'
    folder.mkdir()
    (folder / "entry.toml").write_text(
        f'repository = "{repository}"\n[[releases]]\ndate = "2023-07-31"\nstatus = "{status}"\n'
        'stated_at = "https://example.org/notice"\nreason = "licence of the data"\n'
        'advice = "use the next one"\n'
        f'[[releases.files]]\nname = "pytorch_model.bin"\n{digest}\n'
    )
    return folder


def judged(source: Path, out: Path, *registries: Path, **more: object) -> dict[str, object]:
    return quantkit.convert(
        source, "bnb-nf4", out, no_gate=True, checksums=registries, **more
    )["source"]  # fmt: skip


def md5_of(source: Path) -> str:
    return f'md5 = "{hashlib.md5((source / "pytorch_model.bin").read_bytes()).hexdigest()}"'


@pytest.mark.parametrize("by", ["sha256", "md5"])
@pytest.mark.parametrize("name", ["source", "models--own--other/snapshots/0123abcd", "own/model"])
def test_a_withdrawn_release_is_caught_under_any_name(
    source: Path, tmp_path: Path, name: str, by: str
) -> None:
    digest = md5_of(source) if by == "md5" else ""
    mine = registry(tmp_path / "registry", source, status="withdrawn", digest=digest)
    renamed = tmp_path / "here" / name
    renamed.parent.mkdir(parents=True)
    source.rename(renamed)
    with pytest.raises(WithdrawnError) as caught:
        judged(renamed, tmp_path / "out", mine)
    said = str(caught.value)
    for words in ("own/model", "licence of the data", "https://example.org/notice", "use the next"):
        assert words in said
    assert {path.name for path in tmp_path.iterdir()} == {"registry", "here"}, "nothing left"


def test_a_withdrawn_release_exits_3(source: Path, tmp_path: Path) -> None:
    mine = registry(tmp_path / "registry", source, status="withdrawn")
    asked = ("--recipe", "bnb-nf4", "--out", tmp_path / "out", "--checksums", mine, "--no-gate")
    assert "withdrawn" in refused(3, "convert", source, *asked, "--json")
    assert "withdrawn" in refused(3, "verify", source, "--checksums", mine)
    assert not (tmp_path / "out").exists()


def test_a_withdrawn_source_leaves_no_parents_either(source: Path, tmp_path: Path) -> None:
    mine = registry(tmp_path / "registry", source, status="withdrawn")
    with pytest.raises(WithdrawnError):
        judged(source, tmp_path / "new" / "deep" / "out", mine)
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("order", [1, -1])
def test_withdrawn_wins_over_another_registrys_current(
    source: Path, tmp_path: Path, order: int
) -> None:
    both = [
        registry(tmp_path / "good", source, status="current", repository="own/good"),
        registry(tmp_path / "bad", source, status="withdrawn", repository="own/bad"),
    ]
    with pytest.raises(WithdrawnError):
        judged(source, tmp_path / "out", *both[::order])


def test_a_release_without_a_date_is_not_listed_beside_itself(source: Path, tmp_path: Path) -> None:
    mine = registry(tmp_path / "registry", source, status="withdrawn")
    text = (mine / "entry.toml").read_text()
    (mine / "entry.toml").write_text(
        text.replace('date = "2023-07-31"', f'revision = "{"a" * 40}"')
    )
    found = judged(source, tmp_path / "out", mine, allow_withdrawn=True)
    assert found["verdict"]["release"] == "a" * 7
    assert found["withdrawn"] == []


def test_what_was_asked_for_keeps_no_folder_of_this_machine(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source)
    found = pipeline._request(
        source=".", recipe="secret/mine.toml", out="secret/model", revision=None, device="cpu",
        texts=[Path("secret/a.txt")], calibration="secret/c.txt", checksums=["secret/own"],
        policy=Policy(), no_gate=True, set=(),
    )  # fmt: skip
    assert found["source"] == source.name
    assert "secret" not in json.dumps(found)


def test_an_allowed_withdrawn_release_is_stamped(source: Path, tmp_path: Path) -> None:
    mine = registry(tmp_path / "registry", source, status="withdrawn")
    found = judged(source, tmp_path / "out", mine, allow_withdrawn=True)
    assert found["status"] == "withdrawn"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The source of these weights was withdrawn" in card
    assert "licence of the data" in card
    manifest = json.loads((tmp_path / "out" / "quantkit-manifest.json").read_text())
    assert manifest["source"]["verdict"]["stated_at"] == "https://example.org/notice"
    with pytest.raises(WithdrawnError):
        quantkit.verify(tmp_path / "out", checksums=[mine])


def test_an_output_made_before_the_withdrawal_is_caught_by_verify(
    source: Path, tmp_path: Path
) -> None:
    judged(source, tmp_path / "out")
    assert quantkit.verify(tmp_path / "out")["status"] == "unlisted"
    mine = registry(tmp_path / "registry", source, status="withdrawn")
    with pytest.raises(WithdrawnError):
        quantkit.verify(tmp_path / "out", checksums=[mine])


def test_a_current_release_is_verified(source: Path, tmp_path: Path) -> None:
    mine = registry(tmp_path / "registry", source, status="current")
    assert judged(source, tmp_path / "out", mine, require_verified=True)["status"] == "verified"


def test_a_superseded_release_is_recorded_and_not_verified(source: Path, tmp_path: Path) -> None:
    mine = registry(tmp_path / "registry", source, status="superseded")
    assert judged(source, tmp_path / "one", mine)["status"] == "superseded"
    with pytest.raises(UnlistedError, match="superseded"):
        judged(source, tmp_path / "two", mine, require_verified=True)
    assert not (tmp_path / "two").exists()


def test_an_unlisted_source_is_recorded_or_refused(source: Path, tmp_path: Path) -> None:
    assert judged(source, tmp_path / "one")["status"] == "unlisted"
    with pytest.raises(UnlistedError) as caught:
        judged(source, tmp_path / "two", require_verified=True)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "two").exists()
    assert not partial(tmp_path / "two").exists()


@pytest.mark.parametrize("claim", ["cache", "recipe", "recipe in other case"])
@pytest.mark.parametrize("status", ["current", "withdrawn"])
def test_a_claim_that_no_release_matches_is_a_mismatch(
    source: Path, tmp_path: Path, claim: str, status: str
) -> None:
    mine = registry(tmp_path / "registry", source, status=status, digest=f'sha256 = "{"0" * 64}"')
    repo = {"cache": "", "recipe": "own/model"}.get(claim, "OWN/Model")
    if claim == "cache":
        cached = tmp_path / "hub" / "models--own--model" / "snapshots" / "0123abcd"
        cached.parent.mkdir(parents=True)
        source = source.rename(cached)
    for allowed in (False, True):
        with pytest.raises(MismatchError) as caught:
            judged(
                source, tmp_path / "out", mine, set=[f'source.repo="{repo}"'],
                allow_withdrawn=allowed,
            )  # fmt: skip
        assert "own/model" in str(caught.value)
        assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    assert not partial(tmp_path / "out").exists()


def test_a_claim_is_kept_by_the_right_weights(source: Path, tmp_path: Path) -> None:
    mine = registry(tmp_path / "registry", source, status="current")
    found = judged(source, tmp_path / "out", mine, set=['source.repo="own/model"'])
    assert found["status"] == "verified"
    assert "base_model: own/model" in (tmp_path / "out" / "README.md").read_text()


def test_the_built_in_registry_is_asked_too(demo: Path, tmp_path: Path) -> None:
    claimed = 'source.repo="rinna/bilingual-gpt-neox-4b-instruction-sft"'
    with pytest.raises(MismatchError):
        judged(demo, tmp_path / "out", set=[claimed])


# an output that appears meanwhile


def test_an_output_that_appears_meanwhile_is_not_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interfere(event: Event) -> None:
        if event.stage == "convert" and not out.exists():
            out.mkdir()
            (out / "thesis.tex").write_text("years of work")

    with pytest.raises(OutputExistsError):
        quantkit.convert(source, "bnb-nf4", out, no_gate=True, listener=interfere)
    assert (out / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_weights_are_as_open_to_others_as_what_lies_beside_them(
    source: Path, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        quantkit.convert(source, "bnb-nf4", tmp_path / "out", no_gate=True)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert modes == {0o666 & ~umask}
