"""``eval``: benchmark tasks on the source and on the finished folder, side by side.

Both get the same questions as the same ids, the folder's tokenizer's, which the gate held to
sentencepiece. The source is first held to the manifest: figures beside another model's would
say nothing. What is found goes into the manifest, and from there onto the card.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quantkit.amending import amend
from quantkit.card import NAME as CARD
from quantkit.card import render_card
from quantkit.devices import Device, choose_device
from quantkit.digests import digest_bytes
from quantkit.errors import UsageError
from quantkit.gate.field import REFERENCE, compute_dtype
from quantkit.gate.models import load_plain, load_saved
from quantkit.gate.opened import open_original, open_saved
from quantkit.harness import (
    Answers,
    Loaded,
    QuestionSettings,
    ask,
    load_tasks,
    require_harness,
    texts_of,
)
from quantkit.outcomes import answer_lines, outcomes
from quantkit.quiet import quiet_libraries
from quantkit.source import Source
from quantkit.subject import Subject, check_ids, read_subject, source_of
from quantkit.tasks import WantedTasks, check_shots, read_tasks
from quantkit.tokenizer import has_library_files, library_tokenizer
from quantkit.types import AnyPath, Event, Listener, silent
from quantkit.verb import verb


@verb
def eval(
    dir: AnyPath,
    tasks: str | Iterable[str],
    *,
    data: str | Iterable[str] = (),
    source: AnyPath | None = None,
    shots: int | None = None,
    limit: int | None = None,
    plain_prompts: bool = False,
    batch_size: int = 1,
    device: Device = "auto",
    sign: AnyPath | None = None,
    listener: Listener = silent,
) -> dict[str, Any]:
    """Run benchmark ``tasks`` on the finished folder ``dir`` and on the source it was made from.

    ``data`` holds ``"TASK=FILE"`` texts for the tasks that work from local files; the others
    are lm-evaluation-harness's, by name. ``source`` says where the source lies, when it is
    neither a Hub id nor beside the folder. ``shots`` answered examples stand before each
    question (default: the task's own number). Questions have the model's prompt form where it
    has one, unless ``plain_prompts``.

    The figures of both, with standard errors, are written into the manifest and onto the card,
    and each question's answers into ``report/``; earlier figures of other tasks stay. With
    ``limit`` only so many questions of each task are put: a trial, which is returned and not
    recorded. ``sign`` is the private key (PEM) for a folder that is signed.

    Raises:
        UsageError: lm-evaluation-harness is not installed, a task or an option is wrong, or the
            source is not to be found.
        MismatchError: the folder is not as its manifest says, or the source is another.
        HubError: a task's data cannot be downloaded.
        GateError: the folder's tokenizer gives the questions other ids than the source's.
    """
    harness = require_harness()
    wanted = read_tasks(tasks, data)
    _check_counts(shots, limit, batch_size)
    check_shots(wanted, shots)
    where = choose_device(device)
    subject = read_subject(dir, sign, listener)
    tokenizer = _tokenizer(subject.folder)
    form = bool(tokenizer.chat_template) and not plain_prompts
    asking = QuestionSettings(shots, limit, batch_size, form)
    opened = source_of(subject, source, listener)
    listener(Event("eval", message=f"loading the tasks: {', '.join(wanted.names)}"))
    loaded = load_tasks(wanted, form=form)
    found = _both(subject, opened, loaded, asking, _Setup(tokenizer, where, harness), listener)
    results = [{**each, "data": _data(wanted, loaded, each["task"])} for each in found.results]
    if limit is None:
        opened.check_unchanged()
        _record(subject, results, found.files)
    return {
        "kind": "eval",
        "path": str(dir),
        "source": opened.given,
        "recorded": limit is None,
        "limit": limit,
        "benchmarks": results,
    }


@dataclass(frozen=True)
class _Setup:
    """What is needed to ask: the ids' tokenizer, the device, the library's name and version."""

    tokenizer: Any
    device: str
    harness: str


@dataclass(frozen=True)
class _Found:
    """Figures by task, and a file of answers for each task that was asked."""

    results: tuple[dict[str, Any], ...]
    files: Mapping[str, bytes]


def _check_counts(shots: int | None, limit: int | None, batch_size: int) -> None:
    for name, value, least in (
        ("shots", shots, 0),
        ("limit", limit, 1),
        ("batch-size", batch_size, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: expected {least} or more")


def _tokenizer(folder: Path) -> Any:
    if not has_library_files(folder):
        raise UsageError(f"{folder}: no tokenizer there, and tasks are texts; nothing can be asked")
    return library_tokenizer(folder)


def _both(
    subject: Subject,
    opened: Source,
    loaded: Loaded,
    asking: QuestionSettings,
    setup: _Setup,
    listener: Listener,
) -> _Found:
    """Ask the source, then the folder; one model in memory at a time."""
    saved = open_saved(subject.folder)
    original = open_original(opened, subject.manifest["plan"]["dtype"])

    def asked(side: str, model: Any) -> Answers:
        def tell(done: int, total: int) -> None:
            listener(Event(f"eval {side}", done, total, "requests"))

        return ask(model, setup.tokenizer, loaded, asking, tell)

    with quiet_libraries():
        source = asked("source", load_plain(original, REFERENCE, setup.device))
        ids = check_ids(subject, opened, setup.tokenizer, texts_of(loaded))
        gc.collect()  # the source's model refers to itself, and would stay
        quantized = asked("quantized", load_saved(saved, setup.device).model)
    about = {
        "harness": setup.harness,
        "prompt_form": asking.form,
        "batch_size": asking.batch_size,
        "device": setup.device,
        "dtypes": {"source": REFERENCE, "quantized": compute_dtype(saved)},
        "truncated": source.truncated,
        "ids": ids,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files = {_file(leaf): answer_lines(leaf, source, quantized) for leaf in loaded.tasks}
    results = tuple(
        {**each, **about, "answers": [_file(leaf) for leaf in loaded.parts[each["task"]]]}
        for each in outcomes(loaded, source, quantized)
    )
    return _Found(results, files)


def _file(task: str) -> str:
    """Where a task's answers lie in the folder; ``::`` names the tasks inside groups."""
    return f"report/eval-{task.replace('::', '-').replace('/', '-')}.jsonl"


def _data(wanted: WantedTasks, loaded: Loaded, task: str) -> dict[str, Any]:
    """Which questions were asked: a local file's digest, or the repository they came from."""
    if task in wanted.local:
        ours = wanted.local[task]
        return {"name": ours.file, "config": None, "sha256": ours.sha256}
    config = loaded.tasks[loaded.parts[task][0]].config
    several = len(loaded.parts[task]) > 1
    return {
        "name": str(config.dataset_path or task),
        "config": None if several else config.dataset_name,
        "sha256": None,
    }


def _record(
    subject: Subject, results: Sequence[Mapping[str, Any]], answers: Mapping[str, bytes]
) -> None:
    """The folder with ``results`` in its manifest, on its card, and the answers beside."""
    manifest = amended(subject.manifest, results, answers)
    card = render_card(manifest).encode("utf-8")
    manifest["output"]["files"].append(asdict(digest_bytes(CARD, card)))
    amend(subject.place, subject.before, manifest, {**answers, CARD: card}, subject.signer)


def amended(
    manifest: Mapping[str, Any], results: Sequence[Mapping[str, Any]], answers: Mapping[str, bytes]
) -> dict[str, Any]:
    """``manifest`` with ``results``, in place of earlier ones of the same tasks.

    Its card is not listed: it is to be written from what this returns.
    """
    new = {each["task"] for each in results}
    kept = [each for each in manifest.get("benchmarks", []) if each["task"] not in new]
    files = [
        each
        for each in manifest["output"]["files"]
        if each["name"] != CARD and each["name"] not in answers
    ]
    files += [asdict(digest_bytes(name, data)) for name, data in answers.items()]
    return {
        **manifest,
        "benchmarks": [*kept, *results],
        "output": {**manifest["output"], "files": files},
    }
