"""Runs of ``quantkit convert`` with one random fault each: python fault_runs.py SOURCE WORK ...

A server that has imported everything forks a process a run, so that a run costs no start.
Each run must end as done, or as one line of error with nothing at ``OUT``; and the same
command again must end with the bytes of an undisturbed run. Prints a JSON line a run.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

FAULTS = (
    "kill", "kill", "interrupt", "terminate", "file size", "write error", "disk full", "read error",
    "source flipped", "source cut", "source replaced",
)  # fmt: skip

#: Not made again by a rerun: they say when and how long.
TIMED = {"quantkit-manifest.json", "README.md", "report"}

Prepare = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    at = sys.argv.index("--")  # the command's words come after it
    mine, words = sys.argv[1:at], sys.argv[at + 1 :]
    given = parser.parse_args(mine)
    warm_up()
    runs = Runs(given.source, given.work, words)
    for at in range(given.count):
        print(json.dumps(runs.one(given.seed + at)), flush=True)


def warm_up() -> None:
    """All that a conversion imports; no thread may run yet when forks begin."""
    import bitsandbytes  # noqa: F401
    import numba  # noqa: F401
    import torch
    import transformers
    from transformers import AutoModelForCausalLM  # noqa: F401
    from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401

    import quantkit.cli.app
    import quantkit.pipeline  # noqa: F401

    assert transformers.__version__
    torch.set_num_threads(1)


class Runs:
    """One source, one command, many faults."""

    def __init__(self, source: Path, work: Path, words: list[str]) -> None:
        self._pristine, self._work, self._words = source, work, words
        self._source = work / "source"
        self._renew_source()
        self._run(work / "first")  # fills caches
        start = time.monotonic()
        status, said, _ = self._run(work / "undisturbed")
        assert status == 0, said
        self._seconds = time.monotonic() - start
        self._bytes = made(work / "undisturbed")
        self._largest = max(len(each) for each in self._bytes.values())

    def _renew_source(self) -> None:
        shutil.rmtree(self._source, ignore_errors=True)
        self._source.mkdir()
        for path in self._pristine.iterdir():
            shutil.copyfile(path, self._source / path.name)

    def one(self, seed: int) -> dict[str, object]:
        """One run with a fault, and one without."""
        rng = random.Random(seed)
        fault = rng.choice(FAULTS)
        out = self._work / f"out-{seed}"
        prepare, disturb, after = self._fault(fault, rng)
        status, said, stopping = self._run(out, prepare, disturb, after)
        problem = self._judge_faulted(fault, status, said, stopping, out)
        left = sorted(p.name for p in self._work.glob(f"{out.name}.partial/*"))
        if fault.startswith("source"):
            self._renew_source()
        again, complaint = 0, ""
        if not out.exists():
            again, complaint, _ = self._run(out)
        if not problem and (again or made(out) != self._bytes):
            problem = f"the rerun: {again} {complaint}"
        if not problem and out.with_name(f"{out.name}.partial").exists():
            problem = "OUT.partial is left"
        shutil.rmtree(out, ignore_errors=True)
        return {
            "seed": seed, "fault": fault, "after_s": round(after, 3), "exit": status, "left": left,
            "stopped_in_s": round(stopping, 2), "said": said[-300:], "problem": problem,
        }  # fmt: skip

    def _judge_faulted(self, fault: str, status: int, said: str, stopping: float, out: Path) -> str:
        """What is wrong with how the run ended; empty when nothing."""
        if status == 0:
            return "" if made(out) == self._bytes else "it says done, and the bytes are others"
        if out.exists():  # it may be struck down between its last rename and its end
            struck = fault in ("kill", "terminate") and status < 0
            return "" if struck and made(out) == self._bytes else "there is an output"
        # 2 s, on a machine with nothing else to do: where a run takes long, so does its end
        if fault == "interrupt" and (status != 130 or stopping > max(2, self._seconds / 4)):
            return f"Ctrl-C: exit {status} after {stopping:.1f} s"
        if status < 0:
            return "" if fault in ("kill", "terminate") else f"signal {-status}"
        errors = [line for line in said.splitlines() if line.startswith("quantkit: ")]
        if "Traceback" in said or (status not in (130, 143) and len(errors) != 1):
            return "not one line of error"
        return (
            ""
            if status in (1, 3, 130) or (fault, status) == ("terminate", 143)
            else f"exit {status}"
        )

    def _fault(self, fault: str, rng: random.Random) -> tuple[Prepare, Prepare | int, float]:
        """What the child does first, and what is done to it (or its source), and when."""
        after = rng.uniform(0, self._seconds)
        if fault in ("kill", "interrupt", "terminate"):
            number = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT,
                      "terminate": signal.SIGTERM}[fault]  # fmt: skip
            return lambda: None, int(number), after
        if fault == "file size":
            limit = rng.randrange(1, self._largest)
            return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), 0, 0.0
        if fault in ("write error", "disk full"):
            number = errno.EIO if fault == "write error" else errno.ENOSPC
            return breaking("pwrite", rng.randrange(60), number), 0, 0.0
        if fault == "read error":
            return breaking("preadv", rng.randrange(80), errno.EIO), 0, 0.0
        weights = next(p for p in self._source.iterdir() if p.suffix in (".bin", ".safetensors"))
        at = rng.randrange(weights.stat().st_size)
        change = {"source flipped": flip, "source cut": cut, "source replaced": replaced}[fault]
        return lambda: None, lambda: change(weights, at), after

    def _run(
        self,
        out: Path,
        prepare: Prepare = lambda: None,
        disturb: Prepare | int = 0,
        after: float = 0.0,
    ) -> tuple[int, str, float]:
        """``(exit status or minus the signal, standard error, seconds from the fault on)``."""
        log = self._work / "stderr"
        child = os.fork()
        if child == 0:
            self._be_the_command(out, log, prepare)
        time.sleep(after)
        began = time.monotonic()
        if callable(disturb):
            disturb()
        elif disturb:
            os.kill(child, disturb)
        _, raw = os.waitpid(child, 0)
        took = time.monotonic() - began
        return os.waitstatus_to_exitcode(raw), log.read_text(errors="replace"), took

    def _be_the_command(self, out: Path, log: Path, prepare: Prepare) -> None:
        from quantkit.cli import main as command

        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["quantkit", "convert", str(self._source), "--out", str(out), *self._words]
        prepare()
        try:
            command()
        finally:
            os._exit(70)


def breaking(name: str, at: int, number: int) -> Prepare:
    """The system call of ``os`` fails from its call ``at`` on, as a broken disk's do."""

    def prepare() -> None:
        real, count = getattr(os, name), 0

        def call(*words: object) -> object:
            nonlocal count
            count += 1
            if count > at:
                raise OSError(number, os.strerror(number))
            return real(*words)

        setattr(os, name, call)

    return prepare


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def cut(path: Path, at: int) -> None:
    os.truncate(path, at)


def replaced(path: Path, at: int) -> None:
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    flip(copy, at)
    copy.replace(path)


def made(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in TIMED}


if __name__ == "__main__":
    main()
