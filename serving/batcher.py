"""DynamicBatcher: requests that arrive together run together. No model, transport or metric here.

It owns the queue and the threads that run batches, and completes each request exactly once, with
its answer or with its error. Nobody waits here: callers hand in a callback.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

from serving.batch import (
    SHORTEST_RETRY,
    Answer,
    Outcome,
    Request,
    Run,
    Tensors,
    execution,
    run_batch,
    tell,
)
from serving.errors import (
    BatcherClosed,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    QueueFull,
    ServingError,
)
from serving.execution import Execution
from serving.request_queue import RequestQueue

Observe = Callable[[Execution], None]
Ran = tuple[list[Request], list[Outcome]]  # what went through one run, and what came of each


log = logging.getLogger(__name__)


class DynamicBatcher:
    """Groups requests into batches and runs at most `instance_count` of them at the same time.

    A batch is closed at `max_batch_size` rows or `max_queue_delay` seconds after its first request;
    without a delay, the moment an instance is free. Lower `priority` numbers go first; within a
    level, who came first; background requests go last. With `buckets`, a batch is filled up with
    rows of zeros to the next of these sizes. `run` maps stacked inputs to outputs with as many
    rows; `observe` is told of each batch that held a caller's request, before its answers go out,
    and `waiting`, which must not wait, how many callers' requests do. `buffers` are the model's,
    arrays of so many rows that it runs best from, a set for each instance: batches are stacked
    there where they fit, and `run` must keep nothing of them.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch_size: int,
        max_queue_delay: float = 0.0,
        max_queue_size: int = 256,
        instance_count: int = 1,
        buckets: Sequence[int] = (),
        priority_levels: int = 1,
        observe: Observe = lambda execution: None,
        waiting: Callable[[int], None] = lambda count: None,
        name: str = "batcher",
        buffers: Sequence[Tensors] = (),
    ) -> None:
        self._run = run
        self._buffers = list(buffers)  # those that are free
        self._observe = observe
        self._name = name
        self._max_batch_size = max_batch_size
        self._max_queue_delay = max_queue_delay
        self._max_queue_size = max_queue_size
        self._buckets = sorted(buckets)
        self._instance_count = instance_count
        self._free_instances = instance_count
        self._seconds_per_request = 0.0  # in the last batch
        # All below is the lock's.
        self._queue = RequestQueue(priority_levels, waiting)
        self._expired: list[Request] = []  # out of the queues, and still to be told
        self._unanswered = 0  # batches taken whose answers are not all out
        self._closed = False
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        # One more than there are instances: while one gives out its answers, the next batch runs.
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True)
            for number in range(instance_count + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Callers' requests that wait to be taken into a batch."""
        return self._queue.callers

    def submit(self, request: Request) -> None:
        """Queue the request; it will be completed once, on another thread.

        Raises InvalidInput, QueueFull or BatcherClosed, and then does not complete it.
        """
        if request.rows > self._max_batch_size:
            raise InvalidInput(
                f"the request has {request.rows} rows, at most {self._max_batch_size} are allowed"
            )
        with self._lock:
            if self._closed:
                raise BatcherClosed("the version is being unloaded")
            if self._queue.callers >= self._max_queue_size:
                self._make_room()
            request.withdraw = self._withdraw
            if not request.settled:  # from here on, who cancels it withdraws it
                self._append(request)

    def close(self, timeout: float) -> bool:
        """Take nothing more, let what is queued or runs finish; whether all did in time.

        Then the threads have ended. Otherwise, after `timeout` seconds, what is still queued fails
        and they end when their runs do.
        """
        end = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._lock:
            finished = not self._queue.count and not self._unanswered
            left = self._queue.take_all()
            self._work.notify_all()
        _refuse(left, BatcherClosed("the version was unloaded before the request could run"))
        if finished:
            for thread in self._threads:
                thread.join()
        return finished

    def _make_room(self) -> None:
        """Drop what has expired; QueueFull where nothing has. The lock is held."""
        self._expired += self._queue.expire(time.monotonic())
        self._wake_one()
        if self._queue.callers >= self._max_queue_size:
            raise self._full()

    def _full(self) -> QueueFull:
        """Try again when half of the queue will have run, if requests go on taking that long."""
        seconds = self._queue.callers / 2 * self._seconds_per_request / self._instance_count
        return QueueFull(
            f"{self._max_queue_size} requests are already waiting", max(SHORTEST_RETRY, seconds)
        )

    def _append(self, request: Request) -> None:
        """Queue it, and wake a thread if that can make a difference. The lock is held."""
        queue = self._queue
        # When others are queued, a thread was woken for the first. It takes what is there, or
        # waits for the delay to end; then it must hear that the batch can grow no more.
        closes = self._max_queue_delay and queue.closes_batch(request, self._max_batch_size)
        queue.append(request)
        if queue.count == 1 or closes:
            self._wake_one()

    def _withdraw(self, request: Request) -> None:
        with self._lock:
            self._queue.discard(request)

    def _wake_one(self) -> None:
        """Wake a waiting thread if there is something to do. The lock is held.

        If none waits, all is well: each looks for itself before it does.
        """
        if self._expired or (self._queue.count and self._free_instances):
            self._work.notify()

    def _serve(self) -> None:
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """Wait for a batch, run it and answer; False when the batcher is closed and empty.

        A function of its own, so that a waiting thread keeps no batch alive.
        """
        batch = self._next()
        if not batch:
            return False
        runs = self._execute(batch)
        with self._lock:
            self._free_instances += 1
            self._wake_one()
        for requests, outcomes in runs:
            self._hand_out(requests, outcomes)
        with self._lock:
            self._unanswered -= 1
        return True

    def _next(self) -> list[Request]:
        """Wait for an instance and a batch and take both; an empty batch when all is over.

        Those that expired are told meanwhile, but no batch waits for that.
        """
        while True:
            with self._lock:
                now = time.monotonic()
                self._expired += self._queue.expire(now)
                seconds = self._closes_in(now)
                if seconds <= 0:
                    return self._take()
                expired, self._expired = self._expired, []
                if expired:
                    self._wake_one()  # to wait for the batch in this one's place
                elif self._closed and not self._queue.count:
                    self._work.notify_all()  # all is over for the others, too
                    return []
                else:
                    self._work.wait(None if math.isinf(seconds) else seconds)
            _refuse(expired, DeadlineExceeded("the deadline passed before the request could run"))

    def _closes_in(self, now: float) -> float:
        """Seconds until a batch may be taken: 0 for now, infinite while nothing waits or no
        instance is free. The lock is held."""
        if not self._queue.count or not self._free_instances:
            return math.inf
        if not self._max_queue_delay or self._closed:
            return 0.0
        return self._queue.first_arrival(self._max_batch_size) + self._max_queue_delay - now

    def _take(self) -> list[Request]:
        """The next batch and an instance for it. The lock is held."""
        batch = self._queue.take(self._max_batch_size)
        self._free_instances -= 1
        self._unanswered += 1
        self._wake_one()
        return batch

    def _execute(self, batch: list[Request]) -> list[Ran]:
        """What came of each request. Those of a batch that failed run again one by one, so that
        nobody fails for what another sent."""
        try:
            answers = self._run_batch(batch)
            self._seconds_per_request = answers[0].stages.seconds / len(batch)
            return [(batch, [*answers])]
        except Exception as error:
            if len(batch) == 1:
                return [(batch, [_failed(error)])]
            why = repr(error)
        runs = [ran for request in batch for ran in self._execute_again(request)]
        if not any(isinstance(outcome, ModelFailed) for _, (outcome,) in runs):
            count = len(batch)
            log.warning(
                "%s: %d requests failed together, none by itself: %s", self._name, count, why
            )
        return runs

    def _run_batch(self, batch: list[Request]) -> list[Answer]:
        """Each one's answer, from a run over a set of buffers that nobody else has meanwhile."""
        try:
            buffers = self._buffers.pop()  # atomic
        except IndexError:
            return run_batch(self._run, batch, self._buckets)
        try:
            return run_batch(self._run, batch, self._buckets, buffers)
        finally:
            self._buffers.append(buffers)

    def _execute_again(self, request: Request) -> list[Ran]:
        if request.settled:
            return []
        if request.deadline <= time.monotonic():
            return [([request], [DeadlineExceeded("the deadline passed while its batch failed")])]
        return self._execute([request])

    def _hand_out(self, requests: list[Request], outcomes: list[Outcome]) -> None:
        """Give each request of a run its outcome, unless it was cancelled meanwhile."""
        claimed = [
            (request, complete, outcome)
            for request, outcome in zip(requests, outcomes, strict=True)
            if (complete := request.claim())
        ]
        answers = [
            outcome
            for request, _, outcome in claimed
            if isinstance(outcome, Answer) and not request.background
        ]
        if answers:
            try:
                rows = sum(request.rows for request in requests if not request.background)
                self._observe(execution(answers, rows))
            except Exception:  # the answers are good all the same
                log.exception("a batch could not be observed")
        for _, complete, outcome in claimed:
            tell(complete, outcome)


def _failed(error: Exception) -> ModelFailed:
    """For whoever answers the request to log, who knows more of it.

    A function of its own: the error's frames must not hold what holds the error, and with it the
    inputs, until the garbage collector comes.
    """
    failed = ModelFailed("the model failed; the server's log says why")
    failed.__cause__ = error
    return failed


def _refuse(requests: Sequence[Request], error: ServingError) -> None:
    """Fail those that nobody else has completed. No lock may be held: a caller may take others."""
    for request in requests:
        if complete := request.claim():
            tell(complete, error)
