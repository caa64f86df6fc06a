"""Names and words that are no text, files without an end, and streams that are closed."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from commanding import command, refused
from conftest import Converted
from tiny import write_source

import quantkit
from quantkit.errors import GateError, QuantkitError, SourceError, UsageError
from quantkit.evaluation import read_ids, read_material, read_prompts
from quantkit.quiet import quiet_loading
from quantkit.recipe import load_recipe
from quantkit.skeleton import build_empty, parse_config
from quantkit.tokenizer import Tokenizer

ODD = os.fsdecode(b"lat\xe9")


def test_an_output_or_a_source_whose_name_is_no_utf8_is_refused_first(
    demo: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        quantkit.convert(demo, "fp16", tmp_path / ODD, no_gate=True)
    shutil.copytree(demo, tmp_path / ODD)
    with pytest.raises(UsageError, match="not UTF-8"):
        quantkit.convert(tmp_path / ODD, "fp16", tmp_path / "out", no_gate=True)
    assert [each.name for each in tmp_path.iterdir()] == [ODD]


@pytest.mark.parametrize("what", ["text", "calibration"])
def test_a_text_whose_name_is_no_utf8_is_refused_first(
    demo: Path, tmp_path: Path, what: str
) -> None:
    path = tmp_path / f"{ODD}.txt"
    shutil.copy(demo / "heldout.txt", path)
    with pytest.raises(UsageError, match="not UTF-8"):
        quantkit.convert(
            demo, "gptq-4bit-g128", tmp_path / "out", set=["method.group_size=64"], **{what: path}
        )
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "said",
    [
        os.fsdecode(b'name="a\xff"'),
        'evaluation.prompts=[""]',
        "generation.temperature=-1.0",
        "generation.top_p=9.0",
        "generation.repetition_penalty=0.0",
        "generation.max_new_tokens=-5",
    ],
)
def test_settings_that_no_run_could_end_well_with_are_refused_first(demo: Path, said: str) -> None:
    with pytest.raises(UsageError):
        quantkit.plan(demo, "bnb-nf4", set=said)


def test_a_prompt_that_holds_no_token_is_refused_first() -> None:
    recipe = load_recipe("bnb-nf4", 'evaluation.prompts=["  "]')
    nothing = Tokenizer("a tokenizer", lambda text: [], lambda ids: "", ())
    with pytest.raises(UsageError, match="holds no token"):
        read_prompts(recipe, nothing, None)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (r'{"text": "\ud800 there and there"}', "jsonl:1: a lone surrogate"),
        ('{"messages": [{"role": "system", "content": "be nice"}]}', "jsonl:1: expected"),
    ],
)
def test_calibration_lines_that_are_no_turn_or_no_text_are_named(
    demo: Path, tmp_path: Path, line: str, match: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UsageError, match=match):
        quantkit.convert(
            demo, "gptq-4bit-g128", tmp_path / "out", no_gate=True, calibration=path,
            set=["method.group_size=64", 'prompt={user="u", system="s", separator=": ", '
                 'turn_end="<NL>", newline="<NL>"}'],
        )  # fmt: skip


def test_a_card_or_a_recipe_without_an_end_is_refused(demo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo, tmp_path / "model")
    (folder / "README.md").unlink(missing_ok=True)
    with (folder / "README.md").open("wb") as file:
        file.truncate(1 << 40)
    assert "README.md: expected at most" in refused(1, "plan", folder, "--recipe", "bnb-nf4")
    with (tmp_path / "big.toml").open("wb") as file:
        file.truncate(1 << 40)
    said = refused(2, "plan", demo, "--recipe", tmp_path / "big.toml")
    assert "big.toml: expected at most" in said


def test_generation_settings_that_transformers_refuses_fail_gptqs_gate_too(
    demo: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(demo, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": -5}))
    with pytest.raises(GateError, match="max_new_tokens"):
        quantkit.convert(
            folder, "gptq-4bit-g128", tmp_path / "out", text=demo / "heldout.txt",
            set=["method.group_size=64", "calibration.samples=2", "calibration.length=32",
                 "evaluation.max_windows=1"],
        )  # fmt: skip


def test_a_lone_path_is_not_taken_for_its_letters(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        quantkit.checksums("nowhere")
    with pytest.raises(UsageError, match="nowhere"):
        quantkit.convert(demo, "fp16", tmp_path / "out", no_gate=True, checksums="nowhere")
    with pytest.raises(QuantkitError, match="nowhere"):
        quantkit.compare("nowhere", demo)


def test_a_lone_override_is_not_taken_for_its_letters(demo: Path, demo_nf4: Converted) -> None:
    with pytest.raises(UsageError, match="unknown key 'nonsense'"):
        quantkit.check(demo_nf4.folder, demo, set="nonsense=1")
    with pytest.raises(UsageError, match="unknown key 'nonsense'"):
        quantkit.compare([demo_nf4.folder], demo, set="nonsense=1")


def test_what_stands_before_the_word_counts_for_it_too(tmp_path: Path) -> None:
    shown = subprocess.run(
        command("checksums", "--json", "list"), capture_output=True, check=True, text=True
    )
    assert json.loads(shown.stdout)["entries"]
    assert "no such folder" in refused(2, "checksums", "--checksums", tmp_path / "no", "list")


def test_a_closed_stream_is_no_crash(demo: Path) -> None:
    words = shlex.join(command("plan", demo, "--recipe", "bnb-nf4"))
    done = subprocess.run(f"{words} 2>&-", shell=True, capture_output=True, check=False)
    assert done.returncode == 0
    assert b"quantize" in done.stdout


def test_an_answer_after_progress_goes_to_standard_output(demo: Path, tmp_path: Path) -> None:
    """While progress is drawn on a terminal, what is printed is drawn there too."""
    ours, theirs = pty.openpty()
    answer = tmp_path / "plan.json"
    with answer.open("wb") as out:
        words = command("plan", demo, "--recipe", "bnb-nf4", "--json")
        child = subprocess.Popen(words, stdout=out, stderr=theirs)
        os.close(theirs)
        drawn = b"".join(iter(lambda: _read(ours), b""))
    assert child.wait() == 0
    assert json.loads(answer.read_bytes())["tensors"]
    assert b'"tensors"' not in drawn


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize(
    "words",
    ["--version", "--help", "convert --help", "recipes", "recipes fp16", "recipes fp16 --json"],
)
def test_a_full_disk_behind_the_output_is_no_crash_and_no_success(words: str) -> None:
    # what is short stays in the buffer until the end
    env = {key: each for key, each in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(*words.split()), stdout=full, stderr=subprocess.PIPE, check=False, text=True,
            env=env,
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_models_are_built_one_at_a_time(tmp_path: Path) -> None:
    """accelerate swaps a method of torch's meanwhile; two at once left it swapped."""
    source = write_source(tmp_path / "source")
    before = torch.nn.Module.register_parameter
    settings = ["calibration.samples=2", "calibration.length=16", "method.group_size=16"]

    def work(at: int) -> None:
        ids = tmp_path / f"{at}.json"
        ids.write_text(json.dumps([[at + 1, 2, 3, 4] * 4] * 2))
        quantkit.convert(
            source, "gptq-4bit-g128", tmp_path / f"out{at}", no_gate=True, calibration=ids,
            set=settings,
        )  # fmt: skip

    threads = [threading.Thread(target=work, args=(at,)) for at in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all((tmp_path / f"out{at}").is_dir() for at in range(3))
    assert torch.nn.Module.register_parameter is before
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_no_model_is_built_while_another_is_loaded(tmp_path: Path) -> None:
    """A gate that loaded one meanwhile found weights without values, and failed."""
    source = write_source(tmp_path / "source")
    parsed = parse_config(source, json.loads((source / "config.json").read_text()))
    building = threading.Thread(
        target=build_empty, args=(parsed, "float16"), kwargs={"with_buffers": True}
    )
    with quiet_loading():
        building.start()
        building.join(1)
        assert building.is_alive()
    building.join(60)
    assert not building.is_alive()


def test_verbs_at_once_import_transformers_one_after_another(demo: Path) -> None:
    """While it is imported it takes its own place: who waited for it got a module of nothing."""
    code = f"""
import sys, threading, quantkit
quantkit.plan, quantkit.check_tokenizer  # what loads them is loaded
start, failed = threading.Barrier(4), []
def work(call, *given):
    start.wait()
    try:
        call(*given)
    except BaseException as error:
        failed.append(repr(error))
calls = [(quantkit.plan, {str(demo)!r}, "bnb-nf4"), (quantkit.check_tokenizer, {str(demo)!r})]
threads = [threading.Thread(target=work, args=each) for each in calls * 2]
assert "transformers" not in sys.modules
[each.start() for each in threads]
[each.join() for each in threads]
print(failed)
"""
    env = {**os.environ, "QUANTKIT_CACHE": "off"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=120, check=True)
    assert done.stdout == "[]\n"


def test_an_override_that_meets_nothing_is_told_of(demo: Path) -> None:
    said = 'method.override=[{pattern="nowhere", bits=8}, {pattern="layers.0", bits=8}]'
    made = quantkit.plan(demo, "gptq-4bit-g128", set=["method.group_size=64", said])
    about = [each for each in made.warnings if "no quantized module" in each]
    assert about == ["the override 'nowhere' is found in the name of no quantized module"]


def test_a_group_that_fits_nothing_is_named_as_the_reason(stories260k: Path) -> None:
    with pytest.raises(SourceError, match="no multiple of group_size 128; 64 would fit"):
        quantkit.plan(stories260k, "gptq-4bit-g128")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([1, 2, 3], [(1, 2, 3)]),
        ({"input_ids": [1, 2, 3]}, [(1, 2, 3)]),
        ({"attention_mask": [[1, 1, 1]], "input_ids": [[5, 6, 7]]}, [(5, 6, 7)]),
        ({"ids": [[1, 2], [3, 4]]}, [(1, 2), (3, 4)]),
        ({"attention_mask": [[1, 1]], "ids": [[5, 6]]}, None),
        ({}, None),
        ({"input_ids": [1, -2]}, None),
    ],
)
def test_ids_are_not_taken_from_what_stands_beside_them(
    given: object, read: list[tuple[int, ...]] | None
) -> None:
    raw = json.dumps(given).encode()
    if read is None:
        with pytest.raises(UsageError, match="expected token ids"):
            read_ids("text", Path("ids.json"), raw)
    else:
        assert list(read_ids("text", Path("ids.json"), raw)) == read


def test_texts_of_one_name_in_folders_of_one_name_are_numbered(demo: Path, tmp_path: Path) -> None:
    paths = []
    for at, folder in enumerate(("a/x", "b/x", "c")):
        (tmp_path / folder).mkdir(parents=True)
        paths.append(tmp_path / folder / "t.txt")
        paths[-1].write_text(f"The value of the number {at}.")
    material = read_material(demo, load_recipe("bnb-nf4"), paths)
    assert [each.name for each in material.texts] == ["x/t.txt", "x/t.txt (2)", "c/t.txt"]
