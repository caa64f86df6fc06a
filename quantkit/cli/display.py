"""What people see. Standard output carries the result, standard error all else."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from quantkit.errors import UsageError
from quantkit.types import ACTIONS, Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from quantkit.plans import Plan
    from quantkit.recipe import Recipe
    from quantkit.registry import Registry

_STAGES = {
    "convert": "read, hash, quantize, write",
    "verify": "digest",
    "tokenizer": "tokenizer against sentencepiece",
    "perplexity": "perplexity",
    "generation": "generation",
}


class Display:
    """Progress and results on the terminal, or one JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self.interrupted = False

    def interrupt(self, number: int, frame: FrameType | None) -> NoReturn:
        """The handler of Ctrl-C. Remembered, as an import in progress may swallow the exception."""
        self.interrupted = True
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

    def error(self, message: str) -> None:
        self._stop()
        print(f"quantkit: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201

    def converted(self, source: str, out: Path, manifest: Mapping[str, Any]) -> None:
        self._stop()
        if self._as_json:
            self._json(_converted_json(source, out, manifest))
            return
        for warning in _warnings(manifest):
            self._say(f"warning: {warning}")
        self._table(f"{out}", _converted_rows(manifest))

    def planned(self, plan: Plan) -> None:
        from quantkit.plans import plan_json

        if self._as_json:
            self._json(plan_json(plan))
            return
        for warning in plan.warnings:
            self._say(f"warning: {warning}")
        self._tensors(plan)
        self._table(f"plan {plan.digest[:16]}", _plan_rows(plan))

    def verified(self, found: Mapping[str, Any]) -> None:
        self._stop()
        if self._as_json:
            self._json(found)
            return
        rows = [("status", str(found["status"]))]
        for key in ("repository", "release", "reason", "stated_at", "advice"):
            if found["verdict"][key]:
                rows.append((key.replace("_", " "), str(found["verdict"][key])))
        if "gate" in found:
            rows.append(("gate", str(found["gate"])))
        rows += [(each["name"], f"sha256 {each['sha256']}") for each in found["files"]]
        self._table(f"{found['kind']} {found['path']}", rows)

    def recipes(self, recipes: Sequence[Recipe], whole: str | None) -> None:
        if self._as_json:
            self._json({"recipes": [each.model_dump(mode="json") for each in recipes]})
        elif whole:
            self._json(recipes[0].model_dump(mode="json"))
        else:
            self._table("recipes", [(each.name, each.summary) for each in recipes])

    def registry(self, registry: Registry, repository: str | None) -> None:
        entries = [each for each in registry.entries if not repository or each.named(repository)]
        if not entries:
            raise UsageError(f"checksums: no entry for {repository!r}; see 'quantkit checksums'")
        if self._as_json or repository:
            self._json({"entries": [each.model_dump(mode="json") for each in entries]})
            return
        rows = [
            (f"{entry.repository} {release.date}", f"{release.status}. {release.reason}")
            for entry in entries
            for release in entry.releases
        ]
        self._table("registry", rows)

    def demonstrated(self, shown: Mapping[str, Any]) -> None:
        self._stop()
        if self._as_json:
            self._json(
                {
                    "out": shown["out"],
                    "verified": shown["verified"],
                    "refusal": shown["refusal"],
                    "convert": _converted_json(
                        shown["source"], Path(shown["out"]), shown["manifest"]
                    ),
                }
            )
            return
        self._table(shown["out"], _converted_rows(shown["manifest"]))
        self._say(f"refused, as it should be: {shown['refusal']}")
        self._say(f"the card: {shown['out']}/README.md")

    def _tensors(self, plan: Plan) -> None:
        """A line a tensor: what becomes of it, its bytes, and why. Made for grep."""
        widest = max(len(each.source.name) for each in plan.tensors)
        for each in plan.tensors:
            made = sum(output.nbytes for output in each.outputs)
            print(  # noqa: T201
                f"{each.source.name:<{widest}}  {each.action:<8}  {made:>15,}  {each.reason}"
            )

    def _table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title), show_header=False, title_justify="left", box=None)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        _console().print(table)

    def _json(self, value: Mapping[str, Any]) -> None:
        print(json.dumps(value, ensure_ascii=False, default=str))  # noqa: T201

    def _say(self, message: str) -> None:
        print(message, file=sys.stderr)  # noqa: T201

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

    return Console(soft_wrap=True)


def _warnings(manifest: Mapping[str, Any]) -> list[str]:
    said = []
    status = manifest["source"]["status"]
    if status != "verified":
        known = "no registry knows these digests" if status == "unlisted" else "see the card"
        said.append(f"the source is {status}: {known}")
    if manifest["gate"]["status"] == "not_run":
        reasons = sorted(set(manifest["gate"]["reasons"].values()))
        said.append(f"the gate did not run: {'; '.join(reasons)}")
    lost = sum(manifest["conversion"]["underflows"].values())
    if lost:
        said.append(f"{lost:,} non-zero values became zero in the cast")
    return said


def _converted_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    gate, sizes, seconds = manifest["gate"], manifest["sizes"], manifest["seconds"]
    ratio = sizes["output_bytes"] / sizes["source_bytes"]
    rows = [
        ("source", f"{manifest['source']['name']} ({manifest['source']['status']})"),
        ("recipe", f"{manifest['recipe']['name']} on {manifest['conversion']['device']}"),
        ("quantized", f"{manifest['plan']['quantized_share']:.1%} of the parameters"),
        ("weights", f"{sizes['source_bytes']:,} -> {sizes['output_bytes']:,} bytes ({ratio:.1%})"),
        ("gate", gate["status"]),
        ("levels", ", ".join(f"{name} {outcome}" for name, outcome in gate["levels"].items())),
    ]
    if gate["perplexity"]:
        found = gate["perplexity"]
        rows += [
            (
                "perplexity",
                f"{found['reference']:.4f} -> {found['quantized']:.4f} "
                f"(x {found['ratio']:.4f}, {found['tokens']:,} tokens of {found['text']})",
            ),
            ("KL divergence", f"{gate['kl_divergence']['mean']:.5f} nats"),
            ("top-1 agreement", f"{gate['top1_agreement']:.1%}"),
        ]
    if gate["generation"]:
        found = gate["generation"]
        rows.append(
            (
                "generation",
                f"{found['forced_agreement']:.1%} teacher-forced, {found['identical']} of "
                f"{found['prompts']} prompts identical",
            )
        )
    rows.append(
        (
            "time",
            ", ".join(f"{stage} {spent:.1f} s" for stage, spent in seconds.items())
            + f"; peak memory {manifest['peak_rss_bytes'] / 1e6:,.0f} MB",
        )
    )
    return rows


def _plan_rows(plan: Plan) -> list[tuple[str, str]]:
    exact = "" if not plan.slack_bytes else f", at most; {plan.slack_bytes} fewer at least"
    return [
        ("model", f"{plan.class_name}, {plan.dtype}"),
        ("tensors", ", ".join(f"{action} {len(plan.with_action(action))}" for action in ACTIONS)),
        ("quantized", f"{plan.quantized_share:.1%} of the parameters"),
        ("reads", f"{plan.source_bytes:,} bytes of tensors"),
        ("writes", f"{plan.output_bytes:,} bytes{exact}"),
        ("memory", f"about {plan.memory_bytes / 1e6:,.0f} MB without the gate"),
        *((shard.name, f"{shard.nbytes:,} bytes") for shard in plan.shards),
    ]


def _converted_json(given: str, out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The contract's object: a view of the manifest."""
    source = manifest["source"]
    gate = {key: manifest["gate"][key] for key in manifest["gate"]}
    if gate["generation"]:
        gate["generation"] = {k: v for k, v in gate["generation"].items() if k != "examples"}
    return {
        "out": str(out),
        "recipe": manifest["recipe"]["name"],
        "device": manifest["conversion"]["device"],
        "source": {
            "path": given,
            "revision": source["revision"],
            "status": source["status"],
            "files": [
                {key: each[key] for key in ("name", "bytes", "md5", "sha256")}
                for each in source["files"]
            ],
        },
        "sizes": manifest["sizes"],
        "seconds": manifest["seconds"],
        "peak_rss_bytes": manifest["peak_rss_bytes"],
        "gate": gate,
    }
