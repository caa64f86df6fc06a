"""What people see. Standard output carries the result, standard error all else."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from quantkit.cli.rows import (
    COMPARED,
    check_rows,
    checked_json,
    compare_rows,
    converted_json,
    converted_rows,
    error_json,
    plan_rows,
    standing,
    summary_rows,
    warnings,
)
from quantkit.errors import UsageError, printable, printable_lines
from quantkit.types import Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from quantkit.plans import Plan
    from quantkit.recipe import Recipe
    from quantkit.registry import Registry
    from quantkit.releases import Entry

_STAGES = {
    "calibrate": "calibrate and quantize, layer by layer",
    "convert": "read, hash, quantize, write",
    "verify": "digest",
    "tokenizer": "tokenizer against sentencepiece",
    "walk": "weights, layer by layer",
    "perplexity": "perplexity",
    "generation": "generation",
    "source": "source against the manifest",
    "eval source": "tasks, the source",
    "eval quantized": "tasks, quantized",
}


class Display:
    """Progress and results on the terminal, or one JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._printed = False
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self.interrupted = 0

    def interrupt(self, number: int, frame: FrameType | None) -> NoReturn:
        """A signal's handler. Its number is remembered: an import may swallow the exception."""
        self.interrupted = number
        raise KeyboardInterrupt

    def close(self) -> None:
        self._stop()

    def listener(self, event: Event) -> None:
        """Show an event of the core."""
        if self.interrupted:
            raise KeyboardInterrupt
        if event.message:
            self._say(event.message)
            return
        if not sys.stderr.isatty():
            return
        progress = self._started()
        if event.stage not in self._tasks:
            name = _STAGES.get(event.stage, event.stage)
            self._tasks[event.stage] = progress.add_task(name, total=event.total, rate="")
        task = progress.tasks[self._tasks[event.stage]]
        if task.speed:
            per_second = task.speed / 1e6 if event.unit == "bytes" else task.speed
            unit = "MB" if event.unit == "bytes" else event.unit
            task.fields["rate"] = f"{per_second:,.1f} {unit}/s"
        progress.update(self._tasks[event.stage], completed=event.done, total=event.total)

    def error(self, message: str, kind: str, exit_code: int, found: Mapping[str, Any]) -> None:
        """One line on standard error; as JSON, an object that also holds what was ``found``."""
        self._stop()
        value = error_json(message, kind, exit_code)
        print(f"quantkit: {value['error']['message']}", file=sys.stderr)  # noqa: T201
        if self._as_json and not self._printed:
            with suppress(OSError):  # standard output may be what failed
                self._json({**found, **value})

    def say(self, message: str) -> None:
        """On standard error, progress out of the way."""
        self._stop()
        self._say(message)

    def shown(self, title: str, rows: Sequence[tuple[str, str]], value: Mapping[str, Any]) -> None:
        """A verb's result: ``rows`` as a table, or ``value`` as JSON."""
        if self._as_json:
            self._json(value)
        else:
            self._table(title, rows)

    def converted(self, source: str, out: Path, manifest: Mapping[str, Any]) -> None:
        if self._as_json:
            self._json(converted_json(source, out, manifest))
            return
        for warning in warnings(manifest):
            self._say(f"warning: {warning}")
        self._table(f"{out}", converted_rows(manifest))

    def planned(self, plan: Plan) -> None:
        from quantkit.plans import plan_json

        if self._as_json:
            self._json(plan_json(plan))
            return
        for warning in plan.warnings:
            self._say(f"warning: {warning}")
        self._tensors(plan)
        self._table(f"plan {plan.digest[:16]}", plan_rows(plan))

    def verified(self, found: Mapping[str, Any]) -> None:
        if self._as_json:
            self._json(found)
            return
        rows = [*summary_rows(found)] if "tool" in found else []
        rows.append(("status of the source" if rows else "status", str(found["status"])))
        for key in ("repository", "release", "evidence", "reason", "stated_at", "advice"):
            if found["verdict"][key]:
                rows.append((key.replace("_", " "), str(found["verdict"][key])))
        if "gate" in found:
            rows.append(("gate", str(found["gate"])))
            rows.append(("signature", str(found["signature"]).replace("_", " ")))
        rows += [("note", each) for each in found.get("notes", ())]
        rows += [(each["name"], f"sha256 {each['sha256']}") for each in found["files"]]
        self._table(f"{found['kind']} {found['path']}", rows)

    def checked(self, found: Mapping[str, Any]) -> None:
        if not self._as_json:
            self._table(f"{found['path']}", check_rows(found))
        elif found["gate"]["status"] == "passed":  # else its error prints it
            self._json(checked_json(found))

    def compared(self, found: Mapping[str, Any]) -> None:
        from rich.table import Table
        from rich.text import Text

        self._stop()
        if self._as_json:
            self._json(found)
            return
        title = Text(printable(f"against {found['against']}"))
        table = Table(title=title, title_justify="left", box=None)
        for at, name in enumerate(COMPARED):
            table.add_column(name, justify="left" if at < 2 else "right")
        for row in compare_rows(found):
            table.add_row(*(Text(printable(cell)) for cell in row))
        _console().print(table)
        for protocol in dict.fromkeys(row["protocol"] for row in found["folders"]):
            names = [r["path"] for r in found["folders"] if r["protocol"] == protocol]
            self._say(f"{', '.join(names)}: {protocol}; {found['text']}")

    def tokenizer(self, found: Mapping[str, Any]) -> None:
        if self._as_json:
            if found["status"] == "passed":  # else its error prints it
                self._json(found)
            return
        said, *more = found["failures"] or [""]
        if "compared" in found:
            wrong = found.get("different", 0) + found.get("decoded_otherwise", 0)
            more = [*found.get("first", ()), *found["failures"]]
            said = f"transformers {found['transformers']} gives sentencepiece's ids and text on "
            said += f"{found['compared'] - wrong:,} of {found['compared']:,} texts"
            said += f", {found['ties']} of them ties" if found["ties"] else ""
        self._table(f"{found['path']}: {found['status']}", [("", said)])
        for line in more:
            print(f"  {printable(line)}")  # noqa: T201

    def recipes(self, recipes: Sequence[Recipe], text: str) -> None:
        if self._as_json:
            self._json({"recipes": [each.model_dump(mode="json") for each in recipes]})
        elif text:
            print(text, end="")  # noqa: T201
        else:
            self._table("recipes", [(each.name, each.summary) for each in recipes])

    def registry(self, registry: Registry, repository: str | None) -> None:
        entries = [
            each for each in registry.entries if repository is None or each.named(repository)
        ]
        if not entries:
            raise UsageError(f"checksums: no entry for {repository!r}; see 'quantkit checksums'")
        if self._as_json or repository is not None:
            self._json({"entries": [each.model_dump(mode="json") for each in entries]})
            return
        rows = [
            (f"{entry.repository} {release.label}", standing(release))
            for entry in entries
            for release in entry.releases
        ]
        self._table("registry", rows)

    def entry(self, text: str, entry: Entry, written: Path | None) -> None:
        if self._as_json:
            self._json({"entry": entry.model_dump(mode="json", exclude_none=True)})
        elif written is None:
            self._stop()
            print(text, end="")  # noqa: T201
        else:
            self._say(f"{written}: written; see that what it states stands at its address")

    def demonstrated(self, shown: Mapping[str, Any]) -> None:
        if self._as_json:
            self._json(
                {
                    "out": shown["out"],
                    "verified": shown["verified"],
                    "refusal": shown["refusal"],
                    "convert": converted_json(
                        shown["source"], Path(shown["out"]), shown["manifest"]
                    ),
                }
            )
            return
        self._table(shown["out"], converted_rows(shown["manifest"]))
        self._say(f"held to its manifest: every file as it says, the source {shown['verified']}")
        self._say(f"refused, as it should be: {shown['refusal']}")
        self._say(f"the card: {shown['out']}/README.md")

    def _tensors(self, plan: Plan) -> None:
        """A line a tensor: what becomes of it, its bytes, and why. Made for grep."""
        self._stop()
        widest = max(len(each.source.name) for each in plan.tensors)
        for each in plan.tensors:
            made = sum(output.nbytes for output in each.outputs)
            print(  # noqa: T201
                f"{each.source.name:<{widest}}  {each.action:<8}  {made:>15,}  {each.reason}"
            )

    def _table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        from rich.table import Table
        from rich.text import Text

        self._stop()
        table = Table(
            title=Text(printable(title)), show_header=False, title_justify="left", box=None
        )
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(printable(name)), Text(printable_lines(value)))
        _console().print(table)

    def _json(self, value: Mapping[str, Any]) -> None:
        self._stop()  # while progress is shown, it takes standard output as well
        self._printed = True
        print(json.dumps(value, ensure_ascii=False, default=str, allow_nan=False))  # noqa: T201

    def _say(self, message: str) -> None:
        print(printable_lines(message), file=sys.stderr)  # noqa: T201

    def _started(self) -> Progress:
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}% {task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._progress.start()
        return self._progress

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks = {}


def _console() -> Console:
    from rich.console import Console

    # a pipe has no width: 80 columns would cut figures
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 500)
