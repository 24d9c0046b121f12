"""DynamicBatcher: requests that arrive together run together. No model, transport or metric here.

It owns the queue and the threads that run batches, and completes each request exactly once, with
its answer or with its error. Nobody waits here: callers hand in a callback.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby

from serving.batch import (
    Answer,
    Outcome,
    Request,
    Stages,
    Tensors,
    padded,
    split,
    stack,
)
from serving.errors import (
    BatcherClosed,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    QueueFull,
)
from serving.execution import Execution

Run = Callable[[Tensors], Tensors]
Observe = Callable[[Execution], None]

_SHORTEST_RETRY = 0.01  # seconds

log = logging.getLogger(__name__)


class DynamicBatcher:
    """Groups requests into batches and runs at most `instance_count` of them at the same time.

    A batch is closed at `max_batch_size` rows or `max_queue_delay` seconds after its first request;
    without a delay, the moment an instance is free. Lower `priority` numbers go first. With
    `buckets`, a batch is filled up with rows of zeros to the next of these sizes. `run` maps
    stacked inputs to outputs with as many rows; `observe` is told of each batch before its answers
    go out.
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
        name: str = "batcher",
    ) -> None:
        self._run = run
        self._observe = observe
        self._max_batch_size = max_batch_size
        self._max_queue_delay = max_queue_delay
        self._max_queue_size = max_queue_size
        self._buckets = sorted(buckets)
        self._queues: list[deque[Request]] = [deque() for _ in range(priority_levels)]
        self._queued = 0
        self._inside = 0  # queued, running or being answered
        self._free_instances = instance_count
        self._batch_seconds = 0.0  # what the last batch took
        self._closed = False
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)  # or an instance became free
        self._emptied = threading.Condition(self._lock)
        # One more than there are instances: while one gives out its answers, the next batch runs.
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(instance_count + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Requests that wait to be taken into a batch."""
        return self._queued

    def submit(self, request: Request) -> None:
        """Queue the request; it will be completed once, on another thread.

        Raises InvalidInput, QueueFull or BatcherClosed, and then does not complete it.
        """
        if request.rows > self._max_batch_size:
            raise InvalidInput(
                f"the request has {request.rows} rows, at most {self._max_batch_size} are allowed"
            )
        if self._queued >= self._max_queue_size:
            self._make_room()
        with self._lock:
            if self._closed:
                raise BatcherClosed("the version is being unloaded")
            if self._queued >= self._max_queue_size:
                raise self._full()
            self._queues[request.priority].append(request)
            self._queued += 1
            self._inside += 1
            if self._free_instances:
                self._arrived.notify()

    def close(self, timeout: float) -> bool:
        """Take nothing more, let what is inside finish, end the threads; whether all did in time.

        What is still queued after `timeout` seconds fails.
        """
        end = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            self._arrived.notify_all()
            finished = self._emptied.wait_for(lambda: not self._inside, timeout)
            left = self._remove(lambda request: True)
            self._arrived.notify_all()
        for request in left:
            request.finish(ModelFailed("the model was unloaded before the request could run"))
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return finished

    def _full(self) -> QueueFull:
        """Try again when half of the queue will have run, if batches go on taking that long."""
        batches = max(1, self._queued // (2 * self._max_batch_size))
        return QueueFull(
            f"{self._max_queue_size} requests are already waiting",
            max(_SHORTEST_RETRY, batches * self._batch_seconds),
        )

    def _make_room(self) -> None:
        """Drop what was abandoned from a full queue."""
        now = time.monotonic()
        with self._lock:
            dropped = self._remove(lambda request: request.abandoned(now))
        _expire(dropped)

    def _remove(self, wanted: Callable[[Request], bool]) -> list[Request]:
        """Take out of the queues whatever is wanted. The lock is held."""
        removed = [request for queue in self._queues for request in queue if wanted(request)]
        if removed:
            gone = set(map(id, removed))
            self._queues = [deque(r for r in queue if id(r) not in gone) for queue in self._queues]
            self._queued -= len(removed)
            self._leave(len(removed))
        return removed

    def _leave(self, count: int) -> None:
        """So many requests are no longer inside. The lock is held."""
        self._inside -= count
        if not self._inside:
            self._emptied.notify_all()

    def _work(self) -> None:
        """Run batches, one after the other, until the batcher is closed and empty."""
        while batch := self._next():
            outcomes = self._execute(batch)
            with self._lock:
                self._free_instances += 1
                if self._queued:
                    self._arrived.notify()
            try:
                self._hand_out(batch, outcomes)
            except Exception:  # the thread must live: others wait for their batches
                log.exception("an answer could not be handed out")
            with self._lock:
                self._leave(len(batch))

    def _next(self) -> list[Request]:
        """Wait for an instance and a batch and take both; an empty batch when all is over."""
        while True:
            with self._lock:
                while (seconds := self._closes_in()) > 0 and not self._over():
                    self._arrived.wait(None if math.isinf(seconds) else seconds)
                if self._over():
                    self._arrived.notify_all()  # the other threads are over, too
                    return []
                batch, dropped = self._take(time.monotonic())
                if batch:
                    self._free_instances -= 1
                    if self._queued and self._free_instances:
                        self._arrived.notify()
            _expire(dropped)
            if batch:
                return batch

    def _over(self) -> bool:
        return self._closed and not self._queued

    def _closes_in(self) -> float:
        """Seconds until a batch may be taken: 0 for now, infinite while nothing waits or no
        instance is free. The lock is held."""
        if not self._queued or not self._free_instances:
            return math.inf
        if not self._max_queue_delay or self._closed:
            return 0.0
        now = time.monotonic()
        batch = list(self._fitting(now))
        waiting = sum(not r.abandoned(now) for queue in self._queues for r in queue)
        full = sum(request.rows for request in batch) >= self._max_batch_size
        if not batch or full or len(batch) < waiting:
            return 0.0
        return min(request.arrived for request in batch) + self._max_queue_delay - now

    def _fitting(self, now: float) -> Iterator[Request]:
        """Those that make up the next batch; who does not fit waits his turn. The lock is held."""
        first: Request | None = None
        rows = 0
        for request in chain(*self._queues):
            if request.abandoned(now):
                continue
            first = first or request
            rows += request.rows
            if rows > self._max_batch_size or not request.joins(first):
                return
            yield request

    def _take(self, now: float) -> tuple[list[Request], list[Request]]:
        """The next batch, and what was abandoned in front of it, off the queues. The lock is
        held."""
        batch = list(self._fitting(now))
        chosen = set(map(id, batch))
        dropped = []
        for queue in self._queues:
            while queue and (id(queue[0]) in chosen or queue[0].abandoned(now)):
                request = queue.popleft()
                if id(request) not in chosen:
                    dropped.append(request)
        self._queued -= len(batch) + len(dropped)
        self._leave(len(dropped))
        return batch, dropped

    def _execute(self, batch: list[Request]) -> list[Outcome]:
        """The outcome of each request. Those of a batch that failed run again one by one, so that
        nobody fails for what another sent."""
        try:
            return [*self._answers(batch)]
        except Exception:
            log.exception("a batch of %d requests failed", len(batch))
        if len(batch) == 1:
            return [ModelFailed("the model failed; the server's log says why")]
        return [outcome for request in batch for outcome in self._execute([request])]

    def _answers(self, batch: list[Request]) -> list[Answer]:
        started = time.monotonic()
        rows = sum(request.rows for request in batch)
        size = padded(rows, self._buckets)
        inputs = stack(batch, size)
        stacked = time.monotonic()
        outputs = self._run(inputs)
        ran = time.monotonic()
        parts = split(outputs, batch, size)
        done = time.monotonic()
        self._batch_seconds = done - started
        stages = Stages(rows, stacked - started, ran - stacked, done - ran)
        return [
            Answer(part, started - request.arrived, done - request.arrived, stages)
            for request, part in zip(batch, parts, strict=True)
        ]

    def _hand_out(self, batch: list[Request], outcomes: list[Outcome]) -> None:
        """Give each request its outcome, unless it was cancelled meanwhile."""
        claimed = [
            (complete, outcome)
            for request, outcome in zip(batch, outcomes, strict=True)
            if (complete := request.claim())
        ]
        answers = [outcome for _, outcome in claimed if isinstance(outcome, Answer)]
        for stages, group in groupby(answers, key=lambda answer: answer.stages):
            self._observe(_execution(stages, list(group)))
        for complete, outcome in claimed:
            complete(outcome)


def _execution(stages: Stages, answers: Sequence[Answer]) -> Execution:
    return Execution(
        rows=stages.rows,
        queue_seconds=[answer.queue_seconds for answer in answers],
        request_seconds=[answer.request_seconds for answer in answers],
        compute_input_seconds=stages.compute_input_seconds,
        compute_infer_seconds=stages.compute_infer_seconds,
        compute_output_seconds=stages.compute_output_seconds,
    )


def _expire(requests: Sequence[Request]) -> None:
    """Tell abandoned ones so. No lock may be held: completing a request may take others."""
    for request in requests:
        request.finish(DeadlineExceeded("the deadline passed before the request could run"))
