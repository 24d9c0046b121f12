"""The threads that receive requests: few, the same again, and more only while those are stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from conftest import PATIENCE

from serving.receiving import ReceivingPool


def held(pool: ReceivingPool, count: int, gate: threading.Event) -> list[threading.Event]:
    """Tasks that begin, tell so, and wait."""
    begun = [threading.Event() for _ in range(count)]

    def task(event: threading.Event) -> None:
        event.set()
        assert gate.wait(PATIENCE)

    for event in begun:
        pool.submit(task, event)
    return begun


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end


def test_a_task_gives_its_result_or_its_error() -> None:
    pool = ReceivingPool(2, 4, "test")
    assert pool.submit(lambda a, b: a + b, 1, b=2).result(PATIENCE) == 3
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(PATIENCE)


def test_one_after_the_other_they_run_on_one_thread() -> None:
    pool = ReceivingPool(4, 8, "test")
    names = set()
    for _ in range(50):
        names.add(pool.submit(threading.get_ident).result(PATIENCE))
        until(lambda: not pool.running)  # just after it has given the result, its thread is idle
    assert len(names) == 1


def test_tasks_that_are_stuck_do_not_keep_others_waiting() -> None:
    """As callers that never send all of their request."""
    pool, gate = ReceivingPool(2, 64, "test"), threading.Event()
    begun = held(pool, 6, gate)
    assert all(event.wait(PATIENCE) for event in begun)
    assert pool.submit(lambda: "served").result(PATIENCE) == "served"
    until(lambda: pool.running == 6)
    gate.set()


def test_there_are_never_more_threads_than_may_be_and_then_tasks_wait() -> None:
    pool, gate = ReceivingPool(1, 3, "test"), threading.Event()
    begun = held(pool, 3, gate)
    assert all(event.wait(PATIENCE) for event in begun)
    last = pool.submit(lambda: "at last")
    assert (pool.running, pool.waiting, pool.full) == (3, 1, True)
    gate.set()
    assert last.result(PATIENCE) == "at last"


def test_beside_stuck_ones_a_thread_stays_for_the_next_task() -> None:
    pool, gate = ReceivingPool(2, 64, "test"), threading.Event()
    assert all(event.wait(PATIENCE) for event in held(pool, 2, gate))
    first = pool.submit(threading.get_ident).result(PATIENCE)
    until(lambda: pool.running == 2)
    assert pool.submit(threading.get_ident).result(PATIENCE) == first
    gate.set()


def test_threads_beyond_the_few_end_when_all_is_well_again() -> None:
    pool, gate = ReceivingPool(1, 8, "extra"), threading.Event()
    begun = held(pool, 4, gate)
    assert all(event.wait(PATIENCE) for event in begun)
    extra = [thread for thread in threading.enumerate() if thread.name == "extra"]
    assert len(extra) == 4
    gate.set()
    pool.submit(lambda: None).result(PATIENCE)
    until(lambda: sum(thread.is_alive() for thread in extra) == 1)
