"""DynamicBatcher: requests that arrive together run together. No model, transport or metric here.

It owns no thread: of the callers that wait for answers, the batcher appoints one per free instance
to run the next batch. An uncontended request so runs on its caller's thread without a hand-off.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    QueueFull,
    RequestCancelled,
    ServingError,
)

Tensors = dict[str, NDArray[np.generic]]
Run = Callable[[Tensors], Tensors]
Observe = Callable[[list["Request"], float, float], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A request's own rows of the outputs, and what it cost; durations in seconds."""

    outputs: Tensors
    queue_seconds: float
    compute_seconds: float
    batch_rows: int


class Lead:
    """Tells a waiting caller that it is to run the next batch."""


LEAD = Lead()


class Request:
    """Inputs with the same number of rows each, and an absolute `time.monotonic` deadline."""

    def __init__(self, inputs: Tensors, deadline: float = math.inf) -> None:
        self.inputs = inputs
        self.rows = _rows(inputs)
        self.deadline = deadline
        self.cancelled = False
        self.leading = False
        self.queued_at = 0.0
        self._mailbox: queue.SimpleQueue[Lead | Answer | ServingError] = queue.SimpleQueue()

    def cancel(self) -> None:
        """The caller went away: whoever waits for the answer gets RequestCancelled."""
        self.cancelled = True
        self.tell(RequestCancelled("the request was cancelled"))

    def tell(self, message: Lead | Answer | ServingError) -> None:
        """Wake the caller that waits for this request; a message too many is never read."""
        self._mailbox.put(message)

    def wait(self) -> Lead | Answer | ServingError:
        """The next message, or DeadlineExceeded at the deadline."""
        remaining = max(0.0, self.deadline - time.monotonic())
        try:
            return self._mailbox.get(timeout=min(remaining, threading.TIMEOUT_MAX))
        except queue.Empty:
            return DeadlineExceeded("the deadline passed before the answer was there")

    def abandoned(self, now: float) -> bool:
        """Nobody waits for the answer any more."""
        return self.cancelled or now >= self.deadline

    def joins(self, other: Request) -> bool:
        """The inputs can be stacked on the other's: they differ in rows only."""
        return all(self.inputs[n].shape[1:] == array.shape[1:] for n, array in other.inputs.items())


class DynamicBatcher:
    """Groups requests into batches and runs at most `instance_count` of them at the same time.

    A batch is closed at `max_batch_size` rows or `max_queue_delay` seconds after its first request;
    without a delay, the moment an instance is free. `run` maps stacked inputs to outputs with as
    many rows; `observe` is told each batch, when it began by the monotonic clock, and the seconds
    that it took, before its answers go out.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch_size: int,
        max_queue_delay: float = 0.0,
        max_queue_size: int = 256,
        instance_count: int = 1,
        observe: Observe = lambda batch, started, seconds: None,
    ) -> None:
        self._run = run
        self._observe = observe
        self._max_batch_size = max_batch_size
        self._max_queue_delay = max_queue_delay
        self._max_queue_size = max_queue_size
        self._queue: deque[Request] = deque()
        self._free_instances = instance_count
        self._collecting = False  # a leader was appointed and has not yet taken its batch
        self._lock = threading.Lock()
        self._arrival = threading.Condition(self._lock)

    @property
    def pending(self) -> int:
        """Requests that wait to be taken into a batch."""
        return len(self._queue)

    def infer(self, request: Request) -> Answer:
        """Wait for the request's answer, running batches meanwhile when appointed to.

        Raises InvalidInput, QueueFull, DeadlineExceeded, RequestCancelled or ModelFailed.
        """
        self._admit(request)
        while True:
            message = request.wait()
            if isinstance(message, Answer):
                return message
            if isinstance(message, ServingError):
                self._withdraw(request)
                raise message
            self._lead(request)

    def _admit(self, request: Request) -> None:
        if request.rows > self._max_batch_size:
            raise InvalidInput(
                f"the request has {request.rows} rows, at most {self._max_batch_size} are allowed"
            )
        with self._lock:
            if len(self._queue) >= self._max_queue_size:
                raise QueueFull(f"{self._max_queue_size} requests are already waiting")
            request.queued_at = time.monotonic()
            self._queue.append(request)
            self._arrival.notify()
            self._appoint()

    def _withdraw(self, request: Request) -> None:
        with self._lock:
            if request in self._queue:
                self._queue.remove(request)
            if request.leading:  # appointed, but left before it read so
                request.leading = self._collecting = False
                self._free_instances += 1
            self._appoint()

    def _appoint(self) -> None:
        """Let the first waiting caller lead if an instance is free. The lock is held."""
        if self._queue and self._free_instances and not self._collecting:
            self._free_instances -= 1
            self._collecting = True
            self._queue[0].leading = True
            self._queue[0].tell(LEAD)

    def _lead(self, request: Request) -> None:
        """Run one batch on the instance that the request's caller was appointed to."""
        batch = self._collect(request)
        try:
            if batch:
                self._execute(batch)
        finally:
            with self._lock:
                self._free_instances += 1
                self._appoint()

    def _collect(self, leader: Request) -> list[Request]:
        """Wait for the batch to close and take it off the queue."""
        with self._lock:
            while (delay := self._closes_in()) > 0:
                self._arrival.wait(delay)
            now = time.monotonic()
            batch = self._next_batch(now)
            if not batch:
                self._queue.clear()  # whatever is queued was abandoned
            while batch and self._queue.popleft() is not batch[-1]:
                pass  # abandoned ones between them are dropped
            leader.leading = self._collecting = False
            self._appoint()
            return batch

    def _closes_in(self) -> float:
        """Seconds until the batch at the head of the queue must run; 0 when it is closed."""
        if not self._max_queue_delay or not self._queue:
            return 0.0
        now = time.monotonic()
        batch = self._next_batch(now)
        waiting = sum(not request.abandoned(now) for request in self._queue)
        full = sum(request.rows for request in batch) >= self._max_batch_size
        if not batch or full or len(batch) < waiting:
            return 0.0
        return batch[0].queued_at + self._max_queue_delay - now

    def _next_batch(self, now: float) -> list[Request]:
        """The longest run of requests from the head that fits; who does not fit waits his turn."""
        batch: list[Request] = []
        rows = 0
        for request in self._queue:
            if request.abandoned(now):
                continue
            rows += request.rows
            if rows > self._max_batch_size or (batch and not request.joins(batch[0])):
                break
            batch.append(request)
        return batch

    def _execute(self, batch: list[Request]) -> None:
        """Run the batch and give each request its own rows, or each its own error."""
        started = time.monotonic()
        rows = sum(request.rows for request in batch)
        try:
            outputs = self._run(_stack(batch))
            _check_rows(outputs, rows)
            parts = _split(outputs, batch)
            seconds = time.monotonic() - started
            self._observe(batch, started, seconds)
        except Exception:
            log.exception("a batch of %d rows failed", rows)
            for request in batch:
                request.tell(ModelFailed("the model failed; the server's log says why"))
            return
        for request, own in zip(batch, parts, strict=True):
            request.tell(Answer(own, started - request.queued_at, seconds, rows))


def _rows(inputs: Tensors) -> int:
    rows = {name: len(array) for name, array in inputs.items()}
    if len(set(rows.values())) != 1:
        listed = ", ".join(f"{name!r} has {count}" for name, count in rows.items())
        raise InvalidInput(f"inputs must have the same number of rows: {listed}")
    return next(iter(rows.values()))


def _stack(batch: list[Request]) -> Tensors:
    if len(batch) == 1:
        return batch[0].inputs
    names = batch[0].inputs
    return {name: np.concatenate([request.inputs[name] for request in batch]) for name in names}


def _split(outputs: Tensors, batch: list[Request]) -> list[Tensors]:
    if len(batch) == 1:
        return [outputs]
    parts, start = [], 0
    for request in batch:
        stop = start + request.rows
        parts.append({name: array[start:stop] for name, array in outputs.items()})
        start = stop
    return parts


def _check_rows(outputs: Tensors, rows: int) -> None:
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise ValueError(f"output {name!r} has shape {array.shape}, expected {rows} rows")
