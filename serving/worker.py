"""One worker process of several: an inference server that a supervisor starts, tells and stops.

Owns the messages that the two exchange.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from serving import logs
from serving.admin import Admin, ProcessAdmin
from serving.config import ServerConfig
from serving.errors import ModelNotReady, ServingError, StartupError
from serving.server import InferenceServer

log = logging.getLogger("serving.worker")


@dataclass(frozen=True, slots=True)
class Change:
    """A method of Admin and its arguments; a later one with the same key takes its place."""

    method: str
    arguments: tuple[Any, ...]
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is started with. A replacement listens when it is ready, and not before."""

    config: ServerConfig
    counters: Path
    number: int
    replacement: bool
    journal: tuple[Change, ...]  # what was changed since the server started
    group_ready: bool


@dataclass(frozen=True, slots=True)
class Listening:
    """Worker: it answers, and loads its models now."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Worker: it cannot start."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker: its models are loaded."""


@dataclass(frozen=True, slots=True)
class Do:
    """Worker: have all workers make a change. Supervisor: make it."""

    number: int
    change: Change


@dataclass(frozen=True, slots=True)
class Done:
    """Worker: it has made the change, or failed to."""

    number: int
    error: Exception | None


@dataclass(frozen=True, slots=True)
class Told:
    """Supervisor: all workers have made the change, or one failed to."""

    number: int
    error: Exception | None


@dataclass(frozen=True, slots=True)
class GroupReady:
    """Supervisor: all workers are ready."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Supervisor: drain, and end."""


class GroupAdmin:
    """Changes all workers: each call asks the supervisor and waits until every one has done it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._asked: dict[int, Future[None]] = {}
        self._over = False

    def load(self, name: str) -> None:
        """Load a model in all workers."""
        self._ask(Change("load", (name,), ("model", name)))

    def unload(self, name: str) -> None:
        """Unload a model in all workers."""
        self._ask(Change("unload", (name,), ("model", name)))

    def change_logs(self, changes: logs.Changes) -> None:
        """Log more or less in all workers."""
        self._ask(Change("change_logs", (dict(changes),), ("logs", *sorted(changes))))

    def change_trace(self, settings: Mapping[str, tuple[str, ...]], model: str) -> None:
        """Trace more or less in all workers."""
        key = ("trace", model, *sorted(settings))
        self._ask(Change("change_trace", (dict(settings), model), key))

    def send(self, message: object) -> None:
        """Send to the supervisor; from any thread."""
        with self._sending:
            self._connection.send(message)

    def told(self, message: Told) -> None:
        """The supervisor says how a change went."""
        future = self._asked.pop(message.number, None)
        if future is None:  # it was told at the end already
            return
        if message.error:
            future.set_exception(message.error)
        else:
            future.set_result(None)

    def end(self) -> None:
        """Nobody listens any more: let nobody wait for an answer, or this process could not end."""
        with self._sending:
            self._over = True
        for number in list(self._asked):
            self.told(Told(number, _stopping()))

    def _ask(self, change: Change) -> None:
        number, future = next(self._numbers), Future[None]()
        with self._sending:
            if self._over:
                raise _stopping()
            self._asked[number] = future
            self._connection.send(Do(number, change))
        future.result()


def _stopping() -> ModelNotReady:
    return ModelNotReady("the server is stopping")


class _Worker:
    def __init__(self, order: Order, connection: Connection) -> None:
        self._order = order
        self._connection = connection
        self._group_ready = order.group_ready
        self._group = GroupAdmin(connection)
        self._server = InferenceServer(
            order.config,
            order.counters,
            worker=order.number,
            admin_of=self._admin_of,
            group_ready=lambda: self._group_ready,
        )
        # One thread: changes are made in their order, after the models were loaded.
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="changes")

    def _admin_of(self, admin: ProcessAdmin) -> Admin:
        return self._group

    def serve(self, stop: int) -> None:
        """Until the supervisor says so or is gone, or something can be read from `stop`."""
        if not self._order.replacement:
            self._server.listen()
            self._group.send(Listening())
        self._server.load()
        self._changes.submit(self._begin)
        while self._hear(wait([self._connection, stop])):
            pass
        self._group.end()
        self._server.stop()

    def _begin(self) -> None:
        """Come to where the others are, then say so, or that it cannot be."""
        try:
            self._server.wait_until_loaded()
            for change in self._order.journal:
                self._make(change)
            if self._order.replacement:
                self._server.listen()
        except Exception as error:  # nobody looks at what this thread raises
            log.exception("the worker cannot begin")
            self._group.send(Failed(f"{type(error).__name__}: {error}"))
        else:
            self._group.send(Ready())

    def _hear(self, ready: list[Any]) -> bool:
        """Act on a message; false where it is time to stop."""
        if self._connection not in ready:
            return False
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            log.error("the supervisor is gone")
            return False
        if isinstance(message, Do):
            self._changes.submit(self._do, message)
        elif isinstance(message, Told):
            self._group.told(message)
        elif isinstance(message, GroupReady):
            self._group_ready = True
            self._server.report_readiness()
        return not isinstance(message, Stop)

    def _do(self, order: Do) -> None:
        self._group.send(Done(order.number, self._make(order.change)))

    def _make(self, change: Change) -> Exception | None:
        """What the asker is to get: a ServingError as it is, of others only that there was one."""
        try:
            getattr(self._server.admin, change.method)(*change.arguments)
        except ServingError as error:
            return error
        except Exception as error:  # not every one survives the way to another process
            log.exception("a change failed")
            return RuntimeError(f"{type(error).__name__} in worker {self._order.number}")
        return None


def run(order: Order, connection: Connection) -> None:
    """The process: serve until told to stop, or until SIGTERM."""
    logs.configure(order.config.log_level, order.number)
    stop, stopping = os.pipe()

    def terminate(number: int, frame: FrameType | None) -> None:
        os.write(stopping, b"x")

    signal.signal(signal.SIGTERM, terminate)
    try:
        _Worker(order, connection).serve(stop)
    except StartupError as error:
        connection.send(Failed(str(error)))
