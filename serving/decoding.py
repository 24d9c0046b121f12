"""Decoding: a few threads that make images into digits, for whichever transport they came by.

Pillow lets others run while it decodes, but a picture takes memory and time: so many at a time, and
so many more that wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from serving.errors import Draining, Overloaded

# At the same time. The largest picture takes about 150 MB for a moment.
DECODING_THREADS = 2
# Requests that may wait for one of them.
MOST_WAITING = 64
# Seconds after which it is worth trying again.
RETRY = 0.1

Result = TypeVar("Result")


class Decoding:
    """Runs what takes long for one request, on threads of its own."""

    def __init__(self, threads: int = DECODING_THREADS, waiting: int = MOST_WAITING) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._limit = threads + waiting
        self._lock = threading.Lock()
        self._inside = 0

    @property
    def inside(self) -> int:
        """Requests that wait for a thread or are on one."""
        return self._inside

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Have it done; Overloaded where as many wait as may. A future that is cancelled while it
        waits gives its place to another."""
        with self._lock:
            if self._inside >= self._limit:
                raise Overloaded("too many images wait to be decoded", RETRY)
            self._inside += 1
        try:
            future = self._pool.submit(self._run, work)
        except RuntimeError:  # after `close`
            self._leave()
            raise Draining("the server is stopping") from None
        future.add_done_callback(self._done)
        return future

    def close(self) -> None:
        """What waits is cancelled, and what is on a thread goes on: it ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        finally:
            self._leave()

    def _done(self, future: Future[Any]) -> None:
        if future.cancelled():  # it never came to `_run`
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
