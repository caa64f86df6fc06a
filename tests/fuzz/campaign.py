"""A long run of fuzzing: python tests/fuzz/campaign.py TARGET --cases 200000

``--engine mutate`` is the tests' own, repeatable by ``--seed``; ``--engine atheris`` is
guided by coverage (pip install atheris). Prints one line of figures; a finding is written to
a file and ends it. Limits: 5 s (of CPU) and 1 GB for any case.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MAX_SECONDS = 5.0
MAX_BYTES = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--engine", choices=["mutate", "atheris"], default="mutate")
    given = parser.parse_args()
    if given.engine == "atheris":
        guided(given.target, given.cases)
    found = run(given.target, given.cases, given.seed, given.seconds)
    print(json.dumps(found))


def run(name: str, cases: int, seed: int, seconds: float = float("inf")) -> dict[str, object]:
    """``cases`` of one target; raises at the first finding, which it writes to a file."""
    from fuzz.mutations import Mutator
    from fuzz.targets import CANARY, TARGETS, heard, listen

    listen()
    mutator, target, before = Mutator(name, seed), TARGETS[name], peak()
    accepted, done, slowest, start = 0, 0, 0.0, time.monotonic()
    while done < cases and time.monotonic() - start < seconds:
        data = mutator.next()
        began = time.process_time()  # of this process, as others may be at work beside it
        try:
            taken = target(data)
        except BaseException:
            finding(name, data)
            raise
        slowest = max(slowest, time.process_time() - began)
        done += 1
        accepted += taken
        if taken:
            mutator.keep(data)
        if slowest > MAX_SECONDS or heard or CANARY.exists() or peak() - before > MAX_BYTES:
            raise AssertionError(f"{finding(name, data)}: {slowest:.1f} s, {peak()} bytes, {heard}")
    return {
        "target": name, "engine": "mutate", "seed": seed, "cases": done, "accepted": accepted,
        "slowest_cpu_s": round(slowest, 3), "peak_mb": peak() >> 20, "code_run": len(heard),
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def finding(name: str, data: bytes) -> Path:
    path = Path(f"finding-{name}-{len(data)}.bin").resolve()
    path.write_bytes(data)
    print(f"a finding: {path}", file=sys.stderr)
    return path


def guided(name: str, cases: int) -> None:
    """Coverage-guided, by libFuzzer; it prints its own statistics and ends the process."""
    import tempfile

    import atheris

    with atheris.instrument_imports(include=["quantkit", "json", "pickletools", "zipfile"]):
        from fuzz.mutations import SEEDS, WORDS
        from fuzz.targets import CANARY, TARGETS, heard, listen

    listen()

    def once(data: bytes) -> None:
        TARGETS[name](data)
        if heard or CANARY.exists():
            raise AssertionError(f"code ran: {heard}")

    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    for at, seed in enumerate(SEEDS[name]):
        (corpus / str(at)).write_bytes(seed)
    words = corpus.with_suffix(".dict")
    quoted = ("".join(f"\\x{byte:02x}" for byte in word[:60]) for word in WORDS[name])
    words.write_text("".join(f'"{each}"\n' for each in quoted))
    options = [
        f"-runs={cases}", f"-timeout={MAX_SECONDS:.0f}", "-rss_limit_mb=1024", "-max_len=8192",
        f"-dict={words}", "-print_final_stats=1", "-verbosity=0", str(corpus),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
