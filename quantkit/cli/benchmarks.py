"""The verb ``eval``: benchmark tasks, the source and the folder side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

import quantkit
from quantkit.cli.options import AsJson, ComputeDevice, DeviceName, SigningKey
from quantkit.cli.session import session, settled

Folder = Annotated[str, typer.Argument(metavar="DIR", help="A folder that 'convert' made.")]
Tasks = Annotated[
    list[str],
    typer.Option(
        "--tasks",
        metavar="NAMES",
        help="jcommonsenseqa, jnli or marc_ja (from your own files, see --data), or names of "
        "lm-evaluation-harness's; with commas, or repeated.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar="TASK=FILE", help="The questions of a task (JGLUE's files); repeatable."
    ),
]
SourceFolder = Annotated[
    str | None,
    typer.Option("--source", help="Where the source lies, if not beside DIR or on the Hub."),
]
Shots = Annotated[
    int | None,
    typer.Option("--shots", help="Answered examples before each question; else the task's own."),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", help="A trial: so many questions of each task; nothing is recorded."),
]
PlainPrompts = Annotated[
    bool, typer.Option("--plain-prompts", help="Ask without the model's own prompt form.")
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", help="Requests at a time; the figures are stated with it.")
]


def eval_(
    dir: Folder,
    tasks: Tasks,
    data: Data = None,
    source: SourceFolder = None,
    shots: Shots = None,
    limit: Limit = None,
    plain_prompts: PlainPrompts = False,
    batch_size: BatchSize = 1,
    device: ComputeDevice = DeviceName.auto,
    sign: SigningKey = None,
    as_json: AsJson = False,
) -> None:
    """Run benchmark tasks on a finished folder and on its source; figures go onto the card."""
    with session(as_json=as_json) as display:
        found = quantkit.eval(
            dir,
            tasks,
            data=data or (),
            source=source,
            shots=shots,
            limit=limit,
            plain_prompts=plain_prompts,
            batch_size=batch_size,
            device=device.value,
            sign=sign,
            listener=display.listener,
        )
        settled()
        display.shown(f"{dir}", _rows(found), found)


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for task in found["benchmarks"]:
        asked = f"{task['questions']:,} of {task['of']:,} questions"
        if task["shots"] is not None:  # a group's tasks have their own
            asked += f", {task['shots']} shots"
        rows.append((task["task"], asked))
        for each in task["metrics"]:
            both = f"source {_figure(each['source'])}, quantized {_figure(each['quantized'])}"
            if each["difference"]:
                both += f", difference {_figure(each['difference'])}"
            filtered = "" if each["filter"] == "none" else f" ({each['filter']})"
            rows.append((f"  {each['name']}{filtered}", both))
    if not found["recorded"]:
        rows.append(("recorded", "nothing: a trial (--limit)"))
    return rows


def _figure(of: Mapping[str, Any]) -> str:
    error = f" ± {of['stderr']:.4f}" if isinstance(of["stderr"], float) else ""
    value = f"{of['value']:.4f}" if isinstance(of["value"], float) else str(of["value"])
    return f"{value}{error}"
