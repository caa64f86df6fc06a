"""Killed, interrupted, out of disk, or beside another run: an output is whole or is not there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial as partial_function
from pathlib import Path

import numpy as np
import pytest
import torch
from commanding import command, the_error
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tiny import write_source
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import quantkit
from quantkit import execution, pipeline, staging
from quantkit.checkpoint.shards import Shard, ShardWriter, layout, set_aside
from quantkit.errors import GateError, OutputExistsError, StorageError, UsageError
from quantkit.staging import NOTE, amendment_of, held, staging_for
from quantkit.types import Event, OutputTensor

WIDTH, LAYERS, VOCABULARY = 512, 8, 12_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random fp16 GPT-NeoX of 75 MB: long enough under way to be caught in the middle."""
    folder = tmp_path_factory.mktemp("large") / "source"
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=8,
        intermediate_size=4 * WIDTH, max_position_embeddings=128, dtype="float16",
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in GPTNeoXForCausalLM(config).state_dict().items()}
    random_ = torch.Generator().manual_seed(0)
    state = {k: torch.randn(shape, generator=random_).half() for k, shape in shapes.items()}
    state["embed_out.weight"] = state.pop("lm_head.weight")
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert 60e6 < (folder / "model.safetensors").stat().st_size < 100e6
    return folder


def convert(source: Path, out: Path) -> list[str]:
    return command("convert", source, "--recipe", "bnb-nf4", "--out", out, "--no-gate")


def partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def made(folder: Path) -> dict[str, bytes]:
    """What must not depend on when it was made: all files but the manifest and its card."""
    names = {path.name for path in folder.iterdir()} - {"quantkit-manifest.json", "README.md"}
    return {name: (folder / name).read_bytes() for name in sorted(names)}


class Undisturbed:
    """One run to its end, and when its two stages began, in seconds from its start."""

    def __init__(self, source: Path, out: Path) -> None:
        start = time.monotonic()
        process = subprocess.Popen(convert(source, out), stderr=subprocess.DEVNULL)
        self.begin = wait_for(partial(out), process) - start
        assert process.wait() == 0
        self.end = time.monotonic() - start
        self.files = made(out)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> float:
    """The moment when ``path`` appeared, or when ``process`` ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)
    return time.monotonic()


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    Undisturbed(source, tmp_path_factory.mktemp("warm") / "out")  # caches filled
    return Undisturbed(source, tmp_path_factory.mktemp("undisturbed") / "out")


# kill -9


def moments(count: int = int(os.environ.get("QUANTKIT_KILLS", "6"))) -> list[tuple[str, float]]:
    """Two anywhere in a run, the others where it writes; as shares of that time."""
    chosen = random.Random(20231)
    anywhere = [("start", chosen.random()) for _ in range(2)]
    return anywhere + [("writing", (at + chosen.random()) / (count - 2)) for at in range(count - 2)]


@pytest.mark.parametrize(("stage", "share"), moments())
def test_a_kill_leaves_no_output_and_a_rerun_the_same_bytes(
    source: Path, undisturbed: Undisturbed, tmp_path: Path, stage: str, share: float
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(convert(source, out), stderr=subprocess.DEVNULL)
    try:
        if stage == "start":
            time.sleep(share * undisturbed.begin)
        else:
            wait_for(partial(out), process)
            time.sleep(share * (undisturbed.end - undisturbed.begin))
    finally:
        process.kill()
        process.wait()
    if out.exists():  # killed after the rename: then it is whole
        assert quantkit.verify(out)["gate"] == "not_run"
    else:
        quantkit.convert(source, "bnb-nf4", out, no_gate=True)
    assert made(out) == undisturbed.files
    assert not partial(out).exists()


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(
    tmp_path: Path,
) -> None:
    source = write_source(tmp_path / "source")
    out = tmp_path / "out"
    quantkit.convert(source, "bnb-nf4", out, no_gate=True)
    before = made(out)
    replaced = tmp_path / ".out.quantkit-replaced"
    out.rename(replaced)
    shutil.copytree(replaced, partial(out))
    with pytest.raises(UsageError, match="exists already"):
        quantkit.convert(source, "bnb-nf4", out, no_gate=True)
    assert made(out) == before
    quantkit.convert(source, "bnb-nf4", out, no_gate=True, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.parametrize("place", ["out/inside", "out.partial", ".out.quantkit-replaced"])
def test_a_source_in_the_way_of_the_output_is_left_alone(tmp_path: Path, place: str) -> None:
    first = write_source(tmp_path / "first")
    quantkit.convert(first, "bnb-nf4", tmp_path / "out", no_gate=True)
    source = shutil.copytree(first, tmp_path / place)
    before = made(source)
    with pytest.raises(UsageError, match="lies in"):
        quantkit.convert(source, "fp16", tmp_path / "out", no_gate=True, overwrite=True)
    assert made(source) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["out.replaced", "out.partial"])
def test_folders_that_only_sound_like_ours_are_left_alone(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    source = write_source(tmp_path / "source")
    other, out = tmp_path / name, tmp_path / "out"
    quantkit.convert(source, "fp16", other, no_gate=True)  # a whole output of that very name
    before = made(other)
    if overwrite:
        quantkit.convert(source, "bnb-nf4", tmp_path / "made", no_gate=True)
        (tmp_path / "made").rename(out)
    with suppress(UsageError):
        quantkit.convert(source, "bnb-nf4", out, no_gate=True, overwrite=overwrite)
    assert made(other) == before


def test_a_folder_in_place_of_the_note_is_not_ours(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    (tmp_path / "out.partial" / NOTE).mkdir(parents=True)
    with pytest.raises(OutputExistsError, match="not left by quantkit"):
        quantkit.convert(source, "bnb-nf4", tmp_path / "out", no_gate=True)


def test_a_link_in_place_of_the_staging_folder_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.partial").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="a link"):
        quantkit.convert(source, "bnb-nf4", tmp_path / "out", no_gate=True)


@pytest.mark.parametrize("name", ["out", "out.partial", "out/inside"])
def test_an_output_where_links_lead_in_a_circle(source: Path, tmp_path: Path, name: str) -> None:
    circle = tmp_path / name.partition("/")[0]
    circle.symlink_to(circle)
    out = tmp_path / name.removesuffix(".partial")
    with pytest.raises(UsageError, match=r"exists already|cannot be made"):
        quantkit.convert(source, "bnb-nf4", out, no_gate=True)


# interrupts


def interrupted(process: subprocess.Popen[bytes]) -> str:
    """Send Ctrl-C; the process's standard error, once it has stopped as it should."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said.decode()
    return said.decode()


def test_an_interrupt_while_writing_leaves_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(convert(source, out), stderr=subprocess.PIPE)
    wait_for(partial(out) / "model.safetensors", process)
    assert "it takes up what is done" in the_error(interrupted(process))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_judging_leaves_what_a_rerun_takes_up(
    demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = command("convert", demo, "--recipe", "bnb-nf4", "--out", out)
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"reopening"):
            break
    time.sleep(1)
    start = time.monotonic()
    assert "run the same command again" in the_error(interrupted(process))
    assert time.monotonic() - start < 2
    assert list(tmp_path.iterdir()) == [partial(out)]
    heard: list[str] = []
    quantkit.convert(
        demo, "bnb-nf4", out, no_gate=True, listener=lambda event: heard.append(event.message)
    )
    assert "judging the staged files again; not quantizing" in heard
    quantkit.convert(demo, "bnb-nf4", tmp_path / "other", no_gate=True)
    assert made(out) == made(tmp_path / "other")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_an_interrupt_while_starting_is_clean(
    source: Path, undisturbed: Undisturbed, tmp_path: Path, share: float
) -> None:
    process = subprocess.Popen(convert(source, tmp_path / "out"), stderr=subprocess.PIPE)
    time.sleep(share * undisturbed.begin)
    if process.poll() is not None:
        pytest.skip("other work slowed the undisturbed run: this one ended before that began")
    said = interrupted(process)
    assert "Traceback" not in said
    if share > 0.6 and (tmp_path / "out").exists():
        pytest.skip("other work slowed the undisturbed run: this one was saved before that began")
    if share > 0.6 and partial(tmp_path / "out").exists():  # faster than the undisturbed one
        assert "run the same command again" in the_error(said)
    else:
        assert list(tmp_path.iterdir()) == []


# full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    # lazily: a failed test's frames may still hold a file of it
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, left: int) -> None:
    """Take up the disk, but for ``left`` bytes."""
    free = shutil.disk_usage(disk).free
    os.posix_fallocate(fd := os.open(disk / "filler", os.O_CREAT | os.O_WRONLY), 0, free - left)
    os.close(fd)


def test_a_disk_that_is_too_small_is_seen_before_the_work(
    source: Path, disk: Path, tmp_path: Path
) -> None:
    heard: list[str] = []
    with pytest.raises(StorageError) as caught:
        quantkit.convert(
            source, "bnb-nf4", disk / "out", no_gate=True,
            listener=lambda event: heard.append(event.stage),
        )  # fmt: skip
    assert "convert" not in heard
    need = quantkit.plan(source, "bnb-nf4").output_bytes
    stated = re.search(r"needs ([\d,]+) bytes", str(caught.value))
    assert stated is not None
    assert need <= int(stated[1].replace(",", ""))
    assert str(disk) in str(caught.value)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("stage", ["convert", "generation"])
def test_a_disk_that_fills_on_the_way_leaves_what_is_whole(
    demo: Path, disk: Path, stage: str
) -> None:
    def interfere(event: Event) -> None:
        if event.stage == stage and not (disk / "filler").exists():
            fill(disk, left=0)

    few = ["evaluation.max_windows=1", "evaluation.new_tokens=1"]
    with pytest.raises(StorageError, match="full"):
        quantkit.convert(demo, "bnb-nf4", disk / "out", listener=interfere, set=few)
    assert not (disk / "out").exists()
    left = {path.name for path in partial(disk / "out").iterdir()}
    note = json.loads((partial(disk / "out") / "quantkit-staging.json").read_text())
    if stage == "convert":
        assert left == {"quantkit-staging.json"}
        assert "full" in note["reason"]
    else:
        assert {"quantkit-staging.json", "model.safetensors"} < left
        assert note["state"] == "staged"

    (disk / "filler").unlink()
    heard: list[Event] = []
    quantkit.convert(demo, "bnb-nf4", disk / "out", no_gate=True, listener=heard.append)
    assert ("convert" in [each.stage for each in heard]) == (stage == "convert")
    assert quantkit.verify(disk / "out")["status"] == "verified"


def shard_of(size: int) -> Shard:
    (shard,) = layout([[OutputTensor("only", "uint8", (size,), size)]], 1 << 40)
    return shard


def test_a_file_has_its_space_from_the_start(disk: Path) -> None:
    with closing(ShardWriter(disk, shard_of(16 << 20))) as writer:
        fill(disk, left=0)
        for at in range(0, 16 << 20, 1 << 20):
            writer.write("only", at, np.full(1 << 20, at >> 20, np.uint8))
        writer.finish()
    read = load_file(disk / writer.file)["only"]
    assert np.array_equal(read, np.repeat(np.arange(16, dtype=np.uint8), 1 << 20))


def test_a_file_that_the_disk_has_no_room_for_is_not_begun(disk: Path) -> None:
    shard, descriptors = shard_of(64 << 20), Path("/proc/self/fd")
    opened = len(list(descriptors.iterdir()))
    with pytest.raises(OSError, match=r"model\.safetensors") as caught:
        ShardWriter(disk, shard)
    assert caught.value.errno == errno.ENOSPC
    assert len(list(descriptors.iterdir())) == opened


def test_where_space_cannot_be_set_aside_it_is_found_write_by_write() -> None:
    """A pipe has none to set aside."""
    read, write = os.pipe()
    try:
        set_aside(write, 1 << 20)
    finally:
        os.close(read)
        os.close(write)


STRICT = ["evaluation.max_windows=1", "evaluation.new_tokens=1", "gate.max_perplexity_ratio=0.5"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
@pytest.mark.parametrize("judged", [False, True])
def test_files_that_are_whole_outlive_whatever_stops_their_judgement(
    demo: Path, tmp_path: Path, error: type[BaseException], judged: bool
) -> None:
    """``judged``: the gate had failed them, and was asked again."""

    def interfere(event: Event) -> None:
        if event.stage == "gate":
            raise error("stop")

    out = tmp_path / "out"
    if judged:
        with pytest.raises(GateError):
            quantkit.convert(demo, "bnb-nf4", out, set=STRICT)
    with pytest.raises(error):
        quantkit.convert(demo, "bnb-nf4", out, set=STRICT[:2], listener=interfere)
    heard: list[Event] = []
    quantkit.convert(demo, "bnb-nf4", out, set=STRICT[:2], listener=heard.append)
    assert "convert" not in [each.stage for each in heard]
    assert quantkit.verify(out)["status"] == "verified"


def test_files_that_are_whole_outlive_what_stops_their_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside them lie the card and the manifest by then."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            quantkit.convert(source, "bnb-nf4", out, no_gate=True)
    assert (partial(out) / "README.md").is_file()
    heard: list[Event] = []
    quantkit.convert(source, "bnb-nf4", out, no_gate=True, listener=heard.append)
    assert "convert" not in [each.stage for each in heard]
    quantkit.verify(out)


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
def test_what_stops_the_last_rename_leaves_the_old_output_and_the_new_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    source, out, rename = write_source(tmp_path / "source"), tmp_path / "out", Path.rename
    quantkit.convert(source, "fp16", out, no_gate=True)
    before = made(out)

    def stop(path: Path, target: Path) -> Path:
        if path == partial(out):
            raise error
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stop)
        with pytest.raises(error):
            quantkit.convert(source, "bnb-nf4", out, no_gate=True, overwrite=True)
    assert made(out) == before
    heard: list[Event] = []
    quantkit.convert(
        source, "bnb-nf4", out, no_gate=True, overwrite=True, listener=heard.append
    )  # fmt: skip
    assert "convert" not in [each.stage for each in heard]
    assert made(out) != before
    assert {each.name for each in tmp_path.iterdir()} == {"source", "out"}


def test_an_interrupt_after_the_last_rename_denies_nothing(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def flush(path: Path) -> None:
        if path == out.parent:
            raise KeyboardInterrupt

    monkeypatch.setattr(staging, "flush", flush)
    quantkit.convert(demo, "bnb-nf4", out, no_gate=True)
    assert quantkit.verify(out)["status"] == "verified"


def test_an_interrupt_while_the_end_is_told_denies_nothing(demo: Path, tmp_path: Path) -> None:
    words = ["quantkit", "convert", str(demo), "--recipe", "bnb-nf4", "--no-gate", "--out"]
    code = f"""
import os, signal, sys
from quantkit.cli import display, main
told = display.Display.converted
def converted(*words):
    os.kill(os.getpid(), signal.SIGINT)
    told(*words)
display.Display.converted = converted
sys.argv = {[*words, str(tmp_path / "out")]}
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "interrupted" not in done.stderr
    assert (tmp_path / "out" / "quantkit-manifest.json").is_file()


def test_what_gets_the_name_while_files_are_flushed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes minutes, and nothing of others' is replaced."""
    source, out, flush = write_source(tmp_path / "source"), tmp_path / "out", staging.flush

    def beside(path: Path) -> None:
        out.mkdir(exist_ok=True)
        (out / "precious").touch()
        flush(path)

    monkeypatch.setattr(staging, "flush", beside)
    with pytest.raises(OutputExistsError, match="exists already"):
        quantkit.convert(source, "fp16", out, no_gate=True)
    assert [each.name for each in out.iterdir()] == ["precious"]


def test_what_an_earlier_gate_wrote_does_not_stay_without_one(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(GateError):
        quantkit.convert(demo, "bnb-nf4", out, set=STRICT)
    assert (partial(out) / "report" / "report.html").is_file()
    quantkit.convert(demo, "bnb-nf4", out, set=STRICT[:2], no_gate=True)
    assert not (out / "report").exists()
    assert quantkit.verify(out)["status"] == "verified"


def test_staged_files_of_other_versions_are_made_anew(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest states today's versions: they must be those that made the bytes."""
    out = tmp_path / "out"
    with pytest.raises(GateError):
        quantkit.convert(demo, "bnb-nf4", out, set=STRICT)
    today = execution.library_versions()
    monkeypatch.setattr(execution, "library_versions", lambda: {**today, "torch": "9.9"})
    heard: list[Event] = []
    quantkit.convert(demo, "bnb-nf4", out, set=STRICT[:2], listener=heard.append)
    said = [each.message for each in heard if each.stage == "resume"]
    assert said == [f"{partial(out)}: made with another set of versions; starting over"]


def test_staged_files_that_were_altered_are_made_anew(demo: Path, tmp_path: Path) -> None:
    """Their digests were taken as they were written: a rerun has to read what lies there."""

    def interfere(event: Event) -> None:
        if event.stage == "gate":
            raise RuntimeError("stop")

    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="stop"):
        quantkit.convert(demo, "bnb-nf4", out, set=STRICT[:2], listener=interfere)
    weights = partial(out) / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    heard: list[Event] = []
    quantkit.convert(demo, "bnb-nf4", out, set=STRICT[:2], no_gate=True, listener=heard.append)
    said = [each.message for each in heard if each.stage == "resume"]
    assert said == [f"{partial(out)}: its files changed since; starting over"]
    assert (out / "model.safetensors").read_bytes() == data


def test_layers_outlive_an_error_of_the_disk(demo: Path, tmp_path: Path) -> None:
    def interfere(event: Event) -> None:
        if event.stage == "calibrate" and (event.done or 0) > 4 * (event.total or 1) // 5:
            raise OSError(errno.EIO, "Input/output error")

    few = ["calibration.samples=8", "calibration.length=128", "method.group_size=64"]
    with pytest.raises(OSError, match="Input/output"):
        quantkit.convert(
            demo, "gptq-4bit-g128", tmp_path / "out", no_gate=True, set=few, listener=interfere
        )
    kept = list((partial(tmp_path / "out") / "quantkit-layers").glob("*.safetensors"))
    assert kept
    heard: list[Event] = []
    quantkit.convert(
        demo, "gptq-4bit-g128", tmp_path / "out", no_gate=True, set=few, listener=heard.append
    )
    assert any(f"{len(kept)} layers are finished" in (each.message or "") for each in heard)


@pytest.mark.parametrize("amending", [False, True])
def test_an_output_that_waits_aside_is_not_taken_from_a_run_at_work(
    source: Path, tmp_path: Path, amending: bool
) -> None:
    """Between the two renames of a replacement nothing lies at OUT."""
    quantkit.convert(source, "fp16", tmp_path / "out", no_gate=True)
    usual = staging_for(tmp_path / "out")
    place = amendment_of(usual) if amending else usual
    with held(place):
        place.out.rename(place.replaced)
        with pytest.raises(UsageError, match="another quantkit is writing"):
            quantkit.convert(source, "fp16", tmp_path / "out", no_gate=True)
        assert not place.out.exists()
    with pytest.raises(OutputExistsError):
        quantkit.convert(source, "fp16", tmp_path / "out", no_gate=True)
    assert (place.out / "model.safetensors").is_file()


def test_a_full_disk_is_one_line_and_exit_1(source: Path, disk: Path) -> None:
    done = subprocess.run(
        convert(source, disk / "out"), capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 1
    assert str(disk) in the_error(done.stderr)


def test_a_file_size_limit_is_an_error_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """No disk is full, but the system refuses to write on: quotas and limits do that."""
    done = subprocess.run(
        convert(source, tmp_path / "out"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20)),
    )
    assert done.returncode == 1
    assert "too large" in the_error(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_usage_error(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        quantkit.convert(demo, "bnb-nf4", tmp_path / "file" / "out", no_gate=True)


# two at once


def test_a_second_run_on_the_same_output_is_refused(demo: Path, tmp_path: Path) -> None:
    out, refusals = tmp_path / "out", []

    def second(event: Event) -> None:
        if event.stage == "convert" and not refusals:
            with pytest.raises(UsageError) as caught:
                quantkit.convert(demo, "bnb-nf4", out, no_gate=True)
            refusals.append(str(caught.value))

    quantkit.convert(demo, "bnb-nf4", out, no_gate=True, listener=second)
    assert "another quantkit is writing" in refusals[0]
    assert quantkit.verify(out)["status"] == "verified"


def test_a_second_process_is_refused_too(source: Path, tmp_path: Path) -> None:
    """The first is stopped half-way, so that the second surely meets it."""
    out = tmp_path / "out"
    first = subprocess.Popen(convert(source, out), stderr=subprocess.DEVNULL)
    try:
        wait_for(partial(out) / NOTE, first)  # written under the lock
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(UsageError, match="another quantkit is writing"):
            quantkit.convert(source, "bnb-nf4", out, no_gate=True)
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=60) == 0
    assert quantkit.verify(out)["gate"] == "not_run"


@pytest.mark.parametrize("third", [False, True])
def test_the_lock_of_a_run_that_just_ended_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, third: bool
) -> None:
    """Between opening ``OUT.partial`` and locking it the folder may have been removed; where a
    ``third`` run made it anew, two would write into it."""
    place, flock = staging_for(tmp_path / "out"), fcntl.flock
    place.partial.mkdir()

    def ended(fd: int, operation: int) -> None:
        monkeypatch.undo()
        place.partial.rmdir()
        if third:
            place.partial.mkdir()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", ended)
    with pytest.raises(UsageError, match="another quantkit is writing"), held(place):
        pass
    with held(place):
        assert (place.partial / NOTE).is_file()


def test_runs_on_two_outputs_do_not_meet(demo: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("one", "two")]
    made_by = partial_function(quantkit.convert, demo, "bnb-nf4", no_gate=True)
    threads = [threading.Thread(target=made_by, args=(out,)) for out in outs]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    one, two = (made(out) for out in outs)
    assert one == two
