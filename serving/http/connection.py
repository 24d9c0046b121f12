"""Connection: uvicorn's HTTP/1.1, held to the limits that it does not know.

Owns how long a client may take to send a request and to read an answer, how long it may be idle,
how large a request's head may be, and what is said to one that does not speak HTTP. Knows no route.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.config import ServerConfig
from serving.http.guard import HEADERS

# Seconds that a connection may be without a request where --max-connection-idle sets no bound:
# longer than proxies keep theirs (60 s), so that it is they who end them.
KEEP_ALIVE = 75.0
# Bytes of a request line and its headers.
LARGEST_HEAD = 65536
# Requests that a client may send ahead of the answers.
MOST_AHEAD = 100
# Bytes per second of a request, and of an answer, on average over the stall timeout: as the lane.
LEAST_RATE = 500
# Each connection's age is up to so much off, so that those of one moment do not all end in another.
AGE_JITTER = 0.1

log = logging.getLogger("serving.http")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of each connection, in seconds and bytes, and how many there may be."""

    stall: float
    idle: float
    age: float  # 0: for ever
    unwanted: int  # of a body after its answer
    connections: int

    @classmethod
    def of(cls, config: ServerConfig) -> Limits:
        """Those that the options set."""
        return cls(
            stall=config.stall_timeout,
            idle=min(KEEP_ALIVE, config.max_connection_idle or KEEP_ALIVE),
            age=config.max_connection_age,
            unwanted=config.max_message_bytes,
            connections=config.max_connections,
        )


# Seconds that a connection past its age may be idle.
LAST_CHANCE = 1.0

# Headers that are about an upgrade, of which none is made.
UPGRADE = (b"connection", b"upgrade", b"http2-settings")


class _Refused(Exception):
    """What a client sent is beyond a bound, or nothing that is done here."""

    def __init__(self, status: HTTPStatus, details: str) -> None:
        super().__init__(details)
        self.status = status


class Connection(HttpToolsProtocol):
    """One client's. `look` must be called about once a second."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self.timeout_keep_alive = math.ceil(limits.idle)  # seconds; uvicorn's own is 5
        self._since = time.monotonic()  # when it began to be idle, or to send a request
        jitter = 1 + AGE_JITTER * random.uniform(-1, 1)  # nosec B311 # no secret
        self._ends = self._since + limits.age * jitter if limits.age else float("inf")
        self._in_head = False
        self._receiving = False  # a request has begun that is not whole
        self._arrived = 0  # bytes since then
        self._unwanted = 0
        self._refused = False
        self._unread: tuple[float, int] | None = None  # when a look began, and at how many bytes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more, or one too many, which is closed at once."""
        crowded = len(self.connections) >= self._limits.connections
        super().connection_made(transport)
        if crowded:
            log.debug("closed a connection beyond --max-connections", extra=self._facts())
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request, or of several."""
        if self._refused or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._arrived += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            reason = error.__context__
            if isinstance(reason, _Refused):
                self._refuse(reason.status, str(reason))
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, "this is not HTTP/1.1")
        if self._in_head and self._arrived > LARGEST_HEAD:
            self._refuse(*_head_too_large())

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head = self._receiving = True
        self._since, self._arrived = time.monotonic(), 0
        self._unwanted = 0

    def on_headers_complete(self) -> None:
        """A request line and all headers are there."""
        if len(self.url) + sum(len(n) + len(v) for n, v in self.headers) > LARGEST_HEAD:
            raise _Refused(*_head_too_large())
        if len(self.pipeline) >= MOST_AHEAD:
            raise _Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many requests ahead of the answers")
        if self.parser.get_method() == b"CONNECT":
            raise _Refused(HTTPStatus.NOT_IMPLEMENTED, "this is no proxy")
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        if time.monotonic() >= self._ends:
            self.cycle.keep_alive = False
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        """Of a request that is answered already, there may be so much and no more."""
        super().on_body(body)
        if self.cycle.response_complete:
            self._unwanted += len(body)
            if self._unwanted > self._limits.unwanted:
                self.transport.abort()

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._receiving = False
        self._since = time.monotonic()

    def on_response_complete(self) -> None:
        """The answer is on its way."""
        super().on_response_complete()
        if not self._receiving:
            self._since = time.monotonic()

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._unread = None

    def look(self, now: float) -> None:
        """Close it where its time is up."""
        if self._leaves_unread(now):
            log.debug("a client does not read its answers", extra=self._facts())
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif self._receiving:
            self._look_at_request(now)
        elif not self._answering and now - self._since >= self._may_be_idle(now):
            self.transport.close()

    def _go_on_without_upgrade(self, data: bytes) -> None:
        """Take the request as if it had not asked for one, as RFC 9110 (7.8) allows: Java's client
        does so with each connection's first. The parser ends at such a head: another one reads it,
        without that, and what follows."""
        head = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
        head += [name + b": " + value for name, value in self.headers if name not in UPGRADE]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*head, b"", b""]) + data)

    def _may_be_idle(self, now: float) -> float:
        """Seconds. Past its age, only so long that the next of many requests, whose answer tells
        the client to make another connection, does not meet its end."""
        return self._limits.idle if now < self._ends else min(self._limits.idle, LAST_CHANCE)

    @property
    def _answering(self) -> bool:
        """Requests are here that have no whole answer yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _look_at_request(self, now: float) -> None:
        if self.flow.read_paused:  # it is not the client who takes its time
            self._since, self._arrived = now, 0
        elif now - self._since >= self._limits.stall:
            if self._arrived < LEAST_RATE * self._limits.stall:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time")
            self._since, self._arrived = now, 0

    def _leaves_unread(self, now: float) -> bool:
        """Of what it was to read, it has not taken enough."""
        size = _unsent(self.transport)
        if not size or self._unread is None:
            self._unread = (now, size) if size else None
            return False
        began, before = self._unread
        if now - began < self._limits.stall:
            return False
        self._unread = (now, size)
        return size > before - LEAST_RATE * self._limits.stall

    def _refuse(self, status: HTTPStatus, details: str) -> None:
        """Take no more of it. It is told why, but where an answer is due, which it still gets."""
        if self._refused:
            return
        self._refused = True
        log.debug("refused: %s", details, extra=self._facts())
        if self.pipeline or (self._answering and not self.cycle.more_body):
            self.cycle.keep_alive = False
            return
        in_body = self._receiving and not self._in_head  # of the request that `cycle` answers
        if not (in_body and self.cycle.response_started):
            self.transport.write(_answer(status, details))
        self.transport.close()

    def _facts(self) -> dict[str, str]:
        return {"peer": peer(self.client)}


def _unsent(transport: asyncio.Transport) -> int:
    """Bytes that the socket has not taken. Over TLS, asyncio tells only of those that are not
    encrypted yet; the transport that the others wait in it keeps to itself."""
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    encrypted: int = below.get_write_buffer_size() if below else 0
    return transport.get_write_buffer_size() + encrypted


def peer(client: tuple[str, int] | None) -> str:
    """Who asks, as gRPC names peers: ipv4:127.0.0.1:5000, ipv6:%5B::1%5D:5000. An IPv4 address in
    IPv6's clothes is shown as what it is."""
    if client is None:
        return "unknown"
    host, port = client
    host = host.removeprefix("::ffff:") if "." in host else host
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _head_too_large() -> tuple[HTTPStatus, str]:
    details = f"the request line and headers are larger than {LARGEST_HEAD} bytes"
    return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, details


def _answer(status: HTTPStatus, details: str) -> bytes:
    """What the application has no part in, as it would have answered."""
    body = json.dumps({"error": details}).encode()
    headers = {
        **HEADERS,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
