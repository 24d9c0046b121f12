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
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from serving.addresses import cannot_listen
from serving.config import ServerConfig
from serving.errors import ModelFailed, StartupError
from serving.families import Exported
from serving.metrics import Metrics
from serving.native_models import NativeModels, NativeSeries
from serving.registry import ServedModel
from serving.status import log_fault
from serving.tls import TlsFiles
from serving.tokens import Grant, Need
from serving.transport import KEEPALIVE, MAX_CALLS_PER_CONNECTION

if TYPE_CHECKING:  # it need not be built
    from serving.lane import native

BACKLOG = 1024  # connections that wait to be accepted
NATIVE = "serving.lane.native"
LONGEST_SOCKET = 107  # bytes of a Unix socket's path, as unix(7) has it, but for the last 0


class Choice(NamedTuple):
    """What was taken for --transport: the lane's module, or None for grpcio; and why."""

    module: ModuleType | None
    why: str  # for the log


def choose(transport: str) -> Choice:
    """The lane, where --transport wants it and it can be loaded.

    Raises StartupError where it is wanted and cannot.
    """
    if transport == "grpcio":
        return Choice(None, "grpcio answers all calls, as --transport says")
    try:
        module = importlib.import_module(NATIVE)
    except ImportError as error:
        reason = f"the native lane {_why_not(error)}; `make lane` builds it"
        if transport == "native":
            raise StartupError(f"--transport: {reason}") from None
        return Choice(None, f"grpcio answers all calls: {reason}")
    return Choice(module, "the native lane answers ModelInfer, and grpcio all other calls")


def _why_not(error: ImportError) -> str:
    """Why there is no module of the lane, or none for this interpreter and machine."""
    if not isinstance(error, ModuleNotFoundError) or error.name != NATIVE:
        return f"cannot be loaded: {error}"
    others = sorted(path.name for path in Path(__file__).with_name("lane").glob("native.*.so"))
    return f"was built for another Python: {', '.join(others)}" if others else "is not built"


class NativeTransport:
    """The lane of one process; `key` signs prediction ids, None for answers without.

    `upstream` is where grpcio is to listen: in `directory`, which nobody else may enter, and whose
    owner removes it. Nothing is heard before `listen`. It ends by `stop`, or else when nobody has
    it any more, or the process ends. StartupError where the directory lies too deep for a socket.
    """

    def __init__(
        self,
        module: ModuleType,
        config: ServerConfig,
        metrics: Metrics,
        key: bytes | None,
        directory: Path,
        tls: TlsFiles | None = None,
    ) -> None:
        self._config = config
        self._socket = _private_socket(directory)
        self._routing = threading.Lock()
        series = NativeSeries(metrics)
        metrics.set(Exported.connections_limit, config.max_connections)
        self._server: native.Server = module.Server(
            upstream_path=str(self._socket),
            settings=self._settings(),
            tls=_pem(tls) if tls else None,
            key=key,
            refusal=series.refusals("", ""),
            request_bytes=series.slots(Exported.request_bytes, "", ""),
            in_flight=series.slots(Exported.in_flight),
            connections=series.connections(),
            failed=_log_failure,
        )
        self.models = NativeModels(module, self._server, series, config)
        self._finalizer = weakref.finalize(self, _end, self._server, self._socket)

    @property
    def upstream(self) -> str:
        """The address that grpcio is to listen on."""
        return f"unix:{self._socket}"

    def listen(self) -> int:
        """Answer from now on; the port. StartupError where that cannot be, as where it is taken."""
        config = self._config
        sockets = listeners(config.host, config.grpc_port, shared=config.workers > 1)
        port: int = sockets[0].getsockname()[1]
        try:
            self._server.start([each.detach() for each in sockets])
        except RuntimeError as error:
            raise StartupError(f"--transport: {error}") from None
        return port

    def route(self, routes: Callable[[], Mapping[tuple[str, str], ServedModel]]) -> None:
        """Serve from now on what there is by name and version; what the lane does not take is
        grpcio's. It is asked for it once no other thread is here, so that the newest is the last.
        """
        with self._routing:
            taken = {k: served.routed for k, served in routes().items() if served.routed}
            self._server.set_routes(taken)

    def authorize(self, grants: tuple[Grant, ...]) -> None:
        """Take from now on ModelInfer with these tokens only."""
        self._server.set_tokens(
            [(g.name, g.digest, Need.INFER in g.roles, g.rate, g.burst) for g in grants]
        )

    def wait_for_rate(self, grant: Grant) -> float:
        """As Rates.wait, of what calls to the lane have left."""
        return self._server.wait_for_rate(grant.name)

    def trace(self, rates: Mapping[str, int]) -> None:
        """One request in so many of each model is to be passed on, where it is traced; 0 is none.
        Under the empty name: of models that are not named."""
        self._server.set_trace_rates(rates)

    def renew(self, tls: TlsFiles) -> None:
        """Have connections that are made from now on go by these files; once it listens."""
        self._server.renew_tls(_pem(tls))

    @property
    def in_flight(self) -> int:
        """Requests inside that the lane answers itself."""
        return self._server.in_flight

    def passed_on(self, more: int) -> None:
        """So many more requests are inside, of which the lane would not know: those of streams."""
        self._server.passed_on(more)

    def drain(self) -> None:
        """Listen no more, refuse what is new, and ask clients to go elsewhere."""
        self._server.drain()

    def wait_until_idle(self, timeout: float) -> bool:
        """Whether the lane has no request in flight any more, after at most `timeout` seconds."""
        return self._server.wait_until_idle(timeout)

    def stop(self) -> None:
        """Close every connection."""
        self._finalizer()

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
            "max_connections": config.max_connections,
            "idle_timeout": config.max_connection_idle,
            "stall_timeout": config.stall_timeout,
            "tokens": config.token_file is not None or bool(config.tokens),
            "log_every": config.access_log,
            "traces_observed": bool(config.otlp_endpoint),
        }


def _private_socket(directory: Path) -> Path:
    path = directory / f"grpcio-{os.getpid()}-{time.time_ns():x}"
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        limit = f"too long for a Unix socket, which has at most {LONGEST_SOCKET} bytes"
        hint = "TMPDIR can be shorter, and --transport=grpcio needs none"
        raise StartupError(f"--transport: {path}: {limit}; {hint}")
    return path


def _end(server: native.Server, path: Path) -> None:
    server.stop()
    path.unlink(missing_ok=True)


def _pem(files: TlsFiles) -> tuple[bytes, bytes, bytes]:
    """As the lane takes them: without a CA, clients need no certificate."""
    return files.certificate, files.key, files.client_ca or b""


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
    # Only where the operator asked for it: by default --host is 127.0.0.1.
    any_ipv4 = "0.0.0.0"  # nosec B104
    if host in (any_ipv4, "::") and socket.has_dualstack_ipv6():
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
