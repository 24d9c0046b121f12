"""Bodies over HTTP: how much of them is held while they are received, and what becomes of each."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from conftest import PATIENCE, Running, publish_echo, publish_times, running_server, until
from test_overload import count

from serving.config import ServerConfig
from serving.errors import Overloaded
from serving.http.app import application
from serving.http.asking import LITTLE
from serving.http.binary_tensors import HEADER
from serving.http.bodies import SMALL, Bodies
from serving.http.server import HttpServer
from serving.http.services import Services
from serving.inference import InferenceService

MEGABYTE = 1 << 20
INFER = "/v2/models/times/infer"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    publish_times(tmp_path)
    publish_echo(tmp_path, "echo", (-1, -1))
    with running_server(tmp_path, allow_http=False, transport="grpcio") as server:
        yield server


@contextmanager
def listening(services: Services) -> Iterator[int]:
    """The port of HTTP for a server's parts, of which some are the test's."""
    server = HttpServer(ServerConfig(http_port=0), application(services))
    server.start()
    try:
        yield server.port
    finally:
        server.stop(0.0)


def services_of(running: Running, **parts: Any) -> Services:
    return dataclasses.replace(running.server.inference.services, **parts)


@contextmanager
def sending(port: int, path: str, length: int, sent: bytes) -> Iterator[socket.socket]:
    """A client that has sent so much of a body of that length, and goes no further."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{HEADER}: 2\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(head.encode() + sent)
        yield client


def test_large_bodies_leave_a_quarter_to_small_ones() -> None:
    bodies = Bodies(MEGABYTE)
    with bodies.one() as large:
        for _ in range(12):
            large.add(bytes(SMALL))
        with pytest.raises(Overloaded):
            large.add(b"x")
        with bodies.one() as small:
            small.add(bytes(SMALL))
            with pytest.raises(Overloaded):
                small.add(b"x")
        assert bodies.held == large.size == 12 * SMALL
    assert bodies.held == 0


def test_what_all_send_is_bounded_and_small_requests_go_on(running: Running) -> None:
    bodies = Bodies(MEGABYTE)
    padded = b'{"feedback": []}'.ljust(200_000)
    with (
        listening(services_of(running, bodies=bodies)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
    ):
        with sending(port, INFER, 8 * MEGABYTE, b"{}" + bytes(700_000)):
            until(lambda: bodies.held == 700_002)
            before = count(running, "rejected_total", reason="overloaded")
            for path in ("/v1/feedback", INFER):
                answer = client.post(path, content=padded)
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert count(running, "rejected_total", reason="overloaded") == before + 1
            assert client.post("/v1/feedback", content=padded[:100]).status_code == 200
        until(lambda: bodies.held == 0)
        assert client.post("/v1/feedback", content=padded).status_code == 200


def test_what_was_admitted_before_a_drain_is_answered(running: Running) -> None:
    bodies = Bodies(MEGABYTE)
    tensor = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[2.0]}]}'
    with listening(services_of(running, bodies=bodies)) as port:
        head = f"POST {INFER} HTTP/1.1\r\nContent-Length: {len(tensor)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(head.encode() + tensor[:10])
            until(lambda: bodies.held == 10)
            running.server.inference.service.draining = True
            client.sendall(tensor[10:])
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")


class Overheard:
    """An InferenceService, and the threads that requests are submitted on."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self.threads: list[str] = []

    def submit(self, *args: Any) -> Callable[[], None]:
        """As InferenceService has it."""
        self.threads.append(threading.current_thread().name)
        return self._service.submit(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)


def test_the_event_loop_does_not_parse_large_messages(running: Running) -> None:
    overheard = Overheard(running.server.inference.service)
    services = services_of(running, inference=cast(InferenceService, overheard))
    with listening(services) as port:
        for size in (4, 2 * LITTLE):
            tensor = {
                "name": "x_uint8",
                "datatype": "UINT8",
                "shape": [1, size],
                "data": [7] * size,
            }
            url = f"http://127.0.0.1:{port}/v2/models/echo/infer"
            httpx.post(url, json={"inputs": [tensor]}, timeout=PATIENCE)
    assert [each == "http" for each in overheard.threads] == [True, False]
