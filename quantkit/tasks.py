"""What a model may be asked: tasks of ours over local files, and lm-evaluation-harness's by name.

The Japanese tasks that rinna's cards name come from JGLUE, whose files people have and no
download here gives. How each is put to a model stands in ``data/tasks/NAME.yaml``: in
``harness`` the task as lm-evaluation-harness reads it, beside it what quantkit asks of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import category

from quantkit.errors import UsageError
from quantkit.given import LONGEST_TEXT, as_text, expanded, read_given
from quantkit.resources import tasks_folder

#: What a line may hold in place of a text, in words.
_JSON_KINDS = {type(None): "null", list: "a list", dict: "an object", bool: "true or false"}


@dataclass(frozen=True)
class LocalTask:
    """A task of ours with its questions; ``sha256`` is of the data file's bytes.

    ``harness`` is its configuration in lm-evaluation-harness's own words, and ``plain_ending``
    what a question ends with where the model has no prompt form.
    """

    name: str
    harness: Mapping[str, Any]
    plain_ending: str
    rows: tuple[Mapping[str, Any], ...]
    file: str
    sha256: str


@dataclass(frozen=True)
class WantedTasks:
    """Tasks in the order asked for: ``local`` ones by name, all others lm-evaluation-harness's."""

    names: tuple[str, ...]
    local: Mapping[str, LocalTask]

    @property
    def foreign(self) -> tuple[str, ...]:
        """The names that lm-evaluation-harness has to know."""
        return tuple(name for name in self.names if name not in self.local)


def read_tasks(tasks: str | Iterable[str], data: str | Iterable[str] = ()) -> WantedTasks:
    """The tasks that ``tasks`` names, commas between names or not; ``data`` is ``NAME=FILE``.

    Raises:
        UsageError: no task, one twice, a file that is missing or no data of its task.
    """
    given = [tasks] if isinstance(tasks, str) else tasks
    names = [name.strip() for each in given for name in each.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        said = "one is named twice" if names else "none is named"
        raise UsageError(f"--tasks {','.join(names)}: {said}; ours: {', '.join(local_names())}")
    files = dict(_named_file(each) for each in ([data] if isinstance(data, str) else data))
    if stray := sorted(files.keys() - set(names)):
        raise UsageError(
            f"--data {stray[0]}: no such task among --tasks {','.join(names)}; add it there"
        )
    ours = local_names()
    local = {name: _read(name, files.get(name)) for name in names if name in ours}
    if strange := sorted(files.keys() - set(local)):
        raise UsageError(
            f"--data {strange[0]}: lm-evaluation-harness fetches the data of {strange[0]} itself; "
            f"files are for {', '.join(ours)}"
        )
    return WantedTasks(tuple(names), local)


def check_shots(wanted: WantedTasks, shots: int | None) -> None:
    """See that there are examples enough: they are a task's other questions.

    Raises:
        UsageError: more are asked for than there are.
    """
    for name, task in wanted.local.items():
        if shots is not None and shots >= len(task.rows):
            raise UsageError(
                f"--shots {shots}: task {name} has {len(task.rows)} questions in {task.file}, and "
                f"a question is no example of itself; give at most {len(task.rows) - 1}"
            )


def local_names() -> tuple[str, ...]:
    """The tasks that work from a local file."""
    return tuple(sorted(path.stem for path in tasks_folder().glob("*.yaml")))


def _named_file(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not name.strip() or not path.strip():
        raise UsageError(f"--data {text}: expected TASK=FILE, e.g. jcommonsenseqa=valid-v1.3.json")
    return name.strip(), expanded(path.strip())


def _read(name: str, path: Path | None) -> LocalTask:
    import yaml

    if path is None:
        raise UsageError(
            f"task {name}: works from a local file; give it with --data {name}=FILE (JGLUE's "
            "validation file, one JSON object a line)"
        )
    said = yaml.safe_load((tasks_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    raw = read_given(path, f"task {name}: {path}", most=LONGEST_TEXT)
    text = as_text(raw, f"task {name}: {path}")
    rows = tuple(_rows(name, path, text, said))
    if not rows:
        raise UsageError(f"task {name}: {path}: expected a question a line, got none")
    digest = hashlib.sha256(raw).hexdigest()
    return LocalTask(name, said["harness"], said["plain_ending"], rows, path.name, digest)


def _rows(name: str, path: Path, text: str, said: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each line's fields and nothing else; every one is there and every answer is possible."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"task {name}: {path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not JSON ({error}); expected an object a line") from error
        fields = said["fields"]
        missing = [each for each in fields if not isinstance(row, dict) or each not in row]
        if missing:
            raise UsageError(
                f"{where}: no {missing[0]!r}; expected {', '.join(fields)}: is it the right file?"
            )
        _check_texts(where, {each: row[each] for each in fields if each != "label"})
        targets = [(type(each), each) for each in said["targets"]]
        if (type(row["label"]), row["label"]) not in targets:  # 1.0 and true are equal to 1
            raise UsageError(
                f"{where}: label: expected one of {', '.join(map(str, said['targets']))}, "
                f"got {str(row['label'])[:40]!r}; questions without an answer cannot be scored"
            )
        yield {each: row[each] for each in fields}


def _check_texts(where: str, texts: Mapping[str, Any]) -> None:
    """Each is a text that says something, and no choice is another one again."""
    choices: dict[str, str] = {}
    for name, value in texts.items():
        if not isinstance(value, str):
            got = _JSON_KINDS.get(type(value), "a number")
            raise UsageError(f"{where}: {name}: expected a text, got {got}; correct the line")
        if any(category(each) == "Cs" for each in value):
            raise UsageError(
                f"{where}: {name}: expected a text, got half of a character (a lone surrogate); "
                "correct the line"
            )
        if all(category(each)[0] in "CZ" for each in value):
            raise UsageError(f"{where}: {name}: expected a text, got nothing; correct the line")
        if name.startswith("choice") and (other := choices.setdefault(value.strip(), name)) != name:
            raise UsageError(
                f"{where}: {name}: the same as {other}, so that no answer is right; correct the "
                "line or leave it out"
            )
