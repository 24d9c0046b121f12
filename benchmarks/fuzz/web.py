"""HTTP requests: JSON and binary bodies, paths, queries and headers, to the application in process;
and raw bytes, mostly no HTTP, to the server's socket.

Judges the status, that an error is JSON that says why, and that a good request is answered rightly.
A case is the request as HTTP/1.1 has it.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import select
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from random import Random
from typing import Any, NamedTuple
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

from benchmarks.fuzz import damage, images, messages, models
from benchmarks.fuzz.running import HANG, Target, Wrong
from serving.datatypes import DATATYPES, encode_raw
from serving.http.app import application
from serving.http.binary_tensors import HEADER

# Seconds that clients wait for answers before they hang up.
MOMENT = 0.05
STATUSES = {200, 307, 400, 403, 404, 405, 408, 413, 415, 429, 431, 501, 503, 504}
WORDS = (*messages.WORDS, "inputs", "outputs", "name", "shape", "datatype", "data", "parameters",
         "id",
         "binary_data", "binary_data_size", "pixels", "feedback", "prediction_id", "label", "ready",
         "settings", "trace_rate", "log_info", "model", "version")  # fmt: skip
FREE = {kind: {"name": f"in_{kind}", "datatype": kind, "shape": [2, 3]} for kind in models.FREE[2]}


class Asked(NamedTuple):
    """A request before it is bytes."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def case(self) -> bytes:
        """As HTTP/1.1 has it; of headers that are no Latin-1, what is left of them."""
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            *(f"{k}: {v}" for k, v in self.headers.items()),
        ]
        head = "\r\n".join(" ".join(line.splitlines()) for line in lines) + "\r\n\r\n"
        return head.encode("latin-1", errors="replace") + self.body


def good_json() -> dict[str, Any]:
    """What `free` takes, as JSON."""
    data = {kind: messages.values(kind, 2).tolist() for kind in FREE}
    return {"id": "some", "inputs": [{**FREE[kind], "data": data[kind]} for kind in FREE]}


def _infer_json(draw: Random) -> Asked:
    value = damage.json_of(draw, good_json() if draw.random() < 0.8 else _digits_json(), WORDS)
    path = f"/v2/models/{draw.choice(('free', 'free', 'digits', 'echo'))}/infer"
    return _encoded(draw, Asked("POST", path, {}, _text(draw, value)))


def _digits_json() -> dict[str, Any]:
    image = {"name": "images", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}
    outputs = [{"name": "labels"}, {"name": "probabilities", "parameters": {"classification": 2}}]
    return {"inputs": [image], "outputs": outputs, "parameters": {"timeout": 10**6}}


def _infer_binary(draw: Random) -> Asked:
    inputs, data = [], b""
    for kind in FREE:
        raw = encode_raw(DATATYPES[kind], messages.values(kind, 2))
        inputs.append({**FREE[kind], "parameters": {"binary_data_size": len(raw)}})
        data += raw
    value: Any = {"inputs": inputs, "parameters": {"binary_data_output": draw.random() < 0.5}}
    if draw.random() < 0.7:
        value = damage.json_of(draw, value, WORDS)
    else:
        data = damage.bytes_of(draw, data)
    header = _text(draw, value)
    length = len(header) if draw.random() < 0.8 else damage.whole(draw)
    return _encoded(
        draw, Asked("POST", "/v2/models/free/infer", {HEADER: str(length)}, header + data)
    )


def _classify(draw: Random) -> Asked:
    path = draw.choice(("/v1/classify", "/v1/classify?model=digits", "/v1/classify?model=digits"))
    if draw.random() < 0.5:
        return Asked("POST", path, {"Content-Type": "image/png"}, images.file(draw))
    value: Any = {"pixels": images.drawn(draw).tolist()}
    if draw.random() < 0.8:
        value = damage.json_of(draw, value, WORDS)
    return Asked("POST", path, {"Content-Type": "application/json"}, _text(draw, value))


def _other(draw: Random) -> Asked:
    """All else that takes a body, or none."""
    method, path, value = draw.choice(
        (
            ("POST", "/v1/feedback", {"feedback": [{"prediction_id": "A" * 60, "label": "7"}]}),
            ("POST", "/v2/repository/index", {"ready": True}),
            ("POST", "/v2/logging", {"log_info": True, "log_verbose_level": 0}),
            ("POST", "/v2/trace/setting", {"trace_rate": "100", "trace_level": ["OFF"]}),
            ("POST", "/v2/models/free/trace/setting", {"trace_count": 5}),
            ("POST", "/v2/repository/models/free/load", {"parameters": {}}),
            ("POST", "/v2/systemsharedmemory/region/x/register", {"key": 1}),
            *(("GET", each, {}) for each in READ),
        )
    )
    body = b"" if method == "GET" else _text(draw, damage.json_of(draw, value, WORDS))
    if draw.random() < 0.4:
        path = damage.bytes_of(draw, path.encode()).decode("latin-1").replace(" ", "%20")
    if draw.random() < 0.2:
        path += "?" + damage.text(draw, WORDS).replace(" ", "+") + "=" + damage.text(draw, WORDS)
    method = draw.choice((method, method, method, "GET", "POST", "PUT", "OPTIONS", "HEAD", "X"))
    return Asked(method, path if path.startswith("/") else "/" + path, {}, body)


READ = (
    *("/", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/free", "/v2/models/stats"),
    *("/v2/models/free/ready", "/v2/models/free/versions/1", "/v2/models/free/versions/1/config"),
    *("/v2/models/digits/stats", "/v1/quality", "/openapi.json", "/v2/logging", "/static/page.js"),
)
_HEADERS: dict[str, tuple[str, ...]] = {
    "Host": ("localhost", "[", "[::1]:1", "a:b:c", "x" * 3000, "é", "127.0.0.1:99999", "http://["),
    "Origin": ("null", "http://[", "http://localhost", "http://a", "\u00bd", "http://\u00bd"),
    "Sec-Fetch-Site": ("cross-site", "same-origin", "none", ""),
    "Content-Length": ("0", "9" * 5000, "-1", "5", "1e3"),
    "Content-Type": ("application/json; charset=x", "text/plain", ";", "application/json"),
    "Content-Encoding": ("gzip", "deflate", "identity", "br", "GZIP", "gzip, gzip"),
    "Accept-Encoding": ("gzip", "deflate;q=nan", "*;q=x", "gzip;q=1e999,,;", "deflate, gzip"),
    "X-Request-Id": ("mine", "\x7f", "é", "x" * 3000),
    "Traceparent": ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "x"),
    "Range": ("bytes=0-", "bytes=-1", "bytes=5-1", "lines=1", "bytes=" + "0-1," * 500),
    "If-Modified-Since": ("x", "Sun, 06 Nov 1994 08:49:37 GMT"),
    HEADER: ("0", "1", "9" * 20, "-1", "x"),
}


def _text(draw: Random, value: Any) -> bytes:
    """JSON of some style, seldom with faults in its bytes."""
    kind = draw.random()
    text = json.dumps(value, ensure_ascii=kind < 0.7).encode(errors="surrogatepass")
    if kind < 0.1:
        return damage.bytes_of(draw, text, [json.dumps(good_json()).encode()])
    if kind < 0.12:
        return text.decode(errors="replace").encode("utf-16")
    return b"[" * draw.choice((100, 100_000)) if kind < 0.122 else text


def _encoded(draw: Random, asked: Asked) -> Asked:
    """Seldom compressed, seldom soundly."""
    kind = draw.random()
    if kind < 0.9:
        return asked
    packed = gzip.compress(asked.body) if kind < 0.95 else zlib.compress(asked.body)
    if kind > 0.98:
        packed = damage.bytes_of(draw, packed)
    name = "gzip" if kind < 0.95 else "deflate"
    return asked._replace(headers={**asked.headers, "Content-Encoding": name}, body=packed)


MAKERS: tuple[Callable[[Random], Asked], ...] = (
    _infer_json, _infer_json, _infer_json, _infer_binary, _infer_binary, _classify, _other,
)  # fmt: skip
GOOD = Asked("POST", "/v2/models/free/infer", {}, json.dumps(good_json()).encode())


def asked(draw: Random) -> Asked:
    """One more request, in one of five with an odd header."""
    made = draw.choice(MAKERS)(draw)
    headers = {"Host": "localhost", **made.headers}
    if draw.random() < 0.2:
        for name in draw.sample(list(_HEADERS), draw.choice((1, 2))):
            headers[name] = draw.choice(_HEADERS[name])
    return made._replace(headers=headers)


class Bodies:
    """The target: the application, as uvicorn calls it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._loop = asyncio.new_event_loop()

    def case(self, draw: Random) -> bytes:
        """One more request."""
        return asked(draw).case()

    def judge(self, cases: Sequence[bytes]) -> list[str]:
        """All at once, and a good one."""
        return self._loop.run_until_complete(asyncio.wait_for(self._judge(cases), HANG / 2))

    async def _judge(self, cases: Sequence[bytes]) -> list[str]:
        answers = await asyncio.gather(*(self._ask(case) for case in (*cases, GOOD.case())))
        told = [_verdict(*each) for each in zip(cases, answers, strict=False)]
        _require_good(answers[-1], cases)
        return told

    async def _ask(self, case: bytes) -> tuple[int, bytes]:
        head, _, body = case.partition(b"\r\n\r\n")
        sent: list[Message] = []
        unsent = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if unsent:
                return unsent.pop()
            await asyncio.get_running_loop().create_future()  # the client stays
            return {}

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(_scope(head), receive, send)
        if [each["type"] for each in sent].count("http.response.start") != 1:
            raise Wrong(f"{len(sent)} messages are no answer", case)
        return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:])

    def close(self) -> None:
        """Nothing of it is left."""
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def _scope(head: bytes) -> dict[str, Any]:
    line, *headers = head.split(b"\r\n")
    method, target = [*line.split(b" "), b"/"][:2]
    path, _, query = target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": method.decode("latin-1"),
        "root_path": "",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "headers": [
            (name.strip().lower(), value.strip())
            for name, _, value in (each.partition(b":") for each in headers)
        ],
        "state": {},
    }


def _verdict(case: bytes, answer: tuple[int, bytes]) -> str:
    status, body = answer
    if status not in STATUSES:
        raise Wrong(f"{status}: {body[:500]!r}", case)
    if status >= 400 and not case.startswith(b"HEAD"):
        told = json.loads(body)
        not_ready = status == 503 and told.get("ready") is False
        if not not_ready and not (list(told) == ["error"] and isinstance(told["error"], str)):
            raise Wrong(f"{status}: {body[:500]!r} tells no error", case)
    return str(status)


def _require_good(answer: tuple[int, bytes], cases: Sequence[bytes]) -> None:
    status, body = answer
    outputs = {each["name"]: each["data"] for each in json.loads(body).get("outputs", [])}
    wanted = {f"out_{kind}": messages.values(kind, 2).reshape(-1).tolist() for kind in FREE}
    if status != 200 or outputs != wanted:
        raise Wrong(f"a good request came to {status}: {body[:500]!r}", *cases)


@contextmanager
def opened() -> Iterator[Target]:
    """The application over a server's own parts."""
    with models.server(allow_admin=True) as running:
        target = Bodies(application(running.inference.services))
        try:
            yield target
        finally:
            target.close()


class Sockets:
    """The target that is sent bytes, whatever they are; each on a connection of its own, which the
    server must end once it was answered, or the client has."""

    def __init__(self, port: int) -> None:
        self._port = port

    def case(self, draw: Random) -> bytes:
        """Requests with faults in their bytes, several on one connection, or noise."""
        kind = draw.random()
        if kind < 0.05:
            return draw.randbytes(draw.randrange(300))
        parts = []
        for _ in range(draw.choice((1, 1, 2, 5))):
            made = asked(draw)
            length = {"Content-Length": str(len(made.body))}
            parts.append(made._replace(headers={**length, **made.headers}).case())
        data = b"".join(parts)
        return data if kind < 0.3 else damage.bytes_of(draw, data, _ODD)

    def judge(self, cases: Sequence[bytes]) -> list[str]:
        """All at once; after a moment their clients have nothing more to say. Then a good one."""
        answers = self._talk(cases)
        length = {"Host": "localhost", "Content-Length": str(len(GOOD.body)), "Connection": "close"}
        (good,) = self._talk([GOOD._replace(headers=length).case()], patient=True)
        head, _, body = good.partition(b"\r\n\r\n")
        _require_good((int(head[9:12] or 0), body or b"{}"), cases)
        return [_statuses(*each) for each in zip(cases, answers, strict=True)]

    def _talk(self, cases: Sequence[bytes], *, patient: bool = False) -> list[bytes]:
        """What each is answered until the server has closed its connection."""
        with ExitStack() as stack:
            talks = [
                _Talk(stack.enter_context(socket.create_connection(("127.0.0.1", self._port))))
                for _ in cases
            ]
            for talk, case in zip(talks, cases, strict=True):
                talk.send(case)
            end = time.monotonic() + MOMENT
            while not patient and (left := end - time.monotonic()) > 0:
                open_ones = {talk.socket: talk for talk in talks if not talk.over}
                for ready in select.select(open_ones, (), (), left)[0] if open_ones else ():
                    open_ones[ready].hear()
                if not open_ones:
                    break
            for talk in talks:
                talk.finish(hang_up=not patient)
            return [bytes(talk.heard) for talk in talks]


class _Talk:
    """One connection, from the client's side."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.heard = bytearray()
        self.over = False
        connected.settimeout(HANG / 4)

    def send(self, data: bytes) -> None:
        """All of it, unless the server has heard enough."""
        with suppress(ConnectionResetError, BrokenPipeError):
            self.socket.sendall(data)

    def hear(self) -> None:
        """What is there; waits for it."""
        try:
            more = self.socket.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            more = b""
        self.heard += more
        self.over = not more

    def finish(self, *, hang_up: bool) -> None:
        """Hear all that is still said; TimeoutError where there is no end of it."""
        if hang_up and not self.over:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
        while not self.over:
            self.hear()


def _statuses(case: bytes, answer: bytes) -> str:
    """The first answer's."""
    for line in answer.split(b"\r\n"):
        if line.startswith(b"HTTP/1.1 ") and int(line.split(b" ")[1]) not in STATUSES:
            raise Wrong(f"{answer[:500]!r}", case)
    return answer[9:12].decode("latin-1") if answer else "closed"


_ODD = (
    b"GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n" * 3,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nFFFFFFFFFFFFFFFFF\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
)


@contextmanager
def socket_opened() -> Iterator[Target]:
    """A server that listens for HTTP."""
    with models.server(allow_http=True, allow_admin=True) as running:
        yield Sockets(running.http_port)
