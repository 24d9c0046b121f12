"""What the batcher deals in: requests, and a batch of them run, timed and split into answers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.errors import InvalidInput, RequestCancelled, ServingError
from serving.execution import Execution

SHORTEST_RETRY = 0.01  # seconds after which a refused caller may try again, at least

Tensors = dict[str, NDArray[np.generic]]


class Stages(NamedTuple):
    """What one batch cost; durations in seconds, `rows` without those added to fill a bucket."""

    rows: int
    compute_input_seconds: float
    compute_infer_seconds: float
    compute_output_seconds: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute_input_seconds + self.compute_infer_seconds + self.compute_output_seconds


class Answer(NamedTuple):
    """A request's own rows of the outputs, what it waited for its batch, and what that cost."""

    outputs: Tensors
    queue_seconds: float
    request_seconds: float  # from arrival
    stages: Stages


Outcome = Answer | ServingError
Complete = Callable[[Outcome], None]
Run = Callable[[Tensors], Tensors]

log = logging.getLogger(__name__)


class Request:
    """Inputs with the same number of rows each, and what to call, once, with the outcome.

    `arrived`, now where it is not given, and `deadline` are absolute time.monotonic; `priority` is
    0 for the level that runs first. A `background` request is the server's own: it goes after those
    of every level, takes no caller's place in the queue, and is not counted.
    `complete` must not raise, and must not wait: it runs on a thread that runs batches.
    """

    __slots__ = (
        "_complete", "arrived", "background", "deadline", "inputs", "priority", "rows", "shapes",
        "withdraw",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Tensors,
        complete: Complete,
        *,
        deadline: float = math.inf,
        priority: int = 0,
        arrived: float | None = None,
        background: bool = False,
    ) -> None:
        self.inputs = inputs
        self.rows = _rows(inputs)
        # Of one row, by input: requests with equal ones can be stacked.
        self.shapes = {name: array.shape[1:] for name, array in inputs.items()}
        self.deadline = deadline
        self.priority = priority
        self.background = background
        self.arrived = time.monotonic() if arrived is None else arrived
        self.withdraw: Callable[[Request], None] = _nowhere  # for whoever queues it to set
        # Or what pops as this list does: the lane puts that in its place, for threads of its own.
        self._complete = [complete]

    @property
    def settled(self) -> bool:
        """Somebody has completed the request, or is about to."""
        return not self._complete

    def claim(self) -> Complete | None:
        """The right to complete the request: whoever asks first has it, all others get None."""
        try:
            return self._complete.pop()  # atomic
        except IndexError:
            return None

    def cancel(self) -> None:
        """The caller went away: this completes it, and it is not run unless it runs already."""
        if complete := self.claim():
            self.withdraw(self)
            complete(RequestCancelled("the request was cancelled"))


class Batcher(Protocol):
    """Runs requests together: DynamicBatcher, and the lane's NativeBatcher, under one contract."""

    @property
    def pending(self) -> int:
        """Callers' requests that wait to be taken into a batch."""

    def submit(self, request: Request) -> None:
        """Queue it; raises InvalidInput, QueueFull or BatcherClosed, and then does not complete
        it."""

    def close(self, timeout: float) -> bool:
        """Take nothing more, let what is queued or runs finish; whether all did in time."""


def tell(complete: Complete, outcome: Outcome) -> None:
    """Hand out an outcome. What the callback raises is logged: the thread must live, since others
    wait for their answers."""
    try:
        complete(outcome)
    except Exception:
        log.exception("an outcome could not be handed out")


def _nowhere(request: Request) -> None:
    """Withdraws what nobody has queued."""


def _rows(inputs: Tensors) -> int:
    rows = len(next(iter(inputs.values()), ()))
    for array in inputs.values():
        if len(array) != rows:
            listed = ", ".join(f"{name!r} has {len(each)}" for name, each in inputs.items())
            raise InvalidInput(f"inputs must have the same number of rows: {listed}")
    return rows


def run_batch(
    run: Run, batch: Sequence[Request], buckets: Sequence[int], buffers: Tensors | None = None
) -> list[Answer]:
    """Each request's answer, from one run of all, stacked in the buffers where it fits; raises what
    `run` does, or ValueError where it gives another number of rows than it got."""
    started = time.monotonic()
    rows = sum(request.rows for request in batch)
    size = padded(rows, buckets)
    inputs = stack(batch, size, buffers)
    stacked = time.monotonic()
    outputs = run(inputs)
    ran = time.monotonic()
    parts = split(outputs, batch, size)
    done = time.monotonic()
    stages = Stages(rows, stacked - started, ran - stacked, done - ran)
    return [
        Answer(part, started - request.arrived, done - request.arrived, stages)
        for request, part in zip(batch, parts, strict=True)
    ]


def execution(answers: Sequence[Answer], rows: int) -> Execution:
    """What a batch with so many callers' rows cost, from the answers that callers get."""
    stages = answers[0].stages
    return Execution(
        rows=rows,
        request_rows=[len(next(iter(answer.outputs.values()))) for answer in answers],
        queue_seconds=[answer.queue_seconds for answer in answers],
        request_seconds=[answer.request_seconds for answer in answers],
        compute_input_seconds=stages.compute_input_seconds,
        compute_infer_seconds=stages.compute_infer_seconds,
        compute_output_seconds=stages.compute_output_seconds,
    )


def padded(rows: int, buckets: Sequence[int]) -> int:
    """Rows of the smallest bucket that holds so many; as many where none does."""
    return next((size for size in buckets if size >= rows), rows)


def stack(batch: Sequence[Request], rows: int, buffers: Tensors | None = None) -> Tensors:
    """The inputs of all, one below the other, then zeros up to `rows`; in the first rows of the
    buffers where those are as many, of the same shapes and types."""
    first = batch[0]
    room = _room(buffers, first.inputs, rows) if buffers else {}
    if len(batch) == 1 and first.rows == rows and not room:
        return first.inputs
    missing = rows - sum(request.rows for request in batch)
    stacked = {}
    for name, array in first.inputs.items():
        parts = [request.inputs[name] for request in batch]
        if missing:
            parts.append(_blank((missing, *array.shape[1:]), array.dtype))
        stacked[name] = np.concatenate(parts, out=room.get(name))
    return stacked


def _room(buffers: Tensors, inputs: Tensors, rows: int) -> Tensors:
    """So many rows of the buffers; none where they are not for such inputs, or not for so many."""
    fit = buffers.keys() == inputs.keys() and all(
        (array.dtype, array.shape[1:]) == (inputs[name].dtype, inputs[name].shape[1:])
        and len(array) >= rows
        for name, array in buffers.items()
    )
    return {name: array[:rows] for name, array in buffers.items()} if fit else {}


def _blank(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    return np.full(shape, "", dtype) if dtype.hasobject else np.zeros(shape, dtype)


def split(outputs: Tensors, batch: Sequence[Request], rows: int) -> list[Tensors]:
    """Each request's own rows; ValueError unless there are as many as went in."""
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise ValueError(f"output {name!r} has shape {array.shape}, expected {rows} rows")
    parts, start = [], 0
    for request in batch:
        stop = start + request.rows
        parts.append({name: array[start:stop] for name, array in outputs.items()})
        start = stop
    return parts
