"""Threads that receive and parse requests: few while all goes well, more where callers send slowly.

A few threads do the work of one core, and each more that takes part costs throughput (measured: a
tenth from 8 to 32). But each waits until its caller has sent the whole request, and a few callers
that never do must not keep the others out.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")
_Task = Callable[[], None]

# Seconds without any progress after which one more thread is started.
STUCK = 0.05


class ReceivingPool(ThreadPoolExecutor):
    """An executor of `few` threads, and of up to `many` while none of them gets on.

    It is a ThreadPoolExecutor because grpcio asks for one; the threads are its own. The one that
    became idle last is taken first.
    """

    def __init__(self, few: int, many: int, name: str) -> None:
        super().__init__(1)  # never used
        self._few = few
        self._many = many
        self._name = name
        self._guard = threading.Lock()
        self._idle: list[SimpleQueue[_Task]] = []
        self._waiting: deque[_Task] = deque()
        self._threads_alive = 0
        self._done = 0
        self._some_wait = threading.Event()
        # To wait by; libfaketime, by which `make chaos` moves the clock, breaks time.sleep.
        self._never = threading.Event()
        threading.Thread(target=self._watch, name=f"{name}-watch", daemon=True).start()

    @property
    def running(self) -> int:
        """Tasks that have begun."""
        return self._threads_alive - len(self._idle)

    @property
    def waiting(self) -> int:
        """Tasks that no thread has taken yet."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """All the threads that there may be are taken."""
        return self.running >= self._many

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run it on the thread that became idle last, on a new one, or when one is free."""
        future = Future[Result]()

        def task() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        with self._guard:
            if self._idle:
                self._idle.pop().put(task)
            elif self._threads_alive < self._few:
                self._start(task)
            else:
                self._waiting.append(task)
                if not self._some_wait.is_set():
                    self._some_wait.set()
        return future

    def _start(self, task: _Task) -> None:
        threading.Thread(target=self._work, args=(task,), name=self._name, daemon=True).start()
        self._threads_alive += 1

    def _work(self, task: _Task) -> None:
        mailbox: SimpleQueue[_Task] = SimpleQueue()
        following: _Task | None = task
        while following:
            following()
            following = None  # it holds a whole request
            with self._guard:
                self._done += 1
                if self._waiting:
                    following = self._waiting.popleft()
                    continue
                if len(self._idle) >= self._few:
                    self._threads_alive -= 1
                    return
                self._idle.append(mailbox)
            following = mailbox.get()

    def _watch(self) -> None:
        """Start one more thread each time that tasks wait and none was done meanwhile."""
        while True:
            self._some_wait.wait()
            done = self._done
            self._never.wait(STUCK)
            with self._guard:
                if not self._waiting:
                    self._some_wait.clear()
                elif self._done == done and self._threads_alive < self._many:
                    self._start(self._waiting.popleft())
