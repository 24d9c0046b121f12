"""The batcher contract, clause by clause, over a small model that waits until it is told."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from conftest import BATCHERS, PATIENCE, wait_for_threads

from serving.batch import Answer, Batcher, Outcome, Request, Tensors
from serving.batcher import DynamicBatcher
from serving.errors import (
    BatcherClosed,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    QueueFull,
    RequestCancelled,
    ServingError,
)
from serving.execution import Execution
from serving.status import status_of

Make = Callable[..., Batcher]


class Doubler:
    """Doubles; each run, once held, waits for `release`. Remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.most_at_once = 0
        self.entered = threading.Semaphore(0)
        self._running = 0
        self._lock = threading.Lock()
        self._gate = threading.Event()
        self._gate.set()

    def hold(self) -> None:
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE)

    def __call__(self, inputs: Tensors) -> Tensors:
        with self._lock:
            self.batches.append([float(value) for value in inputs["x"].flat])
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        self.entered.release()
        assert self._gate.wait(PATIENCE)
        with self._lock:
            self._running -= 1
        if 13.0 in inputs["x"]:
            raise RuntimeError("unlucky")
        return {"y": inputs["x"] * 2}


class Asked:
    """A request of some values that was submitted, and what came of it."""

    def __init__(self, batcher: Batcher, *values: float, **options: float) -> None:
        self._outcome: Future[Outcome] = Future()  # a second outcome is an error
        array = np.array(values)
        self.request = Request({"x": array}, self._outcome.set_result, **options)  # type: ignore[arg-type]
        batcher.submit(self.request)

    @property
    def answer(self) -> Answer:
        outcome = self._outcome.result(PATIENCE)
        assert isinstance(outcome, Answer), outcome
        return outcome

    @property
    def values(self) -> list[float]:
        return [float(value) for value in self.answer.outputs["y"]]

    @property
    def error(self) -> ServingError:
        outcome = self._outcome.result(PATIENCE)
        assert isinstance(outcome, ServingError), outcome
        return outcome


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture(params=BATCHERS)
def kind(request: pytest.FixtureRequest) -> Callable[..., Batcher]:
    """Which batcher the contract is held against."""
    chosen: Callable[..., Batcher] = request.param
    return chosen


@pytest.fixture
def make(kind: Callable[..., Batcher], doubler: Doubler) -> Iterator[Make]:
    """Batchers, of the doubler unless another model is given, that are closed in the end."""
    yield from made_by(kind, doubler)


@pytest.fixture
def make_python(doubler: Doubler) -> Iterator[Make]:
    """As `make`, where only Python's batcher is asked for what the native one leaves to it."""
    yield from made_by(DynamicBatcher, doubler)


def made_by(kind: Callable[..., Batcher], doubler: Doubler) -> Iterator[Make]:
    made: list[Batcher] = []

    def make_one(run: Callable[[Tensors], Tensors] = doubler, **options: object) -> Batcher:
        made.append(kind(run, **options))
        return made[-1]

    yield make_one
    doubler.release()
    assert [batcher.close(PATIENCE) for batcher in made] == [True] * len(made)


def occupy(doubler: Doubler, batcher: Batcher) -> Asked:
    """Keep one instance busy until `doubler.release()`."""
    doubler.hold()
    asked = Asked(batcher, 0.0)
    doubler.wait_until_entered()
    return asked


def wait_until(moment: float) -> None:
    """Let that time.monotonic pass."""
    while time.monotonic() < moment:
        threading.Event().wait(moment - time.monotonic())


def after_a_while() -> None:
    """Let a thread see what was submitted, and wait for more. The contract holds if it has not:
    that is only less of a test."""
    wait_until(time.monotonic() + 0.02)


# Batches


def test_a_lone_request_runs_at_once_by_itself(make: Make, doubler: Doubler) -> None:
    asked = Asked(make(max_batch_size=4), 1.0, 2.0)
    assert asked.values == [2.0, 4.0]
    assert asked.answer.stages.rows == 2
    assert doubler.batches == [[1.0, 2.0]]


def test_requests_that_arrive_while_the_instance_is_busy_run_together(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=8)
    occupy(doubler, batcher)
    asked = [Asked(batcher, float(i), i + 0.5) for i in (1, 2, 3)]
    assert batcher.pending == 3
    doubler.release()
    assert [each.values for each in asked] == [[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    assert doubler.batches == [[0.0], [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]]
    assert [each.answer.stages.rows for each in asked] == [6, 6, 6]
    assert batcher.pending == 0


def test_a_request_that_does_not_fit_waits_for_the_next_batch_in_one_piece(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=4)
    occupy(doubler, batcher)
    asked = [Asked(batcher, *[float(i)] * 3) for i in (1, 2)] + [Asked(batcher, 5.0)]
    doubler.release()
    assert [each.values for each in asked] == [[2.0] * 3, [4.0] * 3, [10.0]]
    assert doubler.batches == [[0.0], [1.0] * 3, [2.0, 2.0, 2.0, 5.0]]


def test_a_request_larger_than_a_batch_is_refused_naming_the_limit(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=4)
    with pytest.raises(InvalidInput, match="has 5 rows, at most 4 are allowed"):
        Asked(batcher, *[0.0] * 5)
    assert Asked(batcher, *[1.0] * 4).values == [2.0] * 4
    assert doubler.batches == [[1.0] * 4]


def test_requests_of_different_shapes_do_not_share_a_batch(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=8)
    occupy(doubler, batcher)
    outcome: Future[Outcome] = Future()
    batcher.submit(Request({"x": np.ones((1, 2))}, outcome.set_result))
    asked = Asked(batcher, 3.0)
    doubler.release()
    answer = outcome.result(PATIENCE)
    assert isinstance(answer, Answer)
    assert answer.outputs["y"].tolist() == [[2.0, 2.0]]
    assert asked.values == [6.0]
    assert doubler.batches == [[0.0], [1.0, 1.0], [3.0]]


def test_inputs_of_one_request_with_different_numbers_of_rows_are_refused() -> None:
    with pytest.raises(InvalidInput, match="'a' has 1, 'b' has 2"):
        Request({"a": np.zeros(1), "b": np.zeros(2)}, print)


def test_inputs_are_stacked_by_name_in_whatever_order_a_request_has_them(make: Make) -> None:
    gate = threading.Event()

    def run(inputs: Tensors) -> Tensors:
        assert gate.wait(PATIENCE)
        return dict(inputs)

    batcher = make(run, max_batch_size=8)
    futures: list[Future[Outcome]] = [Future() for _ in range(3)]
    a, b = np.array([5]), np.array([3])
    for inputs, future in zip(({"a": a, "b": b}, {"b": b, "a": a}) * 2, futures, strict=False):
        batcher.submit(Request(inputs, future.set_result))
    gate.set()
    answers = [future.result(PATIENCE) for future in futures]
    assert [
        {name: array.tolist() for name, array in answer.outputs.items()}
        for answer in answers
        if isinstance(answer, Answer)
    ] == [{"a": [5], "b": [3]}] * 3


# Delay


def test_with_a_delay_a_batch_runs_as_soon_as_it_is_full(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=3, max_queue_delay=6 * PATIENCE)
    asked = [Asked(batcher, float(i)) for i in (1, 2)]
    after_a_while()
    asked.append(Asked(batcher, 3.0))
    assert [each.values for each in asked] == [[2.0], [4.0], [6.0]]
    assert doubler.batches == [[1.0, 2.0, 3.0]]


def test_with_a_delay_a_batch_runs_as_soon_as_the_next_does_not_fit(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=3, max_queue_delay=6 * PATIENCE)
    first = Asked(batcher, 1.0, 1.0)
    after_a_while()
    second = Asked(batcher, 2.0, 2.0)
    assert first.values == [2.0] * 2
    assert doubler.batches == [[1.0] * 2]
    assert batcher.pending == 1
    assert batcher.close(PATIENCE)
    assert second.values == [4.0] * 2


def test_with_a_delay_a_batch_runs_as_soon_as_the_next_has_another_shape(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=8, max_queue_delay=6 * PATIENCE)
    asked = [Asked(batcher, 1.0), Asked(batcher, 2.0)]
    after_a_while()
    batcher.submit(Request({"x": np.ones((1, 2))}, lambda outcome: None))
    assert [each.values for each in asked] == [[2.0], [4.0]]
    assert doubler.batches == [[1.0, 2.0]]


def test_with_a_delay_a_batch_runs_that_long_after_its_first_request(
    make: Make, doubler: Doubler
) -> None:
    delay = 0.3
    batcher = make(max_batch_size=3, max_queue_delay=delay)
    doubler.hold()
    Asked(batcher, 0.0, 0.0, 0.0)  # full, and busy until both that follow are there
    doubler.wait_until_entered()
    first, second = Asked(batcher, 1.0), Asked(batcher, 2.0)
    doubler.release()
    assert first.answer.queue_seconds >= delay
    assert second.answer.queue_seconds <= first.answer.queue_seconds
    assert doubler.batches == [[0.0] * 3, [1.0, 2.0]]


def test_the_delay_counts_from_arrival_and_not_from_the_instance_being_free(
    make: Make, doubler: Doubler
) -> None:
    delay = PATIENCE
    batcher = make(max_batch_size=3, max_queue_delay=delay)
    asked = Asked(batcher, 1.0, arrived=time.monotonic() - delay)
    assert asked.answer.queue_seconds < 2 * delay


def test_with_a_delay_what_expires_meanwhile_holds_up_nobody(make: Make, doubler: Doubler) -> None:
    delay = 0.1
    batcher = make(max_batch_size=3, max_queue_delay=delay)
    expiring = Asked(batcher, 1.0, deadline=time.monotonic() + delay / 2)
    living = Asked(batcher, 2.0)
    assert isinstance(expiring.error, DeadlineExceeded)
    assert delay <= living.answer.queue_seconds < PATIENCE
    assert doubler.batches == [[2.0]]


def test_with_a_delay_whoever_is_slow_to_hear_of_his_deadline_holds_up_nobody(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=3, max_queue_delay=0.2)
    entered: list[bool] = []
    late = Request(
        {"x": np.array([1.0])},
        lambda outcome: entered.append(doubler.entered.acquire(timeout=PATIENCE)),
        deadline=time.monotonic() + 0.01,
    )
    batcher.submit(late)
    wait_until(late.deadline + 0.05)
    assert Asked(batcher, 2.0).values == [4.0]
    assert batcher.close(PATIENCE)
    assert entered == [True]


def test_with_a_delay_what_was_cancelled_makes_room_in_the_batch(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=2, max_queue_delay=6 * PATIENCE)
    Asked(batcher, 1.0).request.cancel()
    asked = [Asked(batcher, 2.0), Asked(batcher, 3.0)]
    assert [each.values for each in asked] == [[4.0], [6.0]]
    assert doubler.batches == [[2.0, 3.0]]


# A model's own buffers


def sets_of(number: int, rows: int) -> list[Tensors]:
    return [{"x": np.full(rows, 99.0)} for _ in range(number)]


class Bound:
    """A doubler that has buffers of its own: of each batch, the number of the set it was in."""

    def __init__(self, doubler: Doubler, buffers: list[Tensors]) -> None:
        self._doubler = doubler
        self._buffers = buffers
        self.places: list[int | None] = []

    def __call__(self, inputs: Tensors) -> Tensors:
        at = inputs["x"].ctypes.data
        sets = [number for number, each in enumerate(self._buffers) if each["x"].ctypes.data == at]
        self.places.append(sets[0] if sets else None)
        before = inputs["x"].copy()
        outputs = self._doubler(inputs)
        assert np.array_equal(inputs["x"], before)
        return outputs


def test_a_batch_is_stacked_in_the_models_buffers_and_what_fills_a_bucket_is_zeros(
    make: Make, doubler: Doubler
) -> None:
    buffers = sets_of(1, 8)
    bound = Bound(doubler, buffers)
    batcher = make(bound, max_batch_size=8, buckets=(4, 8), buffers=buffers)
    doubler.hold()
    first = Asked(batcher, 5.0, 5.0, 5.0, 5.0)
    doubler.wait_until_entered()
    asked = [Asked(batcher, 1.0), Asked(batcher, 2.0, 3.0)]
    doubler.release()
    assert first.values == [10.0] * 4
    assert [each.values for each in asked] == [[2.0], [4.0, 6.0]]
    assert doubler.batches == [[5.0] * 4, [1.0, 2.0, 3.0, 0.0]]
    assert bound.places == [0, 0]
    assert buffers[0]["x"].tolist() == [1.0, 2.0, 3.0, 0.0, 99.0, 99.0, 99.0, 99.0]


def test_rows_that_do_not_fit_the_models_buffers_are_stacked_elsewhere(
    make: Make, doubler: Doubler
) -> None:
    buffers = sets_of(1, 2)
    bound = Bound(doubler, buffers)
    batcher = make(bound, max_batch_size=8, buffers=buffers)
    assert Asked(batcher, 1.0, 2.0, 3.0).values == [2.0, 4.0, 6.0]
    assert Asked(batcher, 1.0, 2.0).values == [2.0, 4.0]
    wide: Future[Outcome] = Future()
    batcher.submit(Request({"x": np.ones((2, 2))}, wide.set_result))
    assert isinstance(wide.result(PATIENCE), Answer)
    assert bound.places == [None, 0, None]


def test_who_shared_a_batch_that_failed_in_the_models_buffers_runs_again(
    make: Make, doubler: Doubler
) -> None:
    buffers = sets_of(1, 8)
    batcher = make(Bound(doubler, buffers), max_batch_size=8, buffers=buffers)
    occupy(doubler, batcher)
    good, bad, other = (Asked(batcher, value) for value in (1.0, 13.0, 2.0))
    doubler.release()
    assert isinstance(bad.error, ModelFailed)
    assert (good.values, other.values) == ([2.0], [4.0])
    assert doubler.batches == [[0.0], [1.0, 13.0, 2.0], [1.0], [13.0], [2.0]]


def test_instances_have_buffers_of_their_own(make: Make, doubler: Doubler) -> None:
    buffers = sets_of(2, 8)
    bound = Bound(doubler, buffers)
    batcher = make(bound, max_batch_size=2, instance_count=2, buffers=buffers)
    doubler.hold()
    asked = [Asked(batcher, float(i), i + 0.5) for i in range(100, 200)]
    doubler.wait_until_entered()
    doubler.wait_until_entered()
    doubler.release()
    assert [each.values for each in asked] == [[2.0 * i, 2.0 * i + 1] for i in range(100, 200)]
    assert set(bound.places[:2]) == set(bound.places) == {0, 1}


# A full queue


def test_a_full_queue_refuses_at_once(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=4, max_queue_size=2)
    occupy(doubler, batcher)
    asked = [Asked(batcher, float(i)) for i in (1, 2)]
    with pytest.raises(QueueFull, match="2 requests are already waiting") as refusal:
        Asked(batcher, 3.0)
    assert refusal.value.retry_after == 0.01  # no batch has run yet, to say how long it takes
    doubler.release()
    assert [each.values for each in asked] == [[2.0], [4.0]]


def test_a_refused_caller_is_told_when_half_of_the_queue_will_have_run(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=2, max_queue_size=12)
    occupy(doubler, batcher)
    pair = [Asked(batcher, float(i)) for i in (1, 2)]
    doubler.release()
    doubler.hold()
    doubler.wait_until_entered()
    wait_until(time.monotonic() + 0.02)
    doubler.release()
    seconds = pair[1].answer.stages.seconds / 2  # per request
    assert seconds >= 0.01
    occupy(doubler, batcher)
    for i in range(12):
        Asked(batcher, float(i))
    with pytest.raises(QueueFull) as refusal:
        Asked(batcher, 3.0)
    assert refusal.value.retry_after == pytest.approx(6 * seconds)


def test_a_cancelled_request_frees_its_place_in_a_full_queue(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=4, max_queue_size=2)
    occupy(doubler, batcher)
    asked = [Asked(batcher, float(i)) for i in (1, 2)]
    asked[0].request.cancel()
    assert batcher.pending == 1
    third = Asked(batcher, 3.0)
    with pytest.raises(QueueFull):
        Asked(batcher, 4.0)
    doubler.release()
    assert (asked[1].values, third.values) == ([4.0], [6.0])
    assert doubler.batches == [[0.0], [2.0, 3.0]]


def test_an_expired_request_frees_its_place_in_a_full_queue_and_is_told(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=4, max_queue_size=2)
    occupy(doubler, batcher)
    living, expired = Asked(batcher, 1.0), Asked(batcher, 2.0, deadline=time.monotonic())
    third = Asked(batcher, 3.0)
    assert isinstance(expired.error, DeadlineExceeded)  # while the instance is still busy
    with pytest.raises(QueueFull):
        Asked(batcher, 4.0)
    doubler.release()
    assert (living.values, third.values) == ([2.0], [6.0])
    assert doubler.batches == [[0.0], [1.0, 3.0]]


# Deadlines and cancellation


def test_an_expired_request_is_dropped_and_its_batch_mates_are_answered(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=8)
    occupy(doubler, batcher)
    before, expired, after = (
        Asked(batcher, 1.0, deadline=time.monotonic() + PATIENCE),
        Asked(batcher, 2.0, deadline=time.monotonic()),
        Asked(batcher, 3.0),
    )
    doubler.release()
    assert isinstance(expired.error, DeadlineExceeded)
    assert (before.values, after.values) == ([2.0], [6.0])
    assert doubler.batches == [[0.0], [1.0, 3.0]]


def test_what_has_expired_leaves_room_for_others_in_the_batch(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=2)
    occupy(doubler, batcher)
    Asked(batcher, 1.0, 1.5, deadline=time.monotonic())
    asked = [Asked(batcher, 2.0), Asked(batcher, 3.0)]
    doubler.release()
    assert [each.values for each in asked] == [[4.0], [6.0]]
    assert doubler.batches == [[0.0], [2.0, 3.0]]


def test_a_request_that_comes_too_late_never_runs(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=8)
    late = Asked(batcher, 1.0, deadline=time.monotonic() - 1)
    assert isinstance(late.error, DeadlineExceeded)
    assert Asked(batcher, 2.0).values == [4.0]
    assert doubler.batches == [[2.0]]


def test_a_deadline_that_passes_while_the_batch_runs_changes_nothing(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=8)
    doubler.hold()
    asked = Asked(batcher, 1.0)
    doubler.wait_until_entered()
    asked.request.deadline = time.monotonic()  # as if it had been that from the beginning
    doubler.release()
    assert asked.values == [2.0]


def test_a_cancelled_request_is_told_at_once_and_dropped_and_its_mates_are_answered(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=8)
    occupy(doubler, batcher)
    before, cancelled, after = (Asked(batcher, value) for value in (1.0, 2.0, 3.0))
    cancelled.request.cancel()
    assert isinstance(cancelled.error, RequestCancelled)
    doubler.release()
    assert (before.values, after.values) == ([2.0], [6.0])
    assert doubler.batches == [[0.0], [1.0, 3.0]]


def test_a_request_cancelled_while_it_runs_is_told_so_once_and_its_mates_are_answered(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=8)
    occupy(doubler, batcher)
    cancelled, mate = Asked(batcher, 1.0), Asked(batcher, 2.0)
    doubler.release()
    doubler.hold()
    doubler.wait_until_entered()
    cancelled.request.cancel()
    assert isinstance(cancelled.error, RequestCancelled)
    doubler.release()
    assert mate.values == [4.0]
    assert batcher.close(PATIENCE)
    assert doubler.batches == [[0.0], [1.0, 2.0]]


def test_a_request_cancelled_before_it_is_submitted_never_runs(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=8)
    outcomes: list[Outcome] = []
    request = Request({"x": np.array([1.0])}, outcomes.append)
    request.cancel()
    batcher.submit(request)
    assert batcher.pending == 0
    assert Asked(batcher, 2.0).values == [4.0]
    assert [type(outcome) for outcome in outcomes] == [RequestCancelled]
    assert doubler.batches == [[2.0]]


def test_cancelling_what_was_answered_changes_nothing(make: Make) -> None:
    asked = Asked(make(max_batch_size=8), 1.0)
    assert asked.values == [2.0]
    asked.request.cancel()
    assert asked.values == [2.0]


def test_cancelling_frees_the_inputs_of_a_request_that_waits(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=8)
    occupy(doubler, batcher)
    array, freed = np.zeros(1), threading.Event()
    weakref.finalize(array, freed.set)
    request = Request({"x": array}, lambda outcome: None)
    batcher.submit(request)
    request.cancel()
    del array, request
    assert freed.is_set()


def test_an_idle_batcher_keeps_nothing_of_what_it_ran(make: Make) -> None:
    batcher = make(max_batch_size=8)
    array, freed, told = np.zeros(1), threading.Event(), threading.Event()
    weakref.finalize(array, freed.set)
    batcher.submit(Request({"x": array}, lambda outcome: told.set()))
    del array
    assert told.wait(PATIENCE)
    assert freed.wait(PATIENCE)


# Priorities


def test_a_lower_priority_number_goes_first_and_within_a_level_who_came_first(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=1, priority_levels=3)
    occupy(doubler, batcher)
    asked = [
        Asked(batcher, value, priority=priority)
        for value, priority in ((1.0, 2), (2.0, 1), (3.0, 0), (4.0, 1), (5.0, 0))
    ]
    doubler.release()
    assert [each.values for each in asked] == [[2.0], [4.0], [6.0], [8.0], [10.0]]
    assert doubler.batches == [[0.0], [3.0], [5.0], [2.0], [4.0], [1.0]]


def test_lower_priorities_are_taken_along_where_there_is_room(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=3, priority_levels=2)
    occupy(doubler, batcher)
    for value, priority in ((1.0, 1), (2.0, 1), (3.0, 0), (4.0, 0)):
        Asked(batcher, value, priority=priority)
    doubler.release()
    assert batcher.close(PATIENCE)
    assert doubler.batches == [[0.0], [3.0, 4.0, 1.0], [2.0]]


# Buckets, and rows out


def test_a_batch_is_filled_up_to_the_next_bucket_and_answers_have_their_own_rows(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=8, buckets=(8, 4, 1))
    occupy(doubler, batcher)
    asked = [Asked(batcher, 1.0, 2.0), Asked(batcher, 3.0)]
    doubler.release()
    assert [each.values for each in asked] == [[2.0, 4.0], [6.0]]
    assert asked[0].answer.stages.rows == 3
    assert Asked(batcher, *[5.0] * 5).values == [10.0] * 5
    assert doubler.batches == [[0.0], [1.0, 2.0, 3.0, 0.0], [5.0] * 5 + [0.0] * 3]


# The native batcher takes no arrays of Python's objects.
def test_bytes_are_filled_up_with_empty_strings(make_python: Make) -> None:
    seen: list[list[str | bytes]] = []

    def run(inputs: Tensors) -> Tensors:
        seen.append(inputs["x"].tolist())
        return {"y": inputs["x"]}

    outcome: Future[Outcome] = Future()
    strings = np.array([b"three", b"seven"], dtype=object)
    batcher = make_python(run, max_batch_size=4, buckets=(4,))
    batcher.submit(Request({"x": strings}, outcome.set_result))
    answer = outcome.result(PATIENCE)
    assert isinstance(answer, Answer)
    assert answer.outputs["y"].tolist() == [b"three", b"seven"]
    assert seen == [[b"three", b"seven", "", ""]]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_model_that_gives_another_number_of_rows_fails(make: Make, rows: int) -> None:
    batcher = make(lambda inputs: {"y": np.zeros(rows)}, max_batch_size=4)
    assert isinstance(Asked(batcher, 1.0, 2.0).error, ModelFailed)


def test_a_model_that_gives_a_scalar_fails(make: Make) -> None:
    batcher = make(lambda inputs: {"y": np.array(1.0)}, max_batch_size=4)
    assert isinstance(Asked(batcher, 1.0).error, ModelFailed)


# Failures


def test_a_request_that_the_model_cannot_run_fails_alone(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=4)
    occupy(doubler, batcher)
    good, bad, other = (Asked(batcher, value) for value in (1.0, 13.0, 2.0))
    doubler.release()
    assert isinstance(bad.error, ModelFailed)
    assert str(bad.error) == "the model failed; the server's log says why"
    assert (good.values, other.values) == ([2.0], [4.0])
    assert doubler.batches == [[0.0], [1.0, 13.0, 2.0], [1.0], [13.0], [2.0]]


def test_a_failure_is_its_requests_to_tell(
    make: Make, doubler: Doubler, caplog: pytest.LogCaptureFixture
) -> None:
    batcher = make(max_batch_size=4)
    occupy(doubler, batcher)
    good, bad = Asked(batcher, 1.0), Asked(batcher, 13.0)
    doubler.release()
    assert repr(bad.error.__cause__) == "RuntimeError('unlucky')"
    assert good.values == [2.0]
    assert caplog.records == []


def test_a_batch_that_failed_although_none_of_its_requests_does_is_a_warning(
    make: Make, doubler: Doubler, caplog: pytest.LogCaptureFixture
) -> None:
    def run(inputs: Tensors) -> Tensors:
        outputs = doubler(inputs)
        if len(inputs["x"]) > 1:
            raise MemoryError("too many rows")
        return outputs

    batcher = make(run, max_batch_size=4, name="model-1")
    occupy(doubler, batcher)
    asked = [Asked(batcher, value) for value in (1.0, 2.0)]
    doubler.release()
    assert [each.values for each in asked] == [[2.0], [4.0]]
    expected = "model-1: 2 requests failed together, none by itself: MemoryError('too many rows')"
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_a_failed_request_leaves_nothing_for_the_garbage_collector(make: Make) -> None:
    def run(inputs: Tensors) -> Tensors:
        raise ValueError("no")

    batcher = make(run, max_batch_size=1)
    outcome: Future[Outcome] = Future()
    array = np.ones(1)
    kept = weakref.ref(array)
    gc.disable()
    logging.disable()  # pytest would keep the record, and what it tells of
    try:
        batcher.submit(Request({"x": array}, outcome.set_result))
        error = outcome.result(PATIENCE)
        assert isinstance(error, ModelFailed)
        assert status_of(error)[0] == "INTERNAL"
        del error, outcome, array
        assert batcher.close(PATIENCE)
        assert kept() is None
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


def test_a_failing_batch_leaves_the_next_alone(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=1)
    occupy(doubler, batcher)
    bad, good = Asked(batcher, 13.0), Asked(batcher, 1.0)
    doubler.release()
    assert isinstance(bad.error, ModelFailed)
    assert good.values == [2.0]


def test_of_a_failed_batch_only_those_run_again_who_still_want_an_answer(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=8)
    occupy(doubler, batcher)
    bad, cancelled, good = (Asked(batcher, value) for value in (13.0, 2.0, 3.0))
    doubler.release()
    doubler.hold()
    doubler.wait_until_entered()
    cancelled.request.cancel()
    doubler.release()
    assert isinstance(bad.error, ModelFailed)
    assert isinstance(cancelled.error, RequestCancelled)
    assert good.values == [6.0]
    assert doubler.batches == [[0.0], [13.0, 2.0, 3.0], [13.0], [3.0]]


# The native batcher reads a deadline when it is submitted; its own tests have this clause.
def test_of_a_failed_batch_those_run_no_more_whose_deadline_has_passed(
    make_python: Make, doubler: Doubler
) -> None:
    batcher = make_python(max_batch_size=8)
    occupy(doubler, batcher)
    bad, expiring, good = (Asked(batcher, value) for value in (13.0, 1.0, 3.0))
    doubler.release()
    doubler.hold()
    doubler.wait_until_entered()
    expiring.request.deadline = time.monotonic()  # as if it had been that from the beginning
    doubler.release()
    assert isinstance(bad.error, ModelFailed)
    assert isinstance(expiring.error, DeadlineExceeded)
    assert good.values == [6.0]
    assert doubler.batches == [[0.0], [13.0, 1.0, 3.0], [13.0], [3.0]]


def test_a_callback_that_raises_costs_nobody_else_an_answer(
    make: Make, doubler: Doubler, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(outcome: Outcome) -> None:
        raise RuntimeError("nobody there")

    batcher = make(max_batch_size=8, max_queue_size=2)
    occupy(doubler, batcher)
    batcher.submit(Request({"x": np.array([1.0])}, fail, deadline=time.monotonic()))
    batcher.submit(Request({"x": np.array([2.0])}, fail))
    mate = Asked(batcher, 3.0)
    doubler.release()
    assert mate.values == [6.0]
    assert Asked(batcher, 4.0).values == [8.0]
    assert batcher.close(PATIENCE)
    assert [record.message for record in caplog.records] == [
        "an outcome could not be handed out",
        "an outcome could not be handed out",
    ]


def test_an_observer_that_raises_costs_nobody_an_answer(make: Make) -> None:
    def fail(execution: Execution) -> None:
        raise RuntimeError("cannot count")

    batcher = make(max_batch_size=8, observe=fail)
    assert Asked(batcher, 1.0).values == [2.0]
    assert Asked(batcher, 2.0).values == [4.0]


# Observing


def test_the_observer_hears_of_every_batch_before_its_answers_go_out(
    make: Make, doubler: Doubler
) -> None:
    seen: list[Execution] = []
    order: list[str] = []

    def observe(execution: Execution) -> None:
        seen.append(execution)
        order.append("observed")

    batcher = make(max_batch_size=4, buckets=(4,), observe=observe)
    first = occupy(doubler, batcher)
    batcher.submit(Request({"x": np.ones(2)}, lambda outcome: order.append("answered")))
    cancelled, last = Asked(batcher, 2.0), Asked(batcher, 3.0)
    doubler.release()
    doubler.hold()
    doubler.wait_until_entered()
    cancelled.request.cancel()
    assert first.values == [0.0]  # or its observer could come after the next one's
    doubler.release()
    stages = last.answer.stages
    assert batcher.close(PATIENCE)
    assert order == ["observed", "observed", "answered"]
    assert [execution.rows for execution in seen] == [1, 4]
    assert seen[0].queue_seconds == [first.answer.queue_seconds]
    assert len(seen[1].queue_seconds) == 2  # whoever left has no entry
    assert seen[1].request_seconds[-1] == last.answer.request_seconds
    assert seen[1].compute_infer_seconds == stages.compute_infer_seconds


# The server's own requests


def test_background_requests_go_after_every_level(make: Make, doubler: Doubler) -> None:
    batcher = make(max_batch_size=2, priority_levels=2)
    occupy(doubler, batcher)
    asked = [
        Asked(batcher, 1.0, background=True),
        Asked(batcher, 2.0, 2.5, priority=1),
        Asked(batcher, 3.0, priority=0),
    ]
    doubler.release()
    assert [each.values for each in asked] == [[2.0], [4.0, 5.0], [6.0]]
    assert doubler.batches[1:] == [[3.0], [2.0, 2.5], [1.0]]


def test_background_requests_are_taken_along_where_there_is_room(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=2)
    occupy(doubler, batcher)
    own, caller = Asked(batcher, 1.0, background=True), Asked(batcher, 2.0)
    doubler.release()
    assert (own.values, caller.values) == ([2.0], [4.0])
    assert doubler.batches[1:] == [[2.0, 1.0]]


def test_background_requests_take_no_callers_place_and_find_none_where_callers_fill_the_queue(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=1, max_queue_size=2)
    occupy(doubler, batcher)
    own = Asked(batcher, 1.0, background=True)
    assert batcher.pending == 0
    callers = [Asked(batcher, 2.0), Asked(batcher, 3.0)]
    assert batcher.pending == 2
    for background in (False, True):
        with pytest.raises(QueueFull):
            Asked(batcher, 4.0, background=background)
    own.request.cancel()
    assert isinstance(own.error, RequestCancelled)
    doubler.release()
    assert [each.values for each in callers] == [[4.0], [6.0]]


def test_the_observer_hears_of_callers_rows_only(make: Make, doubler: Doubler) -> None:
    seen: list[Execution] = []
    batcher = make(max_batch_size=4, observe=seen.append)
    first = occupy(doubler, batcher)
    caller, own = Asked(batcher, 3.0), Asked(batcher, 4.0, 5.0, background=True)
    doubler.release()
    assert caller.answer.stages.rows == own.answer.stages.rows == 3
    assert Asked(batcher, 1.0, 2.0, background=True).values == [2.0, 4.0]
    assert batcher.close(PATIENCE)
    assert [execution.rows for execution in seen] == [1, 1]
    assert sorted([*execution.request_seconds] for execution in seen) == sorted(
        [each.answer.request_seconds] for each in (first, caller)
    )


# Instances


def test_as_many_batches_run_at_once_as_there_are_instances_and_never_more(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=1, instance_count=2)
    doubler.hold()
    asked = [Asked(batcher, float(i)) for i in range(6)]
    for _ in range(2):
        doubler.wait_until_entered()
    assert batcher.pending == 4
    doubler.release()
    assert [each.values for each in asked] == [[2.0 * i] for i in range(6)]
    assert doubler.most_at_once == 2


@pytest.mark.parametrize("instances", [1, 2])
def test_the_next_batch_runs_while_answers_of_the_one_before_go_out(
    make: Make, doubler: Doubler, instances: int
) -> None:
    batcher = make(max_batch_size=1, instance_count=instances)
    entered: list[bool] = []
    doubler.hold()
    slow = [
        Request(
            {"x": np.zeros(1)},
            lambda outcome: entered.append(doubler.entered.acquire(timeout=PATIENCE)),
        )
        for _ in range(instances)
    ]
    for request in slow:
        batcher.submit(request)
        doubler.wait_until_entered()
    following = [Asked(batcher, 1.0) for _ in range(instances)]
    doubler.release()
    assert [each.values for each in following] == [[2.0]] * instances
    assert batcher.close(PATIENCE)
    assert entered == [True] * instances


# Closing


def test_closing_answers_whatever_is_inside_refuses_the_rest_and_ends_the_threads(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=1, instance_count=2, name="closing")
    wait_for_threads("closing", 3)
    occupy(doubler, batcher)
    asked = [Asked(batcher, float(i)) for i in (1, 2, 3)]
    doubler.wait_until_entered()
    closer, closed = closing(batcher)
    doubler.release()
    assert closed.result(PATIENCE) is True
    closer.join()
    assert [each.values for each in asked] == [[2.0], [4.0], [6.0]]
    wait_for_threads("closing", 0)


def closing(batcher: Batcher) -> tuple[threading.Thread, Future[bool]]:
    """Close it on another thread, with much time; returns when it refuses requests."""
    closed: Future[bool] = Future()
    closer = threading.Thread(target=lambda: closed.set_result(batcher.close(6 * PATIENCE)))
    closer.start()
    end = time.monotonic() + PATIENCE
    while not is_closed(batcher):
        assert time.monotonic() < end
    return closer, closed


def is_closed(batcher: Batcher) -> bool:
    """Whether it refuses requests; this one takes no place."""
    request = Request({"x": np.zeros(1)}, lambda outcome: None)
    request.cancel()
    try:
        batcher.submit(request)
    except BatcherClosed:
        return True
    return False


def test_closing_does_not_wait_for_a_delay_to_pass(make: Make) -> None:
    batcher = make(max_batch_size=8, max_queue_delay=6 * PATIENCE)
    asked = Asked(batcher, 1.0)
    assert batcher.close(PATIENCE) is True
    assert asked.answer.queue_seconds < PATIENCE


def test_closing_without_time_fails_what_is_queued_but_not_what_runs(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=1, name="hurried")
    running = occupy(doubler, batcher)
    queued = Asked(batcher, 1.0)
    assert batcher.close(0) is False
    assert isinstance(queued.error, BatcherClosed)
    assert batcher.pending == 0
    doubler.release()
    assert running.values == [0.0]
    wait_for_threads("hurried", 0)
    assert doubler.batches == [[0.0]]


def test_closing_an_idle_batcher_needs_no_time(make: Make) -> None:
    batcher = make(max_batch_size=1, instance_count=3, name="idle")
    assert batcher.close(0) is True
    wait_for_threads("idle", 0)
    with pytest.raises(BatcherClosed):
        Asked(batcher, 1.0)


def test_all_threads_end_when_the_last_that_waited_is_cancelled_while_closing(
    make: Make, doubler: Doubler
) -> None:
    batcher = make(max_batch_size=1, name="leaving")
    occupy(doubler, batcher)
    queued = Asked(batcher, 1.0)
    closer, closed = closing(batcher)
    queued.request.cancel()
    doubler.release()
    assert closed.result(PATIENCE) is True
    closer.join()
    wait_for_threads("leaving", 0)
