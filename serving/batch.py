"""What the batcher deals in: requests, their answers, and arrays stacked and split by rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.errors import InvalidInput, RequestCancelled, ServingError

Tensors = dict[str, NDArray[np.generic]]


class Stages(NamedTuple):
    """What one batch cost; durations in seconds, `rows` without those added to fill a bucket."""

    rows: int
    compute_input_seconds: float
    compute_infer_seconds: float
    compute_output_seconds: float


class Answer(NamedTuple):
    """A request's own rows of the outputs, what it waited for its batch, and what that cost."""

    outputs: Tensors
    queue_seconds: float
    request_seconds: float  # from arrival
    stages: Stages


Outcome = Answer | ServingError
Complete = Callable[[Outcome], None]


class Request:
    """Inputs with the same number of rows each, and what to call, once, with the outcome.

    `arrived`, now where it is not given, and `deadline` are absolute time.monotonic; `priority` is
    0 for the level that runs first.
    `complete` must not raise, and must not wait: it runs on a thread that runs batches.
    """

    __slots__ = ("_complete", "arrived", "cancelled", "deadline", "inputs", "priority", "rows")

    def __init__(
        self,
        inputs: Tensors,
        complete: Complete,
        *,
        deadline: float = math.inf,
        priority: int = 0,
        arrived: float | None = None,
    ) -> None:
        self.inputs = inputs
        self.rows = _rows(inputs)
        self.deadline = deadline
        self.priority = priority
        self.cancelled = False
        self.arrived = time.monotonic() if arrived is None else arrived
        self._complete = [complete]

    def claim(self) -> Complete | None:
        """The right to complete the request: whoever asks first has it, all others get None."""
        try:
            return self._complete.pop()  # atomic
        except IndexError:
            return None

    def finish(self, outcome: Outcome) -> None:
        """Complete the request unless somebody else has, or will."""
        if complete := self.claim():
            complete(outcome)

    def cancel(self) -> None:
        """The caller went away: this completes it, and it is not run unless it runs already."""
        self.cancelled = True
        self.finish(RequestCancelled("the request was cancelled"))

    def abandoned(self, now: float) -> bool:
        """Nobody waits for the answer any more."""
        return self.cancelled or now >= self.deadline

    def joins(self, other: Request) -> bool:
        """The inputs can be stacked on the other's: they differ in rows only."""
        return all(self.inputs[n].shape[1:] == array.shape[1:] for n, array in other.inputs.items())


def _rows(inputs: Tensors) -> int:
    rows = {name: len(array) for name, array in inputs.items()}
    if len(set(rows.values())) != 1:
        listed = ", ".join(f"{name!r} has {count}" for name, count in rows.items())
        raise InvalidInput(f"inputs must have the same number of rows: {listed}")
    return next(iter(rows.values()))


def padded(rows: int, buckets: Sequence[int]) -> int:
    """Rows of the smallest bucket that holds so many; as many where none does."""
    return next((size for size in buckets if size >= rows), rows)


def stack(batch: list[Request], rows: int) -> Tensors:
    """The inputs of all, one below the other, then zeros up to `rows`."""
    first = batch[0].inputs
    if len(batch) == 1 and batch[0].rows == rows:
        return first
    stacked = {}
    for name, array in first.items():
        parts = [request.inputs[name] for request in batch]
        missing = rows - sum(map(len, parts))
        if missing:
            parts.append(_blank((missing, *array.shape[1:]), array.dtype))
        stacked[name] = np.concatenate(parts)
    return stacked


def _blank(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    return np.full(shape, "", dtype) if dtype.hasobject else np.zeros(shape, dtype)


def split(outputs: Tensors, batch: list[Request], rows: int) -> list[Tensors]:
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
