"""HttpServer: uvicorn on a thread of its own, one in each process that serves.

Owns the socket, TLS and the end of connections; knows no route.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
import threading

import uvicorn
from starlette.types import ASGIApp

from serving.addresses import address, cannot_listen
from serving.config import ServerConfig

# Seconds that a connection may be without a request.
KEEP_ALIVE = 75
# Seconds in which the thread must listen, or have ended beyond the drain timeout.
PATIENCE = 10.0

log = logging.getLogger("serving")


class HttpServer:
    """Answers by an ASGI application; the port is known once it is made, `start` answers."""

    def __init__(self, config: ServerConfig, app: ASGIApp) -> None:
        self._socket = _bound(config)
        self.port: int = self._socket.getsockname()[1]
        self._scheme = "https" if config.tls_certificate else "http"
        self._config = config
        self._server = uvicorn.Server(_uvicorn_config(config, app))
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        host = self._config.host
        try:
            self._socket.listen(self._server.config.backlog)
        except OSError as error:  # somebody else was faster
            raise cannot_listen("--http-port", host, self.port, error) from None
        self._thread.start()
        log.info("HTTP on %s://%s", self._scheme, address(host, self.port))

    def drain(self) -> None:
        """Take no connection any more, and end each after the request that it is at."""
        self._server.should_exit = True

    def stop(self, timeout: float) -> None:
        """Have drained, after at most `timeout` seconds; what is left then is cut off."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join(timeout)
            self._server.force_exit = True
            self._thread.join(PATIENCE)
        self._socket.close()

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))


def _uvicorn_config(config: ServerConfig, app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,  # ours
        log_level=logging.WARNING,
        access_log=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,  # whoever asks could say that it is somebody else
        server_header=False,
        limit_concurrency=config.max_connections,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(config.drain_timeout),
        ssl_context_factory=(lambda *_: _tls(config)) if config.tls_certificate else None,
    )


def _tls(config: ServerConfig) -> ssl.SSLContext:
    """The files were checked when the server was made."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=config.tls_client_ca)
    assert config.tls_certificate
    context.load_cert_chain(config.tls_certificate, config.tls_key)
    context.set_alpn_protocols(["http/1.1"])
    if config.tls_client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _bound(config: ServerConfig) -> socket.socket:
    """A socket at --http-port that does not listen yet; StartupError where there can be none."""
    host, port = config.host, config.http_port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        # asyncio turns Nagle's algorithm off only where a socket says that it is TCP's; with it,
        # each answer's body would wait 40 ms for the client to acknowledge its headers.
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if config.workers > 1:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(where)
    except OSError as error:
        raise cannot_listen("--http-port", host, port, error) from None
    return bound
