"""grpc.health.v1: the status of each service, asked for, listed, or watched.

Not grpcio's own servicer, which sends while it holds its lock. The one thread that polls gRPC takes
that lock when a watch ends, and tells that a status was sent: now and then each waited for the
other, and the server answered nobody any more. Here no lock but a watch's own is held meanwhile,
and one thread tells them all: neither a check nor whoever sets a status waits for a slow watcher.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.status import fitting

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
# Seconds that a shutdown waits for watchers to be told of it.
LAST_WORD = 0.5

Response: TypeAlias = health_pb2.HealthCheckResponse

log = logging.getLogger(__name__)


class _Watch:
    """One open watch; `sending` is held while it is told."""

    def __init__(self, service: str, send: Callable[[Response], None]) -> None:
        self.service = service
        self.send = send
        self.sending = threading.Lock()
        self.told: int | None = None
        self.to_be_told = False  # the servicer's lock's


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Services are unknown until their status is set. From `enter_graceful_shutdown` on, all that
    are known serve nothing, whatever is set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # nothing is sent, and nobody waited for, under it
        self._statuses: dict[str, int] = {}
        self._watches: dict[str, set[_Watch]] = {}
        self._shutting_down = False
        self._to_tell = queue.SimpleQueue[_Watch | None]()
        self._teller = threading.Thread(target=self._tell_all, name="health", daemon=True)
        self._teller.start()

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Response:
        """The status now; NOT_FOUND for a service that is unknown."""
        status = self._statuses.get(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details(fitting(f"service {request.service!r} is unknown"))
        return Response(status=status)

    def List(
        self, request: health_pb2.HealthListRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthListResponse:
        """The status of every service."""
        with self._lock:
            statuses = {name: Response(status=status) for name, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=statuses)

    def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send: Callable[[Response], None],
    ) -> None:
        """The status now and whenever it changes, SERVICE_UNKNOWN for a service that is unknown."""
        watch = _Watch(request.service, send)
        with self._lock:
            self._watches.setdefault(watch.service, set()).add(watch)
        if not context.add_callback(lambda: self._forget(watch)):  # it is over already
            self._forget(watch)
        self._tell(watch)

    # For gRPC to let go of the thread when Watch returns, and not to end the call then.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def set(self, service: str, status: int) -> None:
        """The status of a service from now on; watchers are told soon."""
        with self._lock:
            if not self._shutting_down:
                self._set(service, status)

    def enter_graceful_shutdown(self) -> None:
        """Everything is NOT_SERVING for good; returns when watchers know, or soon."""
        with self._lock:
            if not self._shutting_down:
                for service in self._statuses:
                    self._set(service, Response.NOT_SERVING)
                self._to_tell.put(None)
            self._shutting_down = True
        self._teller.join(LAST_WORD)

    @property
    def watched(self) -> list[str]:
        """The services that somebody watches."""
        with self._lock:
            return sorted(self._watches)

    def _set(self, service: str, status: int) -> None:
        """The lock is held."""
        self._statuses[service] = status
        for watch in self._watches.get(service, ()):
            if not watch.to_be_told:
                watch.to_be_told = True
                self._to_tell.put(watch)

    def _forget(self, watch: _Watch) -> None:
        with self._lock:
            watches = self._watches.get(watch.service, set())
            watches.discard(watch)
            if not watches:  # clients name the services
                self._watches.pop(watch.service, None)

    def _tell_all(self) -> None:
        while watch := self._to_tell.get():
            with self._lock:
                watch.to_be_told = False
            try:
                self._tell(watch)
            except Exception:  # the thread must live: others watch too
                log.exception("a watcher of health could not be told")

    def _tell(self, watch: _Watch) -> None:
        """What is so now, if the watcher does not know; of two that tell, the later knows more."""
        with watch.sending:
            status = self._statuses.get(watch.service, Response.SERVICE_UNKNOWN)
            if status != watch.told:
                watch.told = status
                watch.send(Response(status=status))
