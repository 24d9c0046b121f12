"""Whatever arrives, and however it ends: each request gets its own answer or one error."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from conftest import BATCHERS, PATIENCE, wait_for_threads
from hypothesis import event, given, settings
from hypothesis import strategies as st

from serving.batch import Answer, Batcher, Outcome, Request, Tensors, padded, split, stack
from serving.errors import (
    BatcherClosed,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    QueueFull,
    RequestCancelled,
    ServingError,
)
from serving.request_queue import RequestQueue

SENDERS = 3
PADDING = 0  # what a row that fills a bucket holds; requests' rows hold other numbers


@pytest.fixture(autouse=True, scope="module")
def threads_take_turns_often() -> Iterator[None]:
    """So that what can happen between two steps of a thread does happen."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@dataclass(frozen=True)
class Plan:
    """One request, and what happens to it."""

    rows: int
    width: int  # requests of different width do not share a batch
    priority: int
    background: bool
    poison: bool  # the model cannot run it, nor any batch that it is in
    cancelled: str  # "", "before" it is submitted, or "after"
    seconds: float  # until its deadline


@dataclass(frozen=True)
class Setting:
    """How the batcher is set up, and when it is closed."""

    max_batch_size: int
    max_queue_delay: float
    max_queue_size: int
    instance_count: int
    buckets: tuple[int, ...]
    held: bool  # the model waits until all has been submitted
    close_after: int  # requests; the senders go on
    close_timeout: float


LEVELS = 3

plans = st.builds(
    Plan,
    rows=st.integers(1, 5),
    width=st.sampled_from([1, 1, 1, 2]),
    priority=st.integers(0, LEVELS - 1),
    background=st.sampled_from([False] * 4 + [True]),
    poison=st.sampled_from([False] * 7 + [True]),
    cancelled=st.sampled_from([""] * 4 + ["before", "after"]),
    seconds=st.sampled_from([math.inf] * 4 + [PATIENCE, 0.001, -1.0]),
)


@st.composite
def a_setting(draw: st.DrawFn) -> Setting:
    size = draw(st.integers(1, 6))
    return Setting(
        max_batch_size=size,
        max_queue_delay=draw(st.sampled_from([0.0, 0.0, 0.001, 0.005])),
        max_queue_size=draw(st.sampled_from([2, 1000])),
        instance_count=draw(st.integers(1, 3)),
        buckets=draw(st.sampled_from([(), (size,), (size, 1), (size, 2, 4)])),
        held=draw(st.booleans()),
        close_after=draw(st.sampled_from([1000, 1000, 0, 5])),
        close_timeout=draw(st.sampled_from([PATIENCE, PATIENCE, 0.0])),
    )


class Model:
    """Gives each row's number and its negative; fails where a row's number is negative.

    Remembers what it ran.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.sizes: list[int] = []
        self.runs_of: dict[int, int] = {}
        self.running = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self, inputs: Tensors) -> Tensors:
        rows = inputs["x"][:, 0]
        with self._lock:
            self.sizes.append(len(rows))
            for number in {abs(int(row)) // 10 for row in rows if row != PADDING}:
                self.runs_of[number] = self.runs_of.get(number, 0) + 1
            self.running += 1  # last: who looks without the lock then knows whom it runs
            self.most_at_once = max(self.most_at_once, self.running)
        assert self.gate.wait(PATIENCE)
        with self._lock:
            self.running -= 1
        if any(int(row) < 0 for row in rows):
            raise RuntimeError("poisoned")
        return {"y": inputs["x"], "negative": np.negative(inputs["x"])}


@dataclass
class Sent:
    """A request, and all that came of it."""

    number: int  # from 1
    plan: Plan
    outcomes: list[Outcome] = field(default_factory=list)
    told: threading.Event = field(default_factory=threading.Event)
    never_to_run: bool = False  # nor to run again

    def send(self, batcher: Batcher, model: Model, instances: int) -> None:
        deadline = time.monotonic() + self.plan.seconds
        request = Request(
            {"x": self.values},
            self._complete,
            deadline=deadline,
            priority=self.plan.priority,
            background=self.plan.background,
        )
        if self.plan.cancelled == "before":
            request.cancel()
        self.never_to_run = self.plan.cancelled == "before" or self.plan.seconds < 0
        try:
            batcher.submit(request)
        except ServingError as error:
            if self.plan.cancelled != "before":
                self._complete(error)
            self.never_to_run = True
            return
        if self.plan.cancelled == "after":
            self._cancel(request, model, instances)

    def _cancel(self, request: Request, model: Model, instances: int) -> None:
        """While every instance is held, no batch is formed: who is in none will be in none."""
        held = model.running == instances and self.number not in model.runs_of
        request.cancel()
        self.never_to_run |= held and not model.gate.is_set()

    @property
    def values(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """A number of its own for each row: (rows, width), below 0 for poison."""
        rows = np.arange(self.plan.rows) + 10 * self.number
        values = np.repeat(rows[:, np.newaxis], self.plan.width, axis=1)
        return -values if self.plan.poison else values

    def _complete(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.told.set()


def send_all(batcher: Batcher, model: Model, sent: list[Sent], setting: Setting) -> bool:
    """From several threads; close when the setting says so. Whether it closed in time."""
    counted = threading.Semaphore(0)

    def sender(mine: list[Sent]) -> None:
        for each in mine:
            each.send(batcher, model, setting.instance_count)
            counted.release()

    senders = [threading.Thread(target=sender, args=(sent[i::SENDERS],)) for i in range(SENDERS)]
    for thread in senders:
        thread.start()
    for _ in range(min(setting.close_after, len(sent))):
        assert counted.acquire(timeout=PATIENCE)
    if setting.close_timeout:
        model.gate.set()
    finished = batcher.close(setting.close_timeout)
    for thread in senders:
        thread.join()
    model.gate.set()
    return finished


def expected(each: Sent, setting: Setting) -> set[type[Answer | ServingError]]:
    """What may come of a request."""
    plan = each.plan
    if plan.cancelled == "before":
        return {RequestCancelled}
    if plan.rows > setting.max_batch_size:
        return {InvalidInput}
    may: set[type[Answer | ServingError]] = {ModelFailed if plan.poison else Answer}
    if plan.seconds < 0:
        may = {DeadlineExceeded}
    elif plan.seconds < PATIENCE:
        may |= {DeadlineExceeded}
    if plan.cancelled:
        may |= {RequestCancelled}
    if setting.max_queue_size < 1000:
        may |= {QueueFull}
    if setting.close_after < 1000 or not setting.close_timeout:
        may |= {BatcherClosed}
    return may


@pytest.mark.parametrize("kind", BATCHERS)
@settings(max_examples=500)
@given(setting=a_setting(), made=st.lists(plans, min_size=1, max_size=30))
def test_every_request_gets_exactly_its_own_answer_or_one_error(
    kind: Callable[..., Batcher], setting: Setting, made: list[Plan]
) -> None:
    model = Model()
    if not setting.held:
        model.gate.set()
    batcher = kind(
        model,
        max_batch_size=setting.max_batch_size,
        max_queue_delay=setting.max_queue_delay,
        max_queue_size=setting.max_queue_size,
        instance_count=setting.instance_count,
        buckets=setting.buckets,
        priority_levels=LEVELS,
    )
    sent = [Sent(number, plan) for number, plan in enumerate(made, start=1)]
    finished = send_all(batcher, model, sent, setting)
    wait_for_threads("batcher", 0)

    assert finished or not setting.close_timeout
    assert batcher.pending == 0
    assert model.most_at_once <= setting.instance_count
    assert all(size <= setting.max_batch_size for size in model.sizes)
    assert all(padded(size, sorted(setting.buckets)) == size for size in model.sizes)
    for each in sent:
        check(each, model, setting)


def check(each: Sent, model: Model, setting: Setting) -> None:
    assert len(each.outcomes) == 1, each
    outcome = each.outcomes[0]
    event(type(outcome).__name__)
    assert type(outcome) in expected(each, setting), each
    if isinstance(outcome, Answer):
        assert outcome.outputs["y"].tolist() == each.values.tolist()
        assert outcome.outputs["negative"].tolist() == (-each.values).tolist()
        assert model.runs_of[each.number] in (1, 2)  # again by itself, when its batch failed
    if each.never_to_run:
        assert each.number not in model.runs_of, each


def test_of_many_threads_that_would_complete_a_request_exactly_one_may() -> None:
    outcomes: list[int] = []
    requests = [
        Request({"x": np.zeros(1)}, lambda outcome, n=number: outcomes.append(n))  # type: ignore[misc]
        for number in range(20_000)
    ]

    def cancel_all() -> None:
        for request in requests:
            request.cancel()

    threads = [threading.Thread(target=cancel_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == list(range(20_000))


# What waits


def request_of(
    number: int, rows: int, width: int, priority: int, background: bool, deadline: float
) -> Request:
    return Request(
        {"x": np.zeros((rows, width))},
        lambda outcome: None,
        priority=priority,
        background=background,
        deadline=deadline,
        arrived=float(number),
    )


steps = st.one_of(
    st.tuples(
        st.just("append"),
        st.integers(0, 4),
        st.sampled_from([1, 1, 2]),
        st.integers(0, LEVELS - 1),
        st.booleans(),
        st.sampled_from([math.inf, 1.0, 2.0, 3.0]),
    ),
    st.tuples(st.just("discard"), st.integers(0, 40)),
    st.tuples(st.just("expire"), st.sampled_from([0.5, 1.0, 2.0, 3.0])),
    st.tuples(st.just("take"), st.integers(1, 6)),
)


def turn(request: Request) -> int:
    """Which part of the queue the request is in: levels, then what is background."""
    return LEVELS if request.background else request.priority


def first_batch(waiting: list[Request], max_rows: int) -> list[Request]:
    """As a sentence of the contract: as many from the front as fit and have the first's shape."""
    count = 0
    while count < len(waiting) and (
        count == 0
        or (
            sum(request.rows for request in waiting[: count + 1]) <= max_rows
            and waiting[count].shapes == waiting[0].shapes
        )
    ):
        count += 1
    return waiting[:count]


@settings(max_examples=200)
@given(todo=st.lists(steps, max_size=40))
def test_the_queue_keeps_order_and_count_through_whatever_is_done_to_it(
    todo: list[tuple[Any, ...]],
) -> None:
    queue, waiting, known = RequestQueue(LEVELS), list[Request](), list[Request]()
    for number, (step, *arguments) in enumerate(todo):
        if step == "append":
            request = request_of(number, *arguments)
            queue.append(request)
            known.append(request)
            waiting = sorted([*waiting, request], key=turn)  # stable
        elif step == "discard" and known:
            request = known[arguments[0] % len(known)]
            queue.discard(request)
            waiting = [other for other in waiting if other is not request]
        elif step == "expire":
            now = arguments[0]
            assert queue.expire(now) == [r for r in waiting if r.deadline <= now]
            waiting = [r for r in waiting if r.deadline > now]
        elif step == "take":
            max_rows = arguments[0]
            batch = first_batch(waiting, max_rows)
            assert queue.take(max_rows) == batch
            waiting = waiting[len(batch) :]
        assert (queue.count, queue.rows) == (len(waiting), sum(r.rows for r in waiting))
        assert queue.callers == sum(not request.background for request in waiting)
        if waiting:
            whole = first_batch(waiting, 6) == waiting and queue.rows < 6
            arrival = min(request.arrived for request in waiting)
            assert queue.first_arrival(6) == (arrival if whole else -math.inf)
    assert queue.take_all() == waiting
    assert (queue.count, queue.rows) == (0, 0)


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    buckets=st.lists(st.integers(1, 40), max_size=3, unique=True).map(sorted),
    strings=st.booleans(),
)
def test_stacked_and_padded_inputs_split_into_what_each_request_had(
    sizes: list[int], buckets: list[int], strings: bool
) -> None:
    batch = []
    for number, size in enumerate(sizes):
        rows = np.full((size, 2), number)
        inputs: Tensors = {"x": rows.astype(str).astype(object) if strings else rows}
        batch.append(Request(inputs, lambda outcome: None))
    total = sum(sizes)
    size = padded(total, buckets)
    assert size == min((b for b in buckets if b >= total), default=total)
    stacked = stack(batch, size)
    assert stacked["x"].shape == (size, 2)
    assert stacked["x"][total:].tolist() == [["", ""] if strings else [0, 0]] * (size - total)
    parts = split(stacked, batch, size)
    assert [part["x"].tolist() for part in parts] == [r.inputs["x"].tolist() for r in batch]
