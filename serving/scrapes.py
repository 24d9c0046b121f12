"""The HTTP server that Prometheus scrapes."""

from __future__ import annotations

import functools
import logging
import socket
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from serving.addresses import address, cannot_listen
from serving.config import ServerConfig
from serving.exposition import Collector

# Seconds in which the metrics' thread sees that it is to stop.
STOPS_WITHIN = 0.05

log = logging.getLogger("serving")


class MetricsServer:
    """`/metrics` for Prometheus: the sum over the processes that count in a directory."""

    def __init__(self, config: ServerConfig, counters: Path) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(Collector(counters, config.triton_metrics))
        host, port = config.host, config.metrics_port
        try:
            self._server = _listen_for_scrapes(host, port, self.registry)
        except OSError as error:
            raise cannot_listen("--metrics-port", host, port, error) from None
        self.port = self._server.server_port
        serve = functools.partial(self._server.serve_forever, poll_interval=STOPS_WITHIN)
        threading.Thread(target=serve, name="metrics", daemon=True).start()
        log.info("metrics on http://%s/metrics", address(host, self.port))

    def stop(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A scrape is nothing to log."""


def _listen_for_scrapes(host: str, port: int, registry: CollectorRegistry) -> WSGIServer:
    """As prometheus_client's start_http_server, which takes half a second to stop."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]

    class Listener(ThreadingWSGIServer):
        address_family = family

        def handle_error(self, request: object, client_address: object) -> None:
            """Of a caller that went away in the middle, say."""
            log.warning("a scrape from %s failed: %r", client_address, sys.exception())

    return make_server(host, port, _logged(make_wsgi_app(registry)), Listener, _SilentHandler)


def _logged(app: WSGIApplication) -> WSGIApplication:
    """The application, whose errors wsgiref would print beside the log."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except Exception:
            log.exception("a scrape failed")
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return ()

    return answer
