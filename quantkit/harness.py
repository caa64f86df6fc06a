"""lm-evaluation-harness (extra ``eval``) with a model that is in memory already.

The evaluating is the library's; here is only what it cannot know: which ids are the model's,
which prompt form, and who wants to hear how far it is. https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

from quantkit.adapter import adapter
from quantkit.errors import HubError, QuantkitError, UsageError, on_one_line
from quantkit.hub import scrub
from quantkit.quiet import quiet_libraries
from quantkit.tasks import LocalTask, WantedTasks

#: Its loggers, and those of what it stands on.
_LOGGERS = ("lm_eval", "datasets", "evaluate")


#: Which examples are drawn for ``shots``; the library's own default.
SEED = 1234


@dataclass(frozen=True)
class QuestionSettings:
    """How questions are put: ``shots`` answered examples before each (``None``: the task's own
    number), at most ``limit`` questions a task, ``form`` for the model's own prompt form."""

    shots: int | None = None
    limit: int | None = None
    batch_size: int = 1
    form: bool = False


@dataclass(frozen=True)
class Loaded:
    """Tasks with their data, as the library holds them.

    ``parts`` are the names that its figures go by, each with the tasks that it is made of: a task
    by itself, or a group where the library makes one figure of its tasks'.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    parts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Answers:
    """What one model made of the tasks, as the library reports it.

    ``results`` are its figures by task, ``samples`` each task's questions in order, ``counts``
    how many were put and how many there are, ``truncated`` the requests that were cut to the
    model's positions.
    """

    results: Mapping[str, Mapping[str, Any]]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    counts: Mapping[str, Mapping[str, int]]
    shots: Mapping[str, int]
    versions: Mapping[str, Any]
    better: Mapping[str, Mapping[str, bool]]
    truncated: int


def require_harness() -> str:
    """Its name and version.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"eval: needs lm-evaluation-harness ({error}); install quantkit with its extra: "
            "pip install '.[eval]' in a checkout"
        ) from error
    return f"lm-eval {version('lm_eval')}"


def load_tasks(wanted: WantedTasks, *, form: bool) -> Loaded:
    """Build every task, data and all, before any model is loaded.

    Raises:
        UsageError: a name that nobody knows, or a task that runs code it is given.
        HubError: a task's data cannot be downloaded.
    """
    from lm_eval.tasks import TaskManager

    with _quiet():
        manager = TaskManager(include_defaults=bool(wanted.foreign))
        for name in wanted.foreign:
            _check_known(name, manager.all_tasks)
        tasks: dict[str, Any] = {}
        groups: dict[str, Any] = {}
        parts: dict[str, tuple[str, ...]] = {}
        for name in wanted.names:
            ours = wanted.local.get(name)
            spec = name if ours is None else _configuration(ours, form=form)
            found = _loaded(manager, name, spec, local=ours is not None)
            leaves, inside = found["tasks"], found.get("groups", {})
            if twice := sorted(leaves.keys() & tasks.keys()):
                raise UsageError(f"task {name}: {twice[0]} is asked for twice; name it once")
            tasks |= leaves
            groups |= inside
            if name in inside and inside[name].has_aggregation:
                parts[name] = tuple(leaves)
            else:
                parts |= {each: (each,) for each in leaves}
    return Loaded(tasks, groups, parts)


def _check_known(name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; 'lm_eval ls tasks' lists its tasks"
        raise UsageError(f"task {name}: neither ours nor lm-evaluation-harness's{hint}")


def _loaded(manager: Any, name: str, spec: Any, *, local: bool) -> Any:
    try:
        found = manager.load([spec])
    except ImportError as error:
        said = f"task {name}: needs a package that is not here ({on_one_line(error)}); install it"
        raise UsageError(said) from error
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # the datasets library raises a dozen kinds for a failed download
        if local:  # nothing is downloaded, whatever the library stumbled over
            raise UsageError(
                f"task {name}: lm-evaluation-harness cannot take its questions "
                f"({type(error).__name__}: {on_one_line(error)}); see to the file (--data)"
            ) from error
        raise HubError(
            f"task {name}: its data cannot be downloaded here ({type(error).__name__}: "
            f"{scrub(on_one_line(error))}); see to the network and HF_HUB_OFFLINE, or leave the "
            "task out"
        ) from error
    for each, task in found["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UsageError(f"task {each}: runs code that the model writes; quantkit does not")
    return found


def _configuration(task: LocalTask, *, form: bool) -> dict[str, Any]:
    """A task of ours as the library reads it; its questions stay in memory, in no cache."""
    made = dict(task.harness)
    if not form:
        made["doc_to_text"] += task.plain_ending

    def questions(**kwargs: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"validation": Dataset.from_list([dict(each) for each in task.rows])}

    return made | {"custom_dataset": questions}


def ask(
    model: Any,
    tokenizer: Any,
    loaded: Loaded,
    asking: QuestionSettings,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """Put the tasks to ``model`` with ``tokenizer``'s ids; ``told`` hears of requests answered.

    Log-probabilities, in nats, are by float32 log-softmax of the model's logits.

    Raises:
        QuantkitError: the library stops, at a choice without a token of its own, say.
    """
    from lm_eval import evaluate

    out = sys.stdout

    def aloud(done: int, total: int) -> None:
        with redirect_stdout(out):  # only what the library prints goes elsewhere
            told(done, total)

    with _quiet():
        for task in loaded.tasks.values():
            _set_shots(task, asking.shots)
        adapted = adapter(model, tokenizer, asking.batch_size, aloud)
        # not simple_evaluate, which asks git and the Hub about a model that is in memory
        try:
            found = evaluate(
                lm=adapted,
                task_dict={"tasks": dict(loaded.tasks), "groups": dict(loaded.groups)},
                limit=asking.limit,
                apply_chat_template=asking.form,
                fewshot_as_multiturn=True,
                log_samples=True,
            )
        except (QuantkitError, MemoryError, OSError):
            raise
        except Exception as error:  # assertions, most of them
            raise QuantkitError(
                f"tasks {', '.join(loaded.tasks)}: lm-evaluation-harness stopped "
                f"({type(error).__name__}: {on_one_line(error)}); nothing was recorded: try them "
                "one by one, with --limit 10"
            ) from error
    return Answers(
        results=found["results"],
        samples=found["samples"],
        counts=found["n-samples"],
        shots=found["n-shot"],
        versions=found["versions"],
        better=found["higher_is_better"],
        truncated=adapted.truncated,
    )


def _set_shots(task: Any, shots: int | None) -> None:
    """As the library's own command does it: a task that says 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=SEED)


def texts_of(loaded: Loaded) -> list[str]:
    """Every text that was put to a model, once: a question, with its answer where it was scored."""
    requests = (each for task in loaded.tasks.values() for each in task.instances)
    parts = ([one for one in each.args if isinstance(one, str)] for each in requests)
    return list(dict.fromkeys("".join(each) for each in parts))


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's own bars and advice held back; errors still come through."""
    import datasets
    from lm_eval.api import task

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [each.level for each in loggers]
    were_off, bar = datasets.are_progress_bars_disabled(), task.tqdm
    try:
        for each in loggers:
            each.setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        task.tqdm = lambda rows, **kwargs: rows  # no setting turns this bar off
        with quiet_libraries(), redirect_stdout(sys.stderr):  # no model is loaded
            yield
    finally:
        task.tqdm = bar
        if not were_off:
            datasets.enable_progress_bars()
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
