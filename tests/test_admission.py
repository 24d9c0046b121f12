"""Room for so many requests, a refusal beyond, and word when all have left."""

from __future__ import annotations

import threading

import pytest

from serving.admission import Admission
from serving.errors import QueueFull


def test_one_more_than_the_limit_is_refused_until_one_leaves() -> None:
    admission = Admission(2)
    with admission.admitted():
        refused = pytest.raises(QueueFull, match="2 requests are already in flight")
        with admission.admitted(), refused:
            admission.admitted().__enter__()
        with admission.admitted():
            assert not admission.wait_until_idle(0.0)
    assert admission.wait_until_idle(0.0)


def test_a_request_that_fails_leaves_too() -> None:
    admission = Admission(1)
    with pytest.raises(ValueError, match="x"), admission.admitted():
        raise ValueError("x")
    assert admission.wait_until_idle(0.0)


def test_the_last_to_leave_wakes_who_waits() -> None:
    admission = Admission(1)
    leave = threading.Event()

    def stay() -> None:
        with admission.admitted():
            entered.set()
            leave.wait()

    entered = threading.Event()
    thread = threading.Thread(target=stay)
    thread.start()
    entered.wait()
    assert not admission.wait_until_idle(0.0)
    leave.set()
    assert admission.wait_until_idle(30.0)
    thread.join()
