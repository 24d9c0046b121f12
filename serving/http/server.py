"""HttpServer: uvicorn on a thread of its own, one in each process that serves.

Owns the socket, TLS and the end of connections; knows no route.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
import threading
import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from serving.addresses import address, cannot_listen
from serving.config import ServerConfig
from serving.http.connection import Connection, Limits

# Seconds in which the thread must have ended once it was told to cut off what is left.
PATIENCE = 10.0
# Seconds for requests whose connections were cut off to find out.
LAST_MOMENT = 1.0
# Seconds for TLS's handshake: until it is made, --max-connections does not count the connection.
HANDSHAKE = 10.0
# Of uvicorn's ticks, tenths of a second, from one look at the connections to the next.
LOOK_EVERY = 10

log = logging.getLogger("serving.http")


class HttpServer:
    """Answers by an ASGI application; the port is known once it listens."""

    def __init__(self, config: ServerConfig, app: ASGIApp) -> None:
        self._config = config
        self._server = _Server(config, app)
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        scheme = "https" if self._config.tls_certificate else "http"
        return f"{scheme}://{address(self._config.host, self.port or self._config.http_port)}"

    def start(self) -> None:
        """Listen and answer from now on; StartupError where it cannot."""
        self._socket = _listening(self._config)
        self.port = self._socket.getsockname()[1]
        self._thread.start()
        log.info("HTTP on %s", self.url)

    def stop(self, timeout: float) -> None:
        """Take no connection any more, end each after the request that it is at, and cut off what
        is left after `timeout` seconds. Until then new connections are answered, too: who asks
        hears that the server is not ready."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout)
            self._server.force_exit = True
            self._thread.join(PATIENCE)
        if self._socket:
            self._socket.close()

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket] if self._socket else []))


class _Server(uvicorn.Server):
    """uvicorn's, with our connections, which it looks at, and with none left when it ends."""

    def __init__(self, config: ServerConfig, app: ASGIApp) -> None:
        super().__init__(_uvicorn_config(app))
        self._limits = Limits.of(config)
        self._tls = _tls(config) if config.tls_certificate else None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise RuntimeError("the HTTP application did not begin")
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_fault)
        made = functools.partial(
            Connection,
            self.config,
            self.server_state,
            self.lifespan.state,
            limits=self._limits,
        )
        self.servers = [
            await loop.create_server(
                made,
                sock=each,
                ssl=self._tls,
                backlog=self.config.backlog,
                ssl_handshake_timeout=min(HANDSHAKE, self._limits.stall) if self._tls else None,
            )
            for each in sockets or []
        ]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % LOOK_EVERY == 0:
            now = time.monotonic()
            for each in self._connections():
                each.look(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests be answered until `force_exit`; then whoever is left is cut off."""
        for server in self.servers:
            server.close()
        for each in self._connections():
            each.shutdown()
        # No event tells of either: one is uvicorn's, the other comes from another thread.
        while self.server_state.connections and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for each in self._connections():
            each.transport.abort()
        if tasks := self.server_state.tasks:
            _, left = await asyncio.wait(tasks, timeout=LAST_MOMENT)
            for task in left:
                task.cancel()
        await self.lifespan.shutdown()

    def _connections(self) -> list[Connection]:
        """Those that are open; looking at them may end some."""
        return [each for each in self.server_state.connections if isinstance(each, Connection)]


def _uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        log_config=None,  # ours
        log_level=logging.WARNING,
        access_log=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,  # whoever asks could say that it is somebody else
        server_header=False,
    )


def _log_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody waits for, such as that no more connections can be taken: one line."""
    error = context.get("exception")
    text = context.get("message", "unexpected error")
    log.error("%s%s", text, f": {error!r}" if error else "")


def _tls(config: ServerConfig) -> ssl.SSLContext:
    """The files were checked when the server was made."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=config.tls_client_ca)
    assert config.tls_certificate
    context.load_cert_chain(config.tls_certificate, config.tls_key)
    context.set_alpn_protocols(["http/1.1"])
    if config.tls_client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _listening(config: ServerConfig) -> socket.socket:
    """A socket at --http-port; StartupError where there can be none."""
    host, port = config.host, config.http_port
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends at once (TCP_NODELAY) only where the protocol is named; else an answer's
        # second part waits for the client to acknowledge the first, which takes it 40 ms.
        listening = socket.socket(family, kind, proto)
    except OSError as error:
        raise cannot_listen("--http-port", host, port, error) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if config.workers > 1:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(where)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise cannot_listen("--http-port", host, port, error) from None
    return listening
