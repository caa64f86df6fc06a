"""Lanes: one thread each, tasks in order, errors where they are waited for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest

from quantkit.lanes import Lane, Task


def test_tasks_are_done_in_order_on_one_thread_of_that_name() -> None:
    done: list[tuple[int, str]] = []
    with Lane("work") as lane:
        tasks = [
            lane.submit(lambda k: done.append((k, threading.current_thread().name)), k)
            for k in range(1000)
        ]
        for each in tasks:
            each.result()
            assert each.done()
    assert done == [(k, "work") for k in range(1000)]


def test_waiting_waits() -> None:
    go, done = threading.Event(), []
    with Lane("work") as lane:
        task = lane.submit(lambda: (go.wait(10), done.append(1)))
        assert not task.done()
        threading.Timer(0.1, go.set).start()
        task.result()
        assert done == [1]


def test_an_error_is_raised_where_its_task_is_waited_for_and_stops_no_other() -> None:
    done: list[int] = []
    with Lane("work") as lane:
        bad, good = lane.submit(lambda: 1 // 0), lane.submit(done.append, 1)
        good.result()
        for _ in range(2):  # however often
            with pytest.raises(ZeroDivisionError):
                bad.result()
    assert done == [1]


def test_a_context_ends_with_all_done() -> None:
    done: list[int] = []
    with Lane("work") as lane:
        for k in range(5):
            lane.submit(lambda k=k: (time.sleep(0.01), done.append(k)))
    assert done == list(range(5))


def begun(lane: Lane, done: list[int]) -> tuple[Task, threading.Event]:
    """A task behind one that is under way, and what lets that one end."""
    under_way, go = threading.Event(), threading.Event()
    lane.submit(lambda: (under_way.set(), go.wait(10), done.append(0)))
    assert under_way.wait(10)
    return lane.submit(done.append, 1), go


def left_by_an_error(done: list[int], waiting: list[Task]) -> None:
    with Lane("work") as lane:
        task, go = begun(lane, done)
        waiting.append(task)
        threading.Timer(0.1, go.set).start()
        raise KeyError


def test_an_error_in_the_context_cancels_what_is_not_begun() -> None:
    done: list[int] = []
    waiting: list[Task] = []
    with pytest.raises(KeyError):
        left_by_an_error(done, waiting)
    assert done == [0]
    with pytest.raises(CancelledError):
        waiting[0].result()


def test_closing_without_cancelling_cancels_nothing() -> None:
    done: list[int] = []
    lane = Lane("work")
    _, go = begun(lane, done)
    go.set()
    lane.close()
    lane.close()  # once more changes nothing
    assert done == [0, 1]


def test_a_lane_without_tasks_has_no_thread() -> None:
    before = threading.active_count()
    lane = Lane("work")
    assert threading.active_count() == before
    lane.close()


def test_a_task_lets_go_of_what_it_was_given() -> None:
    buffer = bytearray(8)
    with Lane("work") as lane:
        task = lane.submit(len, memoryview(buffer))
        task.result()
        buffer.extend(b"x")  # not while a view of it is held
