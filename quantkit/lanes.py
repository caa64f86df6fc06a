"""Threads that each do one kind of work, in the order in which it is given.

:mod:`concurrent.futures` does this and more, by several locks a task. A conversion gives out five
tasks for every segment of two megabytes, and holds the GIL for each: there it would show.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from queue import SimpleQueue
from threading import Lock, Thread
from types import TracebackType
from typing import Any


class Task:
    """What a lane was given to do."""

    __slots__ = ("_arguments", "_error", "_running", "_work")

    def __init__(self, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._work, self._arguments = work, arguments
        self._error: BaseException | None = None
        self._running = Lock()
        self._running.acquire()

    def run(self) -> None:
        """Do it, and let go of what it was given; for its lane to call, once."""
        try:
            self._work(*self._arguments)
        except BaseException as error:
            self._error = error
        self._end()

    def cancel(self) -> None:
        """Never do it; for its lane to call, instead."""
        self._error = CancelledError()
        self._end()

    def _end(self) -> None:
        self._arguments = ()
        self._running.release()

    def done(self) -> bool:
        return not self._running.locked()

    def result(self) -> None:
        """Wait until it is done; raises what it raised, or CancelledError."""
        with self._running:
            pass
        if self._error is not None:
            raise self._error


class Lane:
    """One thread, begun with its first task. As a context it ends with all of its tasks done,
    or, where an error leaves it, as soon as it can.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._cancelled = False

    def submit(self, work: Callable[..., object], *arguments: Any) -> Task:
        """Have ``work(*arguments)`` done after all that was submitted before."""
        task = Task(work, arguments)
        self._tasks.put(task)
        if self._thread is None:
            self._thread = Thread(target=self._run, name=self._name)
            self._thread.start()
        return task

    def close(self, *, cancel: bool = False) -> None:
        """Wait for what was submitted, or ``cancel`` what has not been begun."""
        self._cancelled = self._cancelled or cancel
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._cancelled:
                task.cancel()
            else:
                task.run()

    def __enter__(self) -> Lane:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)
