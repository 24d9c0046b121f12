"""The native lane in front of grpcio: one port, where it answers ModelInfer and passes the rest on.

Owns the listening sockets, the private socket that grpcio listens on, and what the lane is told of
the models. What it does with a request is C++: serving/lane.
"""

from __future__ import annotations

import importlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from serving.addresses import cannot_listen
from serving.config import ServerConfig
from serving.errors import ModelFailed, StartupError
from serving.families import Exported
from serving.metrics import Metrics
from serving.native_models import NativeModels, NativeSeries
from serving.registry import ServedModel
from serving.status import log_fault
from serving.tls import tls_files
from serving.transport import KEEPALIVE, MAX_CALLS_PER_CONNECTION

if TYPE_CHECKING:  # it need not be built
    from serving.lane import native

BACKLOG = 1024  # connections that wait to be accepted
NATIVE = "serving.lane.native"


def native_module(transport: str) -> ModuleType | None:
    """The lane, where --transport wants it and it was built.

    Raises StartupError where it is wanted and not there.
    """
    if transport == "grpcio":
        return None
    try:
        module = importlib.import_module(NATIVE)
    except ImportError as error:
        if transport == "native":
            raise StartupError(
                f"--transport: the native lane cannot be loaded, `make lane` builds it: {error}"
            ) from None
        return None
    return module


def why(transport: str, lane: NativeTransport | None) -> str:
    """What was taken for --transport, for the log."""
    if lane:
        return "the native lane answers ModelInfer, and grpcio all other calls"
    if transport == "grpcio":
        return "grpcio answers all calls, as --transport says"
    return "grpcio answers all calls: the native lane is not built; `make lane` builds it"


class NativeTransport:
    """The lane of one process; `key` signs prediction ids, None for answers without.

    `upstream` is where grpcio is to listen: in `directory`, which nobody else may enter, and whose
    owner removes it. Nothing is heard before `listen`.
    """

    def __init__(
        self,
        module: ModuleType,
        config: ServerConfig,
        metrics: Metrics,
        key: bytes | None,
        directory: Path,
    ) -> None:
        self._config = config
        self._socket = directory / f"grpcio-{os.getpid()}-{time.time_ns():x}"
        self._routing = threading.Lock()
        series = NativeSeries(metrics)
        self._server: native.Server = module.Server(
            upstream_path=str(self._socket),
            settings=self._settings(),
            tls=_tls(config),
            key=key,
            refusal=series.refusals("", ""),
            request_bytes=series.slots(Exported.request_bytes, "", ""),
            in_flight=series.slots(Exported.in_flight),
            failed=_log_failure,
        )
        self.models = NativeModels(module, self._server, series, config)

    @property
    def upstream(self) -> str:
        """The address that grpcio is to listen on."""
        return f"unix:{self._socket}"

    @property
    def in_flight(self) -> int:
        """Requests that the lane is about to answer itself."""
        return self._server.in_flight

    def listen(self) -> int:
        """Answer from now on; the port. StartupError where it is taken."""
        config = self._config
        sockets = listeners(config.host, config.grpc_port, shared=config.workers > 1)
        port: int = sockets[0].getsockname()[1]
        self._server.start([each.detach() for each in sockets])
        return port

    def route(self, routes: Callable[[], Mapping[tuple[str, str], ServedModel]]) -> None:
        """Serve from now on what there is by name and version; what the lane does not take is
        grpcio's. It is asked for it once no other thread is here, so that the newest is the last.
        """
        with self._routing:
            taken = {k: served.routed for k, served in routes().items() if served.routed}
            self._server.set_routes(taken)

    def observe(self, every: bool) -> None:
        """Whether each request is to be passed on, where it is logged and traced."""
        self._server.set_observed(every)

    def drain(self) -> None:
        """Listen no more, refuse what is new, and ask clients to go elsewhere."""
        self._server.drain()

    def wait_until_idle(self, timeout: float) -> bool:
        """Whether the lane has no request in flight any more, after at most `timeout` seconds."""
        return self._server.wait_until_idle(timeout)

    def stop(self) -> None:
        """Close every connection."""
        self._server.stop()
        self._socket.unlink(missing_ok=True)

    def _settings(self) -> dict[str, float]:
        config = self._config
        return {
            "room": config.room,
            "priority_levels": config.priority_levels,
            "max_message_bytes": config.max_message_bytes,
            "max_streams": MAX_CALLS_PER_CONNECTION,
            "keepalive_time": KEEPALIVE[0] / 1e3,
            "keepalive_timeout": KEEPALIVE[1] / 1e3,
            "max_age": config.max_connection_age,
            "max_age_grace": config.drain_timeout,
            "traces_observed": bool(config.otlp_endpoint),
        }


def _tls(config: ServerConfig) -> tuple[str, str, str] | None:
    """The files that the lane reads itself; StartupError names one that is no good."""
    if tls_files(config) is None:
        return None
    client_ca = str(config.tls_client_ca) if config.tls_client_ca else ""
    return str(config.tls_certificate), str(config.tls_key), client_ca


def _log_failure(
    cause: BaseException | None, text: str, request_id: str, model: str, version: str
) -> None:
    """A request failed by the server's own fault; the caller was told where to look."""
    facts = {"request_id": request_id, "model": model, "version": version}
    log_fault(cause or ModelFailed(text), facts)


def listeners(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    """Sockets that listen on every address of the host, on the same port; StartupError where one
    cannot. 0.0.0.0 and :: are every address of this machine, of both families, as gRPC has them."""
    sockets: list[socket.socket] = []
    try:
        for family, where in _addresses(host, port):
            sockets.append(_listener(family, (where[0], port, *where[2:]), shared))
            port = sockets[0].getsockname()[1]
    except OSError as error:
        for each in sockets:
            each.close()
        raise cannot_listen("--grpc-port", host, port, error) from None
    return sockets


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, ...]]]:
    if host in ("0.0.0.0", "::") and socket.has_dualstack_ipv6():
        return [(socket.AF_INET6, ("::", port))]  # type: ignore[list-item]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, where) for family, _, _, _, where in found))  # type: ignore[misc]


def _listener(
    family: socket.AddressFamily, where: tuple[str | int, ...], shared: bool
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, where[0] != "::")
        listener.bind(where)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
