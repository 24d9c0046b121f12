"""One worker process of several: an inference server that a supervisor starts, tells and stops."""

from __future__ import annotations

import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

from serving import logs
from serving.changes import GroupAdmin
from serving.errors import ServingError, StartupError
from serving.messages import (
    Change,
    Do,
    Done,
    Failed,
    GroupReady,
    Listening,
    Order,
    Ready,
    Stop,
    Told,
)
from serving.processes import collect_less_often
from serving.server import InferenceServer

log = logging.getLogger("serving.worker")


class _Worker:
    def __init__(self, order: Order, connection: Connection) -> None:
        self._order = order
        self._connection = connection
        self._group_ready = order.group_ready
        self._group = GroupAdmin(connection)
        self._server = InferenceServer(
            order.config,
            order.counters,
            order.feedback_keys,
            worker=order.number,
            admin_of=lambda admin: self._group,
            group_ready=lambda: self._group_ready,
        )
        # One thread: changes are made in their order, after the models were loaded.
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="changes")

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
    logs.configure(order.config.log_level, order.config.log_format, order.number)
    collect_less_often()
    stop, stopping = os.pipe()
    os.set_blocking(stopping, False)
    # Written to by Python at once, whichever thread the signal came to; a handler would have to
    # wait until this thread runs.
    signal.set_wakeup_fd(stopping, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for the supervisor
    try:
        _Worker(order, connection).serve(stop)
    except StartupError as error:
        connection.send(Failed(str(error)))
    except Exception:  # multiprocessing would print it, beside the log
        log.exception("unexpected error")
        sys.exit(1)
