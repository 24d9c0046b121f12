"""Supervisor: several processes that serve on one port, each with all the models.

It spawns workers before any gRPC object exists, replaces those that die, carries what an
administrator changes through one worker to all of them, and serves the metrics of all.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from serving import counted_ids
from serving.addresses import address, cannot_listen, check_free
from serving.changes import Changes
from serving.config import ServerConfig
from serving.counter_directory import CounterDirectory
from serving.drift_watch import DriftWatch
from serving.errors import StartupError
from serving.messages import Do, Done, Failed, GroupReady, Order, Ready, Stop, Told
from serving.metrics import SupervisorMetrics
from serving.prediction_ids import feedback_keys
from serving.scrapes import MetricsServer
from serving.worker import run

# How long a worker that died at once is left before the next try, at most, in seconds.
LONGEST_PAUSE = 5.0
# A worker that lived that long did not die of its start; seconds.
HEALTHY = 10.0
# Beyond the drain timeout, before a worker that does not end is killed; seconds.
LAST_CHANCE = 5.0

log = logging.getLogger("serving.workers")


@dataclass(slots=True)
class _Slot:
    """One of the workers' places, and who holds it."""

    number: int
    process: BaseProcess
    connection: Connection
    started: float  # time.monotonic
    failures: int = 0  # deaths soon after the start, one after the other
    ready: bool = False
    leaving: bool = False  # it was told to end, for another to take its place


class Supervisor:
    """A server of `config.workers` processes. `start` returns when all listen; `stop` drains."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._feedback_keys = feedback_keys(config.feedback_key_file)
        self._context = multiprocessing.get_context("spawn")
        self._counters = CounterDirectory()
        self._metrics = SupervisorMetrics(self._counters.path)
        self._slots: dict[int, _Slot] = {}
        self._due: dict[int, tuple[float, int]] = {}  # slot → when to replace, failures so far
        self._changes = Changes()
        self._all_ready = False
        self._stopping = False
        self._restarts: deque[int] = deque()  # whose turn it is, one after the other
        self._wake, self._woken = self._context.Pipe()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._reserved: list[socket.socket] = []
        self.grpc_port = 0
        self.http_port = 0
        self.metrics_port = 0

    def start(self) -> None:
        """Listen in every worker, and let them load; StartupError where one cannot."""
        try:
            self.grpc_port = self._reserve("--grpc-port", self._config.grpc_port)
            if self._config.allow_http:
                self.http_port = self._reserve("--http-port", self._config.http_port)
            self._config = replace(self._config, grpc_port=self.grpc_port, http_port=self.http_port)
            self._server = MetricsServer(self._config, self._counters.path)
            self.metrics_port = self._server.port
            for number in range(self._config.workers):
                self._spawn(number)
            for slot in self._slots.values():
                self._wait_until_told(slot)
            self._drift = DriftWatch(self._config, self._counters.path)
        except BaseException:
            self._end_all(0.0)
            self._counters.close()
            raise
        where = address(self._config.host, self.grpc_port)
        log.info("%d workers listen on %s", self._config.workers, where)
        self._watcher.start()

    def restart(self) -> None:
        """Have every worker replaced, each once the one before is ready again: no request fails of
        callers that connect anew when they are asked to."""
        self._wake.send(None)

    def stop(self) -> None:
        """Drain all workers, then end; metrics are to be had until the last has ended."""
        self._stopping = True
        self._wake.send(None)
        self._watcher.join()
        self._end_all(self._config.drain_timeout + LAST_CHANCE)
        self._drift.stop()
        self._server.stop()
        for reserved in self._reserved:
            reserved.close()
        self._counters.close()

    def _reserve(self, flag: str, port: int) -> int:
        reserved = _reserve(flag, self._config.host, port)
        self._reserved.append(reserved)
        found: int = reserved.getsockname()[1]
        return found

    def _spawn(self, number: int, failures: int = 0) -> None:
        ours, theirs = self._context.Pipe()
        order = Order(
            config=self._config,
            counters=self._counters.path,
            number=number,
            replacement=self._all_ready,
            journal=self._changes.journal,
            group_ready=self._all_ready,
            feedback_keys=self._feedback_keys,
        )
        process = self._context.Process(
            target=run, args=(order, theirs), name=f"worker-{number}", daemon=True
        )
        _start_without_interrupts(process)
        log.info("worker %d is process %s", number, process.pid)
        theirs.close()  # so that our end sees the worker's death
        self._slots[number] = slot = _Slot(number, process, ours, time.monotonic(), failures)
        for message in self._changes.join(number):
            self._send(message, slot)

    def _wait_until_told(self, slot: _Slot) -> None:
        """Until the worker listens, at the start of the server."""
        try:
            message = slot.connection.recv()
        except EOFError:
            raise StartupError(f"worker {slot.number} died at its start") from None
        if isinstance(message, Failed):
            raise StartupError(message.reason)

    def _watch(self) -> None:
        while not self._stopping:
            slots = {slot.connection: slot for slot in self._slots.values()}
            for connection in wait([*slots, self._woken], self._until_due()):
                if isinstance(connection, Connection) and connection in slots:
                    self._hear(slots[connection])
                else:
                    self._woken.recv()
                    self._begin_restart()
            self._replace_due()
            self._restart_next()

    def _begin_restart(self) -> None:
        """Of all; who waits for a turn already gets one."""
        if not self._stopping:
            log.info("all workers are replaced, one after the other")
            self._restarts = deque(range(self._config.workers))

    def _restart_next(self) -> None:
        """Have the next worker end, where all are there to take its requests."""
        slots = self._slots.values()
        whole = len(slots) == self._config.workers
        if self._restarts and whole and all(slot.ready and not slot.leaving for slot in slots):
            slot = self._slots[self._restarts.popleft()]
            slot.leaving = True
            self._send(Stop(), slot)

    def _until_due(self) -> float | None:
        if not self._due:
            return None
        return max(0.0, min(when for when, _ in self._due.values()) - time.monotonic())

    def _replace_due(self) -> None:
        now = time.monotonic()
        for number, (when, failures) in list(self._due.items()):
            if when <= now and not self._stopping:
                del self._due[number]
                self._respawn(number, failures)

    def _respawn(self, number: int, failures: int) -> None:
        try:
            self._spawn(number, failures)
        except OSError as error:
            log.error("worker %d cannot be started: %s", number, error)
            self._due[number] = (time.monotonic() + LONGEST_PAUSE, failures + 1)

    def _hear(self, slot: _Slot) -> None:
        """Act on one message of a worker, or on its death."""
        try:
            message = slot.connection.recv()
        except (EOFError, OSError):
            self._bury(slot)
            return
        if isinstance(message, Ready):
            slot.ready = True
            log.info("worker %d is ready", slot.number)
            self._tell_when_all_are_ready()
        elif isinstance(message, Do):
            order = self._changes.begin(slot.number, message, self._slots)
            self._send_all(order)
        elif isinstance(message, Done):
            self._tell(self._changes.done(slot.number, message.number, message.error))
        elif isinstance(message, Failed):
            log.error("worker %d cannot start: %s", slot.number, message.reason)
            self._send(Stop(), slot)

    def _bury(self, slot: _Slot) -> None:
        """Replace a worker that died; what it was still to do counts as done."""
        slot.process.join(LAST_CHANCE)
        if slot.process.is_alive():  # it hung up, and hangs
            slot.process.kill()
            slot.process.join()
        slot.connection.close()
        del self._slots[slot.number]
        if slot.leaving:
            log.info("worker %d (pid %s) has ended", slot.number, slot.process.pid)
            self._due[slot.number] = (time.monotonic(), 0)
        else:
            self._tell_of_death(slot)
        self._fold_counters()
        for told in self._changes.leave(slot.number):
            self._tell(told)

    def _tell_of_death(self, slot: _Slot) -> None:
        """And say when the next one starts: later, the more died of their start."""
        lived = time.monotonic() - slot.started
        failures = 0 if lived > HEALTHY else slot.failures + 1
        pause = min(LONGEST_PAUSE, 0.1 * 2**failures) if failures > 1 else 0.0
        log.error(
            "worker %d (pid %s) died with status %s after %.1f s; the next starts in %.1f s",
            *(slot.number, slot.process.pid, slot.process.exitcode, lived, pause),
        )
        self._due[slot.number] = (time.monotonic() + pause, failures)

    def _fold_counters(self) -> None:
        """Whatever goes wrong, who watches over the workers must not end."""
        try:
            with counted_ids.settled(self._counters.path):  # it may have died while it counted
                self._metrics.restarted()
        except OSError as error:
            log.error("the labels that a dead worker counted are not settled: %s", error)

    def _tell_when_all_are_ready(self) -> None:
        slots = self._slots.values()
        if not self._all_ready and len(slots) == self._config.workers:
            self._all_ready = all(slot.ready for slot in slots)
            if self._all_ready:
                log.info("all %d workers are ready", len(slots))
                self._send_all(GroupReady())

    def _tell(self, told: tuple[int, Told] | None) -> None:
        """Tell the worker that asked for a change how it went, if it is over."""
        if told:
            asker, message = told
            self._send(message, self._slots[asker])

    def _send_all(self, message: object) -> None:
        for slot in self._slots.values():
            self._send(message, slot)

    def _send(self, message: object, slot: _Slot) -> None:
        try:
            slot.connection.send(message)
        except OSError:
            log.debug("worker %d is gone", slot.number)  # its death is heard next

    def _end_all(self, timeout: float) -> None:
        """Stop every worker, and kill those that have not ended in time."""
        end = time.monotonic() + timeout
        self._send_all(Stop())
        for slot in self._slots.values():
            slot.process.join(max(0.0, end - time.monotonic()) if timeout else 1.0)
            if slot.process.is_alive():
                log.error("worker %d did not end in time and is killed", slot.number)
                slot.process.kill()
                slot.process.join()


def _start_without_interrupts(process: BaseProcess) -> None:
    """Ctrl-C goes to every process of the terminal, and a worker that still imports would end with
    a traceback: it inherits that the signal is blocked."""
    resource_tracker.ensure_running()  # else it is started with the process, and unblocks it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reserve(flag: str, host: str, port: int) -> socket.socket:
    """A socket that holds the port for the workers to share; it never listens.

    Binding it alone first refuses a port on which another server shares already.
    """
    check_free(flag, host, port)
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(where)
    except OSError as error:
        raise cannot_listen(flag, host, port, error) from None
    return reserved
