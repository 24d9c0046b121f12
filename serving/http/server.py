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
from serving.tls import TlsFiles, require_clients, server_context
from serving.tls_watch import TlsWatch

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

    def __init__(self, config: ServerConfig, app: ASGIApp, tls: TlsWatch | None = None) -> None:
        self._config = config
        context = _context(tls.files) if tls and tls.files else None
        self._server = _Server(config, app, context)
        if tls:
            tls.follow(self._renew)
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

    def _renew(self, files: TlsFiles) -> None:
        self._server.tls = _context(files)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket] if self._socket else []))


class _Server(uvicorn.Server):
    """uvicorn's, with our connections, which it looks at, and with none left when it ends.

    `tls` may be replaced at any time, by any thread: connections that come soon after go by it.
    """

    def __init__(self, config: ServerConfig, app: ASGIApp, tls: ssl.SSLContext | None) -> None:
        super().__init__(_uvicorn_config(app))
        self._limits = Limits.of(config)
        self.tls = self._listening_by = tls
        self.servers = []
        self._sockets: list[socket.socket] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise RuntimeError("the HTTP application did not begin")
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_fault)
        self._sockets = sockets or []
        await self._listen()
        self.started = True

    async def _listen(self) -> None:
        """Take connections by the TLS that there is now. On a copy of each socket: who connects
        meanwhile waits at it, and those who have connected go on as they began."""
        tls, before = self.tls, self.servers
        self.servers = [await self._server(each.dup(), tls) for each in self._sockets]
        self._listening_by = tls
        await _close(before)

    async def _server(
        self, listening: socket.socket, tls: ssl.SSLContext | None
    ) -> asyncio.base_events.Server:
        made = functools.partial(
            Connection,
            self.config,
            self.server_state,
            self.lifespan.state,
            limits=self._limits,
        )
        return await asyncio.get_running_loop().create_server(
            made,
            sock=listening,
            ssl=tls,
            backlog=self.config.backlog,
            ssl_handshake_timeout=min(HANDSHAKE, self._limits.stall) if tls else None,
            ssl_shutdown_timeout=self._limits.stall if tls else None,
        )

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % LOOK_EVERY == 0:
            now = time.monotonic()
            for each in self._connections():
                each.look(now)
            await self._renew()
        return await super().on_tick(counter)

    async def _renew(self) -> None:
        """Listen by TLS that is new; where there is no descriptor for that, at the next look."""
        try:
            if self.tls is not self._listening_by:
                await self._listen()
        except OSError as error:
            log.error("new TLS files cannot be taken yet: %s", error.strerror)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests be answered until `force_exit`; then whoever is left is cut off."""
        await _close(self.servers)
        for listening in self._sockets:
            listening.close()
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


async def _close(servers: list[asyncio.base_events.Server]) -> None:
    """Listen no more, and lose nobody: asyncio makes the connection of who was accepted a turn
    later, and resets it where the server is closed by then."""
    for server in servers:
        for each in server.sockets:
            asyncio.get_running_loop().remove_reader(each.fileno())
    await asyncio.sleep(0)
    for server in servers:
        server.close()


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


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = server_context(files)
    context.set_alpn_protocols(["http/1.1"])
    if files.client_ca:
        require_clients(context, files.client_ca)
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
