"""Admission: how many requests are inside the server; refuses those beyond what it has room for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import QueueFull


class Admission:
    """Counts requests in flight, at most `limit`, and tells when there are none.

    Without it, requests beyond the thread pool would wait in front of it, unseen and unbounded,
    and health checks behind them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._changed = threading.Condition()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Inside for the length of the block; QueueFull at once where there is no room."""
        with self._changed:
            if self._inside >= self._limit:
                raise QueueFull(f"{self._limit} requests are already in flight")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def wait_until_idle(self, timeout: float) -> bool:
        """Whether no request is in flight any more, after at most `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._inside, timeout)
