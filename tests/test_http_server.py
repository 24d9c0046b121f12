"""The HTTP server by itself, over real sockets: whoever is slow, greedy or no HTTP client at all
costs others nothing, and when the server ends nothing of it is left."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from certificates import authority, files
from conftest import PATIENCE, threads_named, until, wait_for_threads
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from serving.config import ServerConfig
from serving.errors import StartupError
from serving.http.app import Application
from serving.http.connection import (
    KEEP_ALIVE,
    LARGEST_HEAD,
    MOST_AHEAD,
    Connection,
    Limits,
)
from serving.http.guard import HEADERS
from serving.http.server import HttpServer
from serving.series import SeriesWriter
from serving.tls_watch import TlsWatch

MEGABYTE = 1 << 20
FAULTS = logging.WARNING
GET = b"GET /peer HTTP/1.1\r\nHost: x\r\n\r\n"
# How much of what nobody reads fits into sockets and buffers is the system's choice.
MUCH = 32 * MEGABYTE


class Routes:
    """Something of each kind that there is to answer; what is asked of `waits` waits for `go`."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.go = threading.Event()
        self.draining = False

    def application(self) -> Application:
        paths: dict[str, Callable[[Request], Any]] = {
            "/peer": self._peer,
            "/much": self._much,
            "/length": self._length,
            "/waits": self._waits,
            "/fails": self._fails,
        }
        routes = [Route(path, each, methods=["GET", "POST"]) for path, each in paths.items()]
        return Application([*routes, Route("/broken", Broken)], lambda: self.draining)

    async def _peer(self, request: Request) -> Response:
        assert request.client
        return PlainTextResponse(":".join(map(str, request.client)))

    async def _much(self, request: Request) -> Response:
        return Response(bytes(MUCH))

    async def _length(self, request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def _waits(self, request: Request) -> Response:
        self.asked.release()
        try:
            await asyncio.to_thread(self.go.wait, PATIENCE)
        finally:
            self.ended.release()
        return PlainTextResponse("waited")

    async def _fails(self, request: Request) -> Response:
        raise ZeroDivisionError("of ours")


class Broken:
    """An answer that goes wrong after it has begun."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError("of ours, and late")


@pytest.fixture
def routes() -> Routes:
    return Routes()


@contextmanager
def listening(routes: Routes, **options: Any) -> Iterator[HttpServer]:
    config = ServerConfig(**{"http_port": 0, **options})
    server = HttpServer(config, routes.application())
    server.start()
    try:
        yield server
    finally:
        routes.go.set()
        server.stop(0.0)


@contextmanager
def client(server: HttpServer, **options: Any) -> Iterator[socket.socket]:
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, timeout=PATIENCE, **options) as connection:
        yield connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    received = bytearray()
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def answer(connection: socket.socket, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
    """The next one: status, headers by their names in lower case, body."""
    received = bytearray()
    while b"\r\n\r\n" not in received:
        data = connection.recv(1)
        assert data, f"it ended after {bytes(received)!r}"
        received += data
    first, *lines = received.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    wanted, body = 0 if head_only else int(headers.get("content-length", "0")), b""
    while len(body) < wanted:
        body += connection.recv(wanted - len(body))
    return int(first.split()[1]), headers, body


def ask(connection: socket.socket, text: bytes = GET) -> tuple[int, dict[str, str], bytes]:
    connection.sendall(text)
    return answer(connection)


def is_answered(server: HttpServer) -> bool:
    """Whether there is room for one more connection."""
    with client(server) as connection:
        connection.sendall(GET)
        return bool(connection.recv(1))


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= FAULTS]


def test_a_connection_is_kept_for_many_requests(routes: Routes) -> None:
    with listening(routes) as server, client(server) as connection:
        peer = ":".join(map(str, connection.getsockname())).encode()
        for _ in range(3):
            status, headers, body = ask(connection)
            assert (status, body) == (200, peer)
            assert "connection" not in headers


def test_http_1_0_is_answered_and_closed(routes: Routes) -> None:
    with listening(routes) as server, client(server) as connection:
        connection.sendall(b"GET /peer HTTP/1.0\r\n\r\n")
        head, _, body = rest(connection).partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert body == ":".join(map(str, connection.getsockname())).encode()


def test_requests_sent_ahead_are_answered_in_their_order(routes: Routes) -> None:
    posts = [
        b"POST /length HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (n, bytes(n)) for n in range(50)
    ]
    with listening(routes) as server, client(server) as connection:
        connection.sendall(b"".join(posts))
        assert [answer(connection)[2] for _ in posts] == [b"%d" % n for n in range(50)]


def test_who_sends_too_many_ahead_gets_the_answers_that_are_due_and_no_more(routes: Routes) -> None:
    first = b"GET /waits HTTP/1.1\r\n\r\n"
    with listening(routes) as server, client(server) as connection:
        connection.sendall(first)
        routes.asked.acquire(timeout=PATIENCE)
        connection.sendall(GET * (MOST_AHEAD + 50))
        routes.go.set()
        answers = rest(connection)
        assert answers.count(b"HTTP/1.1 200") == MOST_AHEAD + 1
        assert answers.count(b"HTTP/1.1") == MOST_AHEAD + 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"BREW /pot HTTP/1.1\r\n\r\n", id="an unknown method"),
        pytest.param(b"GET http://[ HTTP/1.1\r\n\r\n", id="no URL"),
        pytest.param(b"GET /\xff HTTP/1.1\r\n\r\n", id="no ASCII"),
        pytest.param(b"GET / HTTP/1.1\r\nno header\r\n\r\n", id="no header"),
        pytest.param(b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n", id="a zero"),
        pytest.param(
            b"POST /length HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\n",
            id="two lengths",
        ),
        pytest.param(
            b"POST /length HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            id="lengths that differ",
        ),
        pytest.param(
            b"POST /length HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", id="no chunk"
        ),
    ],
)
def test_what_is_not_http_is_refused_without_a_word_in_the_log(
    routes: Routes, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(routes) as server, client(server) as connection:
        status, headers, body = ask(connection, text)
        assert (status, json.loads(body)) == (400, {"error": "this is not HTTP/1.1"})
        assert headers["connection"] == "close"
        assert HEADERS.items() <= {name: headers[name.lower()] for name in HEADERS}.items()
        assert rest(connection) == b""
    assert faults(caplog) == []


def test_what_follows_a_request_and_is_not_http_does_not_take_its_answer(routes: Routes) -> None:
    with listening(routes) as server, client(server) as connection:
        connection.sendall(b"GET /waits HTTP/1.1\r\n\r\n")
        routes.asked.acquire(timeout=PATIENCE)
        connection.sendall(b"\x00garbage\r\n\r\n")
        routes.go.set()
        assert answer(connection)[::2] == (200, b"waited")
        assert rest(connection) == b""


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "without an end"])
def test_a_head_may_be_so_large_and_no_larger(routes: Routes, whole: bool) -> None:
    fits = b"GET /peer HTTP/1.1\r\nA: %s\r\n\r\n" % (b"a" * (LARGEST_HEAD - 100))
    too_large = b"GET /peer HTTP/1.1\r\nA: %s" % (b"a" * (LARGEST_HEAD + 1))
    with listening(routes) as server, client(server) as connection:
        assert ask(connection, fits)[0] == 200
        connection.sendall(too_large + b"\r\n\r\n" * whole)
        if not whole:  # what came at once with the first byte does not count
            connection.sendall(b"a" * (LARGEST_HEAD + 1))
        assert rest(connection).startswith(b"HTTP/1.1 431")


def test_an_upgrade_is_not_made_and_the_request_answered(
    routes: Routes, caplog: pytest.LogCaptureFixture
) -> None:
    """Java's client asks for one with each connection's first request."""
    text = b"POST /length HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    text += b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nContent-Length: 3\r\n"
    with listening(routes) as server, client(server) as connection:
        for _ in range(3):
            assert ask(connection, text + b"\r\nabc")[::2] == (200, b"3")
        connection.sendall(text + b"\r\nab")
        connection.sendall(b"c" + GET)
        assert answer(connection)[2] == b"3"
        assert answer(connection)[0] == 200
    assert faults(caplog) == []


def slow_client(server: HttpServer, begin: bytes, piece: bytes) -> bytes:
    """What the server says to one that sends a few bytes again and again; it must end it."""
    received = bytearray()
    with client(server) as connection:
        connection.sendall(begin)
        connection.settimeout(0.05)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                connection.sendall(piece)
                while data := connection.recv(1 << 16):
                    received += data
                return bytes(received)
            except TimeoutError:
                continue
            except ConnectionError:  # what came before it can still be read
                return bytes(received) + rest(connection)
    raise AssertionError("it went on and on")


@pytest.mark.parametrize(
    ("begin", "piece", "answers"),
    [
        pytest.param(b"GET /peer HTTP/1.1\r\n", b"A: b\r\n", [b"408"], id="headers"),
        pytest.param(
            b"POST /length HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n",
            b"abc",
            [b"408"],
            id="a body",
        ),
        pytest.param(
            b"POST /nowhere HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n",
            b"abc",
            [b"404"],
            id="a body that nobody wants",
        ),
        pytest.param(b"\r\n", b"\r\n", [], id="empty lines"),
    ],
)
def test_a_client_that_sends_drop_by_drop_is_closed(
    routes: Routes, begin: bytes, piece: bytes, answers: list[bytes]
) -> None:
    with listening(routes, stall_timeout=1.0, max_connection_idle=1.0) as server:
        said = slow_client(server, begin, piece)
        assert re.findall(rb"HTTP/1\.1 (\d+)", said) == answers


def test_a_body_that_comes_at_its_own_pace_is_taken(routes: Routes) -> None:
    """2000 bytes a second, over twice the time that a stall may last."""
    with listening(routes, stall_timeout=1.0) as server, client(server) as connection:
        connection.sendall(b"POST /length HTTP/1.1\r\nContent-Length: 4400\r\n\r\n")
        for _ in range(22):
            connection.sendall(bytes(200))
            threading.Event().wait(0.1)
        assert answer(connection)[2] == b"4400"


def test_a_body_that_nobody_wants_is_not_taken_for_ever(routes: Routes) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nContent-Length: 10000000000\r\n\r\n"
    with listening(routes, max_message_bytes=MEGABYTE) as server, client(server) as connection:
        connection.sendall(head)
        with pytest.raises(ConnectionError):
            connection.sendall(bytes(1000 * MEGABYTE))


def test_a_body_that_nobody_wants_does_not_count_for_the_next(routes: Routes) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MEGABYTE * 2 // 3)
    with listening(routes, max_message_bytes=MEGABYTE) as server, client(server) as connection:
        for _ in range(3):
            assert ask(connection, head)[0] == 404
            connection.sendall(bytes(MEGABYTE * 2 // 3))
        assert ask(connection)[0] == 200


def test_a_client_that_does_not_read_its_answer_is_closed(
    routes: Routes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "serving.http")
    with listening(routes, stall_timeout=1.0) as server, client(server) as connection:
        connection.sendall(b"GET /much HTTP/1.1\r\n\r\n")
        until(lambda: "a client does not read its answers" in caplog.messages)
        assert len(rest(connection)) < MUCH


def test_over_tls_a_client_that_does_not_read_its_answers_is_closed_as_soon(
    routes: Routes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "serving.http")
    ca = authority(tmp_path, "ca")
    options: dict[str, Any] = files(ca.sign("server", "DNS:localhost"))
    config = ServerConfig(http_port=0, stall_timeout=1.0, **options)
    server = HttpServer(config, routes.application(), TlsWatch(config, SeriesWriter(tmp_path)))
    server.start()
    context = ssl.create_default_context(cafile=ca.certificate)
    try:
        with (
            client(server) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(b"GET /much HTTP/1.1\r\n\r\n")
            until(lambda: "a client does not read its answers" in caplog.messages)
            with suppress(ssl.SSLEOFError, ConnectionResetError):
                assert len(rest(connection)) < MUCH
    finally:
        server.stop(0.0)


def test_a_client_that_reads_its_answer_slowly_gets_it(routes: Routes) -> None:
    with listening(routes, stall_timeout=1.0) as server, client(server) as connection:
        connection.sendall(b"GET /much HTTP/1.1\r\n\r\n")
        began, received = time.monotonic(), 0
        while time.monotonic() < began + 2.5:
            received += len(connection.recv(MEGABYTE // 8))
            threading.Event().wait(0.05)
        while received < MUCH:
            data = connection.recv(MEGABYTE)
            assert data
            received += len(data)


@pytest.mark.parametrize(("option", "seconds"), [(0.0, KEEP_ALIVE), (20.0, 20.0)])
def test_a_connection_may_be_idle_as_long_as_the_option_says(
    routes: Routes, option: float, seconds: float
) -> None:
    """uvicorn, too, has a bound, which is shorter by default than what proxies count on."""
    limits = Limits.of(ServerConfig(max_connection_idle=option))
    loop = asyncio.new_event_loop()
    config = uvicorn.Config(routes.application(), log_config=None)
    connection = Connection(config, ServerState(), {}, loop, limits=limits)
    loop.close()
    assert connection.timeout_keep_alive == limits.idle == seconds


def test_idle_connections_are_closed(routes: Routes) -> None:
    idle = {"max_connection_idle": 1.0}
    with listening(routes, **idle) as server, client(server) as silent, client(server) as answered:
        assert ask(answered)[0] == 200
        assert rest(silent) == rest(answered) == b""


def test_a_connection_past_its_age_ends_with_an_answer_or_without_one(routes: Routes) -> None:
    age = {"max_connection_age": 0.5}
    with listening(routes, **age) as server, client(server) as idle, client(server) as busy:
        ended = "kept"
        while ended == "kept":  # each request is answered, the last one with a farewell
            status, headers, _ = ask(busy)
            assert status == 200
            ended = headers.get("connection", "kept")
        assert ended == "close"
        assert rest(busy) == rest(idle) == b""


def test_connections_beyond_the_most_are_closed_at_once(
    routes: Routes, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(routes, max_connections=2) as server:
        with client(server) as first, client(server) as second:
            assert ask(first)[0] == ask(second)[0] == 200
            with client(server) as third:
                assert rest(third) == b""
            assert ask(first)[0] == 200
        until(lambda: is_answered(server))
    assert faults(caplog) == []


def test_a_request_has_an_id_of_its_own_or_the_one_it_brought(routes: Routes) -> None:
    with listening(routes) as server, client(server) as connection:
        own = ask(connection)[1]["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", own)
        brought = b"GET /peer HTTP/1.1\r\nX-Request-Id: %s\r\n\r\n"
        assert ask(connection, brought % b"mine-1")[1]["x-request-id"] == "mine-1"
        assert ask(connection, brought % (1000 * b"a"))[1]["x-request-id"] == 200 * "a"
        strange = ask(connection, brought % b"\xfcber")[1]["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", strange)


def test_what_goes_wrong_is_logged_once_and_told_as_an_error(
    routes: Routes, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(routes) as server, client(server) as connection:
        status, headers, body = ask(connection, b"GET /fails HTTP/1.1\r\n\r\n")
        assert (status, json.loads(body)) == (500, {"error": "internal error"})
        assert vars(caplog.records[-1])["request_id"] == headers["x-request-id"]
        assert HEADERS.items() <= {name: headers[name.lower()] for name in HEADERS}.items()
        assert len(faults(caplog)) == 1
        assert ask(connection)[0] == 200
        connection.sendall(b"GET /broken HTTP/1.1\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 200")
        assert len(faults(caplog)) == 2


def test_a_client_that_goes_away_ends_what_it_asked_for_in_silence(
    routes: Routes, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(routes) as server:
        with client(server) as connection:
            connection.sendall(b"GET /waits HTTP/1.1\r\n\r\n")
            routes.asked.acquire(timeout=PATIENCE)
        routes.go.set()
        assert routes.ended.acquire(timeout=PATIENCE)
    assert faults(caplog) == []


def test_what_is_in_flight_is_answered_before_the_server_ends(routes: Routes) -> None:
    with listening(routes) as server, client(server) as busy, client(server) as idle:
        assert ask(idle)[0] == 200
        busy.sendall(b"GET /waits HTTP/1.1\r\n\r\n")
        routes.asked.acquire(timeout=PATIENCE)
        stopping = threading.Thread(target=server.stop, args=(PATIENCE,))
        stopping.start()
        assert rest(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            until(lambda: not is_answered(server))
        routes.go.set()
        status, headers, body = answer(busy)
        assert (status, headers["connection"], body) == (200, "close", b"waited")
        stopping.join(PATIENCE)
        assert not stopping.is_alive()


def test_a_server_that_drains_answers_and_ends_the_connection(routes: Routes) -> None:
    with listening(routes) as server, client(server) as kept:
        assert ask(kept)[0] == 200
        routes.draining = True
        assert ask(kept)[1]["connection"] == "close"
        assert rest(kept) == b""
        with client(server) as new:
            assert ask(new)[1]["connection"] == "close"


def test_neither_who_never_reads_nor_what_never_ends_keeps_a_server_from_ending(
    routes: Routes, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(routes) as server, client(server) as deaf, client(server) as waiting:
        deaf.sendall(b"GET /much HTTP/1.1\r\n\r\n")
        deaf.recv(1)
        waiting.sendall(b"GET /waits HTTP/1.1\r\n\r\n")
        routes.asked.acquire(timeout=PATIENCE)
        stopping = threading.Thread(target=server.stop, args=(0.2,))
        stopping.start()
        assert rest(waiting) == b""
        assert routes.ended.acquire(timeout=PATIENCE)
        routes.go.set()
        stopping.join(PATIENCE)
        assert not stopping.is_alive()
        assert threads_named("http") == set()
    assert faults(caplog) == []


def test_servers_that_come_and_go_leave_no_thread_and_no_descriptor() -> None:
    def come_and_go() -> None:
        routes = Routes()
        with listening(routes) as server, client(server) as kept, client(server) as waiting:
            assert ask(kept)[0] == 200
            waiting.sendall(b"GET /waits HTTP/1.1\r\n\r\n")
            routes.asked.acquire(timeout=PATIENCE)
            routes.go.set()
            assert answer(waiting)[0] == 200
            kept.sendall(b"GET /pe")

    def descriptors() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    come_and_go()
    before = descriptors()
    for _ in range(5):
        come_and_go()
    assert descriptors() == before
    wait_for_threads("http", 0)
    assert threads_named("asyncio") == set()


def test_a_port_that_is_taken_is_one_clear_line_and_leaves_nothing(routes: Routes) -> None:
    with listening(routes) as server:
        config = ServerConfig(http_port=server.port)
        second = HttpServer(config, routes.application())
        with pytest.raises(StartupError, match=f"--http-port: .*:{server.port}: Address already"):
            second.start()
        second.stop(0.0)
