"""HTTP as a part of the server: workers, draining, logs and metrics are those of gRPC."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from conftest import (
    LIFETIME,
    PATIENCE,
    Process,
    Running,
    publish_times,
    server_process,
    threads_named,
    until,
)
from prometheus_client.parser import text_string_to_metric_families

from serving.http.guard import HEADERS

Serve = Callable[..., AbstractContextManager[Running]]

READY = "/v2/health/ready"


@pytest.fixture(scope="module")
def times(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    publish_times(path)
    return path


@pytest.fixture(scope="module")
def http(serve: Serve, times: Path) -> Iterator[httpx.Client]:
    with serve(times, allow_http=True) as running, asking(running.http_url) as client:
        yield client


@contextmanager
def asking(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
        yield client


def infer(client: httpx.Client, **headers: str) -> httpx.Response:
    """2 times 1."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2.0]}
    return client.post("/v2/models/times/infer", json={"inputs": [tensor]}, headers=headers)


def metric(url: str, name: str, **labels: str) -> float:
    text = urllib.request.urlopen(url, timeout=PATIENCE).read().decode()
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def guarded(response: httpx.Response) -> bool:
    headers = {name: response.headers.get(name) for name in HEADERS}
    return headers == HEADERS and "x-request-id" in response.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", READY, 200),
        ("HEAD", READY, 200),
        ("GET", "/nowhere", 404),
        ("GET", "/../../etc/passwd", 404),
        ("POST", READY, 405),
        ("OPTIONS", READY, 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/models/nobody/infer", 404),
        ("GET", "/v2/", 404),
    ],
)
def test_every_answer_has_the_guards_headers(
    http: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert guarded(answer)
    if status >= 400 and method != "HEAD":
        assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ],
    ids=str,
)
def test_another_sites_page_sends_nothing(http: httpx.Client, headers: dict[str, str]) -> None:
    answer = infer(http, **headers)
    assert answer.status_code == 403
    assert guarded(answer)
    own = {"Origin": str(http.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert infer(http, **own).status_code == 200


def test_without_allow_http_nobody_listens(serve: Serve, times: Path) -> None:
    before = threads_named("http")
    with serve(times, allow_http=False) as running:
        assert running.server.http_port == 0
        assert threads_named("http") == before


def test_the_access_log_tells_of_requests_over_http(times: Path) -> None:
    flags = ("--model-repository", str(times), "--access-log", "1", "--log-format", "json")
    with server_process(*flags) as process:
        with asking(where(process)) as client:
            answer = infer(client, **{"X-Request-Id": "from-a-browser"})
            ends = client.get("/nowhere").extensions["network_stream"].get_extra_info("client_addr")
        assert answer.headers["x-request-id"] == "from-a-browser"
        process.wait_for('"message": "request"')
        line = json.loads(process.log[-1])
    assert (line["rpc"], line["model"], line["code"]) == ("ModelInfer", "times", "OK")
    assert line["peer"] == f"ipv4:127.0.0.1:{ends[1]}"
    assert line["request_id"] == "from-a-browser"


def where(process: Process) -> str:
    """HTTP's address, once the server is ready."""
    return process.wait_for(r"ready in .* HTTP on (http://[\w.:]+)")[1]


def test_a_client_that_goes_away_cancels_what_it_asked_for(serve: Serve, tmp_path: Path) -> None:
    """It waits for company that never comes."""
    publish_times(tmp_path)
    with serve(tmp_path, allow_http=True, max_queue_delay=LIFETIME, drain_timeout=0.1) as running:
        row = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}
        body = json.dumps({"inputs": [row]}).encode()
        head = f"POST /v2/models/times/infer HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        port = running.server.http_port
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(head.encode() + body)
            until(lambda: metric(running.metrics_url, "inference_in_flight_requests") == 1)
        reason = {"model": "times", "reason": "cancelled"}
        until(lambda: metric(running.metrics_url, "inference_rejected_total", **reason) == 1)


def test_readiness_goes_first_and_what_is_in_flight_is_answered(tmp_path: Path) -> None:
    """Six requests wait two seconds for a seventh, which does not come."""
    publish_times(tmp_path)
    flags = ("--model-repository", str(tmp_path), "--max-batch-size", "7", "--max-queue-delay", "2")
    with server_process(*flags) as process:
        metrics = process.wait_for(r"metrics on (\S+)")[1]
        url = where(process)
        with asking(url) as kept, asking(url) as idle, ThreadPoolExecutor(6) as pool:
            assert kept.get(READY).status_code == idle.get(READY).status_code == 200
            answers = [pool.submit(infer, idle) for _ in range(6)]
            until(lambda: metric(metrics, "inference_in_flight_requests") == 6)
            process.popen.send_signal(signal.SIGTERM)
            until(lambda: kept.get(READY).status_code == 503)
            refused = infer(kept)
            assert refused.status_code == 503
            assert refused.headers["connection"] == "close"
            assert [each.result().status_code for each in answers] == [200] * 6
            assert process.finish() == 0
    assert process.log[-1].endswith("drained\n")
    assert not [line for line in process.log if "ERROR" in line or "Traceback" in line]


def test_all_workers_answer_on_one_port_and_one_that_dies_is_replaced(times: Path) -> None:
    with server_process("--model-repository", str(times), "--workers", "2") as process:
        metrics = process.wait_for(r"metrics on (\S+)")[1]
        pids = [int(process.wait_for(r"worker \d is process (\d+)")[1]) for _ in range(2)]
        url = process.wait_for(r"HTTP on (http://[\w.:]+)")[1]
        process.wait_for("all 2 workers are ready")
        assert all(each > 0 for each in taken(url, pids))
        os.kill(pids[0], signal.SIGKILL)
        pids[0] = int(process.wait_for(r"worker \d is process (\d+)")[1])
        process.wait_for(r"worker \d is ready")
        assert all(each > 0 for each in taken(url, pids))
        for _ in range(5):
            with asking(url) as client:
                assert infer(client).json()["outputs"][0]["data"] == [2.0]
        assert metric(metrics, "inference_requests_total", model="times", code="OK") == 5
        process.popen.send_signal(signal.SIGTERM)
        assert process.finish() == 0


def taken(url: str, pids: list[int]) -> list[int]:
    """How many of some connections each of the processes has."""
    before = [sockets(pid) for pid in pids]
    with ExitStack() as stack:
        for _ in range(32):
            assert stack.enter_context(asking(url)).get(READY).status_code == 200
        return [sockets(pid) - had for pid, had in zip(pids, before, strict=True)]


def sockets(pid: int) -> int:
    links = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(os.readlink(each))
    return sum(each.startswith("socket:") for each in links)
