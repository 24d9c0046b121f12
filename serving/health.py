"""grpc.health.v1 with watches that come and go while statuses change.

grpcio's own servicer holds its lock until a status was sent, which the one thread that polls gRPC
tells it, and that thread takes the lock when a watch ends: now and then, each waits for the other,
and the server answers nobody any more. Here another thread lets a watch go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from grpc_health.v1 import health, health_pb2

SERVICE_NAME = health.SERVICE_NAME


class HealthServicer(health.HealthServicer):
    """grpcio's, but for the end of a watch."""

    def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: Any,
        send_response_callback: Callable[[Any], None] | None = None,
    ) -> Any:
        """The status of a service, now and whenever it changes."""
        elsewhere: Any = _Elsewhere(context)
        return super().Watch(request, elsewhere, send_response_callback)


class _Elsewhere:
    """All that Watch needs of a context: callbacks, which are called on threads of their own."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def add_callback(self, callback: Callable[[], None]) -> bool:
        def call() -> None:
            threading.Thread(target=callback, name="watch-ends", daemon=True).start()

        added: bool = self._context.add_callback(call)
        return added
