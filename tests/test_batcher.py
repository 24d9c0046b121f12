"""The batcher contract, clause by clause, over a fake model that waits until it is told."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from serving.batcher import Answer, DynamicBatcher, Lead, Request, Tensors
from serving.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    QueueFull,
    RequestCancelled,
    ServingError,
)

PATIENCE = 10.0  # seconds; only a broken batcher takes them


class Waiting(Request):
    """A request that tells when its caller has queued it and waits."""

    def __init__(self, values: list[float], deadline: float = math.inf) -> None:
        super().__init__({"x": np.array(values)}, deadline)
        self.queued = threading.Event()

    def wait(self) -> Lead | Answer | ServingError:
        self.queued.set()
        return super().wait()


class Doubler:
    """Doubles; each run, once held, waits for `release`. Remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.threads: list[int] = []
        self.entered = threading.Semaphore(0)
        self._gate = threading.Event()
        self._gate.set()

    def hold(self) -> None:
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def __call__(self, inputs: Tensors) -> Tensors:
        self.batches.append([float(value) for value in inputs["x"].flat])
        self.threads.append(threading.get_ident())
        self.entered.release()
        assert self._gate.wait(PATIENCE)
        if 13.0 in inputs["x"]:
            raise RuntimeError("unlucky")
        return {"y": inputs["x"] * 2}


class Callers:
    """Each request on a thread of its own."""

    def __init__(self, batcher: DynamicBatcher, pool: ThreadPoolExecutor) -> None:
        self._batcher = batcher
        self._pool = pool

    def start(self, request: Waiting) -> Future[Answer]:
        """Send and return once it is queued."""
        future = self._pool.submit(self._batcher.infer, request)
        assert request.queued.wait(PATIENCE)
        return future


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as executor:
        yield executor


def occupy(doubler: Doubler, callers: Callers) -> Future[Answer]:
    """Keep one instance busy until `doubler.release()`."""
    doubler.hold()
    future = callers.start(Waiting([0.0]))
    assert doubler.entered.acquire(timeout=PATIENCE)
    return future


def values(future: Future[Answer]) -> list[float]:
    return [float(value) for value in future.result(PATIENCE).outputs["y"]]


def test_a_lone_request_runs_at_once_on_its_callers_thread(doubler: Doubler) -> None:
    answer = DynamicBatcher(doubler, max_batch_size=4).infer(Request({"x": np.array([1.0, 2.0])}))
    assert answer.outputs["y"].tolist() == [2.0, 4.0]
    assert answer.batch_rows == 2
    assert doubler.threads == [threading.get_ident()]


def test_requests_that_arrive_while_the_model_is_busy_run_together(
    doubler: Doubler, pool: ThreadPoolExecutor
) -> None:
    callers = Callers(DynamicBatcher(doubler, max_batch_size=8), pool)
    occupy(doubler, callers)
    futures = [callers.start(Waiting([float(i), i + 0.5])) for i in (1, 2, 3)]
    doubler.release()
    assert [values(future) for future in futures] == [[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    assert doubler.batches == [[0.0], [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]]
    assert {future.result().batch_rows for future in futures} == {6}


def test_a_request_that_does_not_fit_waits_for_the_next_batch_in_one_piece(
    doubler: Doubler, pool: ThreadPoolExecutor
) -> None:
    callers = Callers(DynamicBatcher(doubler, max_batch_size=4), pool)
    occupy(doubler, callers)
    futures = [callers.start(Waiting([float(i)] * 3)) for i in (1, 2)]
    futures.append(callers.start(Waiting([5.0])))
    doubler.release()
    assert [values(future) for future in futures] == [[2.0] * 3, [4.0] * 3, [10.0]]
    assert doubler.batches == [[0.0], [1.0] * 3, [2.0, 2.0, 2.0, 5.0]]


def test_a_request_larger_than_a_batch_is_refused_naming_the_limit(doubler: Doubler) -> None:
    batcher = DynamicBatcher(doubler, max_batch_size=4)
    with pytest.raises(InvalidInput, match="has 5 rows, at most 4 are allowed"):
        batcher.infer(Request({"x": np.zeros(5)}))
    assert doubler.batches == []


def test_a_full_queue_refuses_at_once(doubler: Doubler, pool: ThreadPoolExecutor) -> None:
    batcher = DynamicBatcher(doubler, max_batch_size=4, max_queue_size=2)
    callers = Callers(batcher, pool)
    occupy(doubler, callers)
    futures = [callers.start(Waiting([float(i)])) for i in (1, 2)]
    assert batcher.pending == 2
    with pytest.raises(QueueFull, match="2 requests are already waiting"):
        batcher.infer(Request({"x": np.array([3.0])}))
    doubler.release()
    assert [values(future) for future in futures] == [[2.0], [4.0]]


def test_with_a_delay_a_batch_runs_as_soon_as_it_is_full(
    doubler: Doubler, pool: ThreadPoolExecutor
) -> None:
    callers = Callers(DynamicBatcher(doubler, max_batch_size=3, max_queue_delay=PATIENCE * 6), pool)
    futures = [callers.start(Waiting([float(i)])) for i in (1, 2, 3)]
    assert [values(future) for future in futures] == [[2.0], [4.0], [6.0]]
    assert sorted(doubler.batches[0]) == [1.0, 2.0, 3.0]


def test_with_a_delay_a_batch_runs_when_the_next_request_does_not_fit(
    doubler: Doubler, pool: ThreadPoolExecutor
) -> None:
    delay = 1.0
    callers = Callers(DynamicBatcher(doubler, max_batch_size=3, max_queue_delay=delay), pool)
    futures = [callers.start(Waiting([float(i)] * 2)) for i in (1, 2)]
    assert futures[0].result().queue_seconds < delay
    assert [values(future) for future in futures] == [[2.0] * 2, [4.0] * 2]
    assert doubler.batches == [[1.0] * 2, [2.0] * 2]
    assert futures[1].result().queue_seconds >= delay


def test_with_a_delay_a_lone_request_waits_that_long(doubler: Doubler) -> None:
    batcher = DynamicBatcher(doubler, max_batch_size=3, max_queue_delay=0.05)
    assert batcher.infer(Request({"x": np.array([1.0])})).queue_seconds >= 0.05


def test_an_expired_request_is_dropped_and_its_batch_mates_are_answered(
    doubler: Doubler, pool: ThreadPoolExecutor
) -> None:
    callers = Callers(DynamicBatcher(doubler, max_batch_size=8), pool)
    occupy(doubler, callers)
    expiring = callers.start(Waiting([1.0], deadline=time.monotonic() + 0.02))
    living = callers.start(Waiting([2.0], deadline=time.monotonic() + PATIENCE))
    with pytest.raises(DeadlineExceeded):
        expiring.result(PATIENCE)
    doubler.release()
    assert values(living) == [4.0]
    assert doubler.batches == [[0.0], [2.0]]


def test_a_request_that_comes_too_late_never_runs(doubler: Doubler) -> None:
    batcher = DynamicBatcher(doubler, max_batch_size=8)
    with pytest.raises(DeadlineExceeded):
        batcher.infer(Request({"x": np.array([1.0])}, deadline=time.monotonic() - 1))
    assert doubler.batches == []
    assert batcher.infer(Request({"x": np.array([2.0])})).outputs["y"].tolist() == [4.0]


def test_a_cancelled_request_is_dropped_and_its_batch_mates_are_answered(
    doubler: Doubler, pool: ThreadPoolExecutor
) -> None:
    callers = Callers(DynamicBatcher(doubler, max_batch_size=8), pool)
    occupy(doubler, callers)
    request = Waiting([1.0])
    cancelled, living = callers.start(request), callers.start(Waiting([2.0]))
    request.cancel()
    with pytest.raises(RequestCancelled):
        cancelled.result(PATIENCE)
    doubler.release()
    assert values(living) == [4.0]
    assert doubler.batches == [[0.0], [2.0]]


def test_a_request_cancelled_before_it_is_sent_never_runs(doubler: Doubler) -> None:
    batcher = DynamicBatcher(doubler, max_batch_size=8)
    request = Request({"x": np.array([1.0])})
    request.cancel()
    with pytest.raises(RequestCancelled):
        batcher.infer(request)
    assert doubler.batches == []
    assert batcher.infer(Request({"x": np.array([2.0])})).outputs["y"].tolist() == [4.0]


def test_a_failing_batch_fails_its_own_requests_only(
    doubler: Doubler, pool: ThreadPoolExecutor
) -> None:
    callers = Callers(DynamicBatcher(doubler, max_batch_size=2), pool)
    occupy(doubler, callers)
    futures = [callers.start(Waiting([value])) for value in (13.0, 1.0, 2.0, 3.0)]
    doubler.release()
    for future in futures[:2]:
        with pytest.raises(ModelFailed, match="the server's log says why"):
            future.result(PATIENCE)
    assert [values(future) for future in futures[2:]] == [[4.0], [6.0]]


def test_a_model_that_loses_rows_fails_the_batch() -> None:
    batcher = DynamicBatcher(lambda inputs: {"y": inputs["x"][:1]}, max_batch_size=4)
    with pytest.raises(ModelFailed):
        batcher.infer(Request({"x": np.zeros(2)}))


def test_as_many_batches_run_at_once_as_there_are_instances(pool: ThreadPoolExecutor) -> None:
    together = threading.Barrier(2, timeout=PATIENCE)

    def run(inputs: Tensors) -> Tensors:
        together.wait()
        return {"y": inputs["x"]}

    batcher = DynamicBatcher(run, max_batch_size=1, instance_count=2)
    futures = [pool.submit(batcher.infer, Request({"x": np.array([i])})) for i in range(2)]
    assert [future.result(PATIENCE).outputs["y"].tolist() for future in futures] == [[0], [1]]


def test_requests_of_different_shapes_do_not_share_a_batch(
    doubler: Doubler, pool: ThreadPoolExecutor
) -> None:
    callers = Callers(DynamicBatcher(doubler, max_batch_size=8), pool)
    occupy(doubler, callers)
    wide = Waiting([1.0])
    wide.inputs = {"x": np.ones((1, 2))}
    futures = [callers.start(wide), callers.start(Waiting([3.0]))]
    doubler.release()
    assert futures[0].result(PATIENCE).outputs["y"].tolist() == [[2.0, 2.0]]
    assert values(futures[1]) == [6.0]
    assert doubler.batches == [[0.0], [1.0, 1.0], [3.0]]


def test_inputs_with_different_numbers_of_rows_are_refused() -> None:
    with pytest.raises(InvalidInput, match="'a' has 1, 'b' has 2"):
        Request({"a": np.zeros(1), "b": np.zeros(2)})


def test_the_observer_hears_of_every_batch_before_its_answers(doubler: Doubler) -> None:
    seen: list[tuple[int, float]] = []
    batcher = DynamicBatcher(
        doubler,
        max_batch_size=4,
        observe=lambda batch, started, seconds: seen.append((sum(r.rows for r in batch), seconds)),
    )
    answer = batcher.infer(Request({"x": np.zeros(3)}))
    assert seen == [(3, answer.compute_seconds)]


@pytest.mark.parametrize("delay", [0.0, 0.001])
@pytest.mark.parametrize("instances", [1, 2])
def test_under_random_load_every_request_gets_its_own_answer_or_one_error(
    pool: ThreadPoolExecutor, delay: float, instances: int
) -> None:
    batcher = DynamicBatcher(
        lambda inputs: {"y": inputs["x"] * 2},
        max_batch_size=8,
        max_queue_delay=delay,
        instance_count=instances,
    )

    def ask(seed: int) -> bool:
        dice = random.Random(seed)
        array = np.full(dice.randint(1, 8), float(seed))
        late = time.monotonic() + dice.uniform(0, 0.005)
        request = Request({"x": array}, late if dice.random() < 0.3 else math.inf)
        if dice.random() < 0.3:
            pool.submit(request.cancel)
        try:
            return bool(np.array_equal(batcher.infer(request).outputs["y"], array * 2))
        except (DeadlineExceeded, RequestCancelled):
            return True

    assert all(ask_all(pool, ask, 1000))
    assert batcher.pending == 0


def ask_all(pool: ThreadPoolExecutor, ask: Callable[[int], bool], count: int) -> list[bool]:
    return [future.result(PATIENCE) for future in [pool.submit(ask, i) for i in range(count)]]
