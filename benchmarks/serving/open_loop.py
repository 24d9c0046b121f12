"""Open loop: requests leave at random times at a given rate, however slow the answers come.

h2load cannot do that: its --rps sends bursts every 10 ms. A latency counts from when the request
was due, so that waiting in front of a slow server is not left out. Statuses are told apart. It is
a process of its own that spins on its core; `offer` runs it, on stdout it reports JSON.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving import http2
from benchmarks.serving.process import pinned
from benchmarks.serving.wire import frame

CONNECTIONS = 4
WARM_UP = 1.0  # seconds that are offered, but not counted
_LAST_ANSWERS = 5.0  # seconds
_SPIN = 0.002  # seconds before a request is due in which the process does not sleep
_CODES = {code.value[0]: code.name for code in grpc.StatusCode} | {-1: "UNANSWERED"}
PERCENTILES = (50, 90, 99, 99.9)


@dataclass(frozen=True, slots=True)
class Offered:
    """What an offered load came to; latencies in milliseconds, of the answered ones."""

    offered_per_second: float  # as sent
    answered_per_second: float
    statuses: dict[str, int]  # gRPC code → requests; UNANSWERED ones never came back
    latency_ms: dict[str, float]  # by percentile; empty without an answer
    late_p99_ms: float  # how late the generator itself was


def offer(
    port: int, path: str, request: bytes, *, core: int, rate: float, seconds: float, scratch: Path
) -> Offered:
    """Offer so many requests per second for so long, after the warm-up."""
    body = scratch / "body"
    body.write_bytes(request)
    command = [sys.executable, "-m", "benchmarks.serving.open_loop", "--port", str(port)]
    command += ["--path", path, "--body", str(body), "--rate", str(rate)]
    command += ["--seconds", str(seconds)]
    result = subprocess.run(pinned(core, command), check=True, stdout=subprocess.PIPE, text=True)
    return Offered(**json.loads(result.stdout))


def arrivals(rate: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    """The times of a Poisson process, in seconds from 0, sorted."""
    generator = np.random.default_rng(seed)
    count = generator.poisson(rate * seconds)
    return np.sort(generator.uniform(0, seconds, count))


class Connection:
    """One connection: requests go out in order, as the server's window allows."""

    def __init__(self, port: int, path: str, body: bytes) -> None:
        self._authority = f"127.0.0.1:{port}"
        self._path = path
        self._body = body
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._out = bytearray(http2.opening())
        self._in = bytearray()
        self._window = http2.DEFAULT_WINDOW
        self._most = 100  # until the server's settings are there
        self._next_stream = 1
        self._waiting: deque[int] = deque()  # numbers of requests that may not go out yet
        self._number_of: dict[int, int] = {}  # stream → request

    def close(self) -> None:
        """End the connection."""
        self.socket.close()

    def send(self, number: int) -> None:
        """Send the request, or as soon as that is allowed."""
        self._waiting.append(number)
        self._fill()

    def flush(self) -> None:
        """Write what the socket takes."""
        if self._out:
            try:
                del self._out[: self.socket.send(self._out)]
            except BlockingIOError:
                return

    def receive(self) -> list[tuple[int, int]]:
        """Read once; the requests that ended, each with its gRPC status."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return []
        if not data:
            raise http2.Broken("the server closed the connection")
        self._in += data
        ended = []
        for each in http2.split(self._in):
            if each.kind == http2.HEADERS and each.flags & http2.END_STREAM:
                number = self._number_of.pop(each.stream)
                ended.append((number, http2.grpc_status(each.payload)))
            elif each.kind not in (http2.HEADERS, http2.DATA):
                self._control(each)
        if self._waiting:
            self._fill()
        return ended

    def _fill(self) -> None:
        body = self._body
        while self._waiting and self._window >= len(body) and len(self._number_of) < self._most:
            stream = self._next_stream
            self._next_stream += 2
            self._window -= len(body)
            self._number_of[stream] = self._waiting.popleft()
            self._out += http2.request(self._path, self._authority, stream, body)

    def _control(self, each: http2.Frame) -> None:
        if each.kind == http2.WINDOW_UPDATE and each.stream == 0:
            self._window += struct.unpack(">I", each.payload)[0]
        elif each.kind == http2.SETTINGS and not each.flags & http2.ACK:
            self._most = http2.most_streams(http2.settings(each.payload))
            self._out += http2.frame(http2.SETTINGS, http2.ACK, 0, b"")
        elif each.kind == http2.PING and not each.flags & http2.ACK:
            self._out += http2.frame(http2.PING, http2.ACK, 0, each.payload)
        # A server that answers before it read all of the request resets the stream after that.
        elif each.kind == http2.GOAWAY or each.stream in self._number_of:
            raise http2.Broken(f"the server sent {each}")


class Loop:
    """All connections and the clock: sends what is due, notes what came back and when."""

    def __init__(self, connections: list[Connection], due: NDArray[np.float64]) -> None:
        self._connections = connections
        self._due = due.tolist()
        self._by_descriptor = {each.socket.fileno(): each for each in connections}
        self.late = np.zeros(len(due))
        self.ended = np.full(len(due), np.nan)
        self.statuses = np.full(len(due), -1)

    def run(self) -> None:
        """Until all is sent and answered, or the last answers take too long."""
        sent, open_requests, total = 0, 0, len(self._due)
        give_up = self._due[-1] + _LAST_ANSWERS
        epoll = select.epoll()
        for descriptor in self._by_descriptor:
            epoll.register(descriptor, select.EPOLLIN)
        started = time.perf_counter()
        while (sent < total or open_requests) and time.perf_counter() - started < give_up:
            now = time.perf_counter() - started
            while sent < total and self._due[sent] <= now:
                self._connections[sent % len(self._connections)].send(sent)
                self.late[sent] = now - self._due[sent]
                sent += 1
                open_requests += 1
            for each in self._connections:
                each.flush()
            wait = max(0.0, self._due[sent] - now - _SPIN) if sent < total else _SPIN
            for descriptor, _ in epoll.poll(wait):
                ended = self._by_descriptor[descriptor].receive()
                self._note(ended, time.perf_counter() - started)
                open_requests -= len(ended)
        epoll.close()

    def _note(self, ended: list[tuple[int, int]], now: float) -> None:
        for number, status in ended:
            self.ended[number] = now
            self.statuses[number] = status


def summarise(
    due: NDArray[np.float64],
    late: NDArray[np.float64],
    ended: NDArray[np.float64],
    statuses: NDArray[np.int64],
    seconds: float,
) -> Offered:
    """Requests due after the warm-up; answers per second are those that came within that time."""
    end = WARM_UP + seconds
    counted = due >= WARM_UP
    answered = statuses == 0
    latencies = (ended - due)[counted & answered] * 1000
    within = answered & (ended >= WARM_UP) & (ended < end)
    codes = Counter(_CODES[code] for code in statuses[counted].tolist())
    return Offered(
        offered_per_second=float(counted.sum() / seconds),
        answered_per_second=float(within.sum() / seconds),
        statuses=dict(sorted(codes.items())),
        latency_ms={f"p{p:g}": float(np.percentile(latencies, p)) for p in PERCENTILES}
        if len(latencies)
        else {},
        late_p99_ms=float(np.percentile(late[counted], 99) * 1000),
    )


def main() -> None:
    """Print an Offered as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--body", type=Path, required=True, help="file: one request's message")
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    body = frame(arguments.body.read_bytes())
    if len(body) > http2.MAX_FRAME:
        parser.error(f"--body: at most {http2.MAX_FRAME} bytes fit into a frame")
    connections = [Connection(arguments.port, arguments.path, body) for _ in range(CONNECTIONS)]
    due = arrivals(arguments.rate, WARM_UP + arguments.seconds)
    loop = Loop(connections, due)
    loop.run()
    for each in connections:
        each.close()
    result = summarise(due, loop.late, loop.ended, loop.statuses, arguments.seconds)
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
