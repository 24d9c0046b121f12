"""RequestQueue: who waits, and in which order they go. It takes no lock: the batcher holds one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import chain

from serving.batch import Request


class RequestQueue:
    """Requests by priority, and within a level by who came first; background ones after all.

    `count` requests with `rows` rows in all wait here; `counted` is told how many of them are no
    background ones, whenever any come or go. Nobody is overtaken by one of his level or of a later
    one: who does not fit into a batch is the first of the next.
    """

    __slots__ = (
        "_background", "_counted", "_earliest_deadline", "_levels", "_newest_shapes", "_waiting",
        "count", "rows",
    )  # fmt: skip

    def __init__(self, levels: int, counted: Callable[[int], None] = lambda count: None) -> None:
        self._counted = counted
        self.count = 0
        self.rows = 0
        self._levels: list[deque[Request]] = [deque() for _ in range(levels)]
        self._background: deque[Request] = deque()
        self._waiting = (*self._levels, self._background)  # in the order in which they go
        self._earliest_deadline = math.inf  # nothing here expires before
        self._newest_shapes: dict[str, tuple[int, ...]] = {}

    @property
    def callers(self) -> int:
        """How many wait that are no background requests."""
        return self.count - len(self._background)

    def append(self, request: Request) -> None:
        """Put it behind the others of its priority; IndexError where there is no such level."""
        self._level_of(request).append(request)
        self.count += 1
        self._counted(self.callers)
        self.rows += request.rows
        self._newest_shapes = request.shapes
        if request.deadline < self._earliest_deadline:
            self._earliest_deadline = request.deadline

    def discard(self, request: Request) -> None:
        """Take it out, if it is here."""
        with suppress(ValueError):
            self._level_of(request).remove(request)
            self.count -= 1
            self._counted(self.callers)
            self.rows -= request.rows

    def expire(self, now: float) -> list[Request]:
        """Take out those whose deadline has passed."""
        if now < self._earliest_deadline:
            return []
        expired = [request for request in chain(*self._waiting) if request.deadline <= now]
        for request in expired:
            self.discard(request)
        deadlines = (request.deadline for request in chain(*self._waiting))
        self._earliest_deadline = min(deadlines, default=math.inf)
        return expired

    def closes_batch(self, request: Request, max_rows: int) -> bool:
        """Whether with this one more, a batch of those that wait could grow no further."""
        return self.rows + request.rows >= max_rows or (
            self.count > 0 and request.shapes != self._newest_shapes
        )

    def first_arrival(self, max_rows: int) -> float:
        """When the first came; -inf where a batch of those that wait can grow no further."""
        waiting = [*chain(*self._waiting)]
        if self.rows >= max_rows or any(r.shapes != waiting[0].shapes for r in waiting):
            return -math.inf
        return min(request.arrived for request in waiting)

    def take(self, max_rows: int) -> list[Request]:
        """Take out the first, and those after it that fit into a batch of so many rows."""
        batch: list[Request] = []
        rows = 0
        for level in self._waiting:
            while level:
                request = level[0]
                fits = rows + request.rows <= max_rows
                if batch and not (fits and request.shapes == batch[0].shapes):
                    return self._taken(batch, rows)
                batch.append(level.popleft())
                rows += request.rows
        return self._taken(batch, rows)

    def take_all(self) -> list[Request]:
        """Take out all that wait."""
        waiting = [*chain(*self._waiting)]
        for level in self._waiting:
            level.clear()
        return self._taken(waiting, self.rows)

    def _level_of(self, request: Request) -> deque[Request]:
        return self._background if request.background else self._levels[request.priority]

    def _taken(self, requests: list[Request], rows: int) -> list[Request]:
        self.count -= len(requests)
        self._counted(self.callers)
        self.rows -= rows
        return requests
