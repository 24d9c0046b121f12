"""The log of a real server: every line of it can be read by a machine, and each failure is one."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import (
    PATIENCE,
    ROOT,
    Process,
    publish_model,
    publish_times,
    running_server,
    save,
    server_process,
    times_request,
)
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import Metric
from prometheus_client.registry import Collector

from model_repository import TensorSpec
from serving import logs
from serving.config import ServerConfig
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc
from serving.scrapes import MetricsServer

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def save_lookup(path: Path) -> None:
    """Looks rows up in a table of four: it fails for an index beyond."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(np.arange(4, dtype=np.float32), "table")],
    )
    save(graph, path)


def publish_lookup(repository: Path) -> None:
    inputs, outputs = TensorSpec("index", "INT64", (-1,)), TensorSpec("y", "FP32", (-1,))
    publish_model(repository, "lookup", save_lookup, (inputs,), (outputs,))


def lookup_request(*indices: int, request_id: str = "") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="lookup", id=request_id)
    request.inputs.add(name="index", datatype="INT64", shape=[len(indices)])
    request.raw_input_contents.append(np.array(indices, np.int64).tobytes())
    return request


def parsed(process: Process) -> list[dict[str, Any]]:
    """Every line of a server's standard error."""
    return [json.loads(line) for line in process.log]


def refused(stub: pb_grpc.GRPCInferenceServiceStub, request: pb.ModelInferRequest) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=PATIENCE)
    return f"{caught.value.code().name}: {caught.value.details()}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    publish_times(repository)
    publish_lookup(repository)
    return repository


def test_every_line_of_a_server_is_json_and_a_failure_is_one_of_them(models: Path) -> None:
    arguments = ("--log-format", "json", "--access-log", "1", "--log-level", "debug")
    with (
        server_process("--model-repository", str(models), *arguments) as process,
        contextlib.ExitStack() as stack,
    ):
        address = process.wait_for(r"gRPC on ([\w.:]+)")[1]
        stub = pb_grpc.GRPCInferenceServiceStub(stack.enter_context(grpc.insecure_channel(address)))
        assert stub.ModelInfer(lookup_request(1, 3), timeout=PATIENCE).model_name == "lookup"
        said = refused(stub, lookup_request(9, request_id="no. 5\nof 7"))
        assert said == "INTERNAL: the model failed; the server's log says why"
        unnamed = refused(stub, lookup_request(9))
        refused(stub, times_request(1, name="nosuch"))
        process.popen.send_signal(signal.SIGTERM)
        assert process.finish() == 0
    lines = parsed(process)
    assert all(RFC_3339.fullmatch(line["time"]) for line in lines)
    assert all(line.keys() >= {"level", "logger", "message"} for line in lines)
    first, second = [line for line in lines if line["level"] == "error"]
    assert (first["message"], first["logger"]) == ("a request failed", "serving.status")
    assert (first["model"], first["version"]) == ("lookup", "1")
    assert first["request_id"] == "no. 5\nof 7"
    assert first["exception"].startswith("Traceback (most recent call last):\n")
    assert "idx=9 must be within the inclusive range [-4,3]" in first["exception"]
    assert unnamed.endswith(f"the server's log says why (request {second['request_id']})")
    requests = [line for line in lines if line["logger"] == "serving.access"]
    codes = sorted(line["code"] for line in requests)
    assert codes == ["INTERNAL", "INTERNAL", "NOT_FOUND", "OK"]
    assert lines[-1]["message"] == "drained"


@pytest.mark.parametrize("access_log", [0, 1])
def test_a_failure_is_found_by_the_id_of_its_call_whatever_else_is_logged(
    models: Path, caplog: pytest.LogCaptureFixture, access_log: int
) -> None:
    metadata = (("x-request-id", "of the call"),)
    with running_server(models, access_log=access_log) as running:
        with pytest.raises(grpc.RpcError) as caught:
            running.stub.ModelInfer(lookup_request(9), timeout=PATIENCE, metadata=metadata)
        assert caught.value.details() == "the model failed; the server's log says why"
    (failure,) = [vars(each) for each in caplog.records if each.name == "serving.status"]
    names = {name: failure[name] for name in ("request_id", "model", "version")}
    assert names == {"request_id": "of the call", "model": "lookup", "version": "1"}


def test_lines_of_several_workers_say_whose_they_are(models: Path) -> None:
    arguments = ("--log-format", "json", "--workers", "2")
    with server_process("--model-repository", str(models), *arguments) as process:
        process.wait_for("all 2 workers are ready")
        process.popen.send_signal(signal.SIGTERM)
        assert process.finish() == 0
    ready = [line for line in parsed(process) if line["message"].startswith("ready in ")]
    assert sorted(line["worker"] for line in ready) == [0, 1]
    (drained,) = [line for line in parsed(process) if line["message"] == "drained"]
    assert "worker" not in drained


@pytest.mark.parametrize("workers", ["1", "2"])
def test_why_a_server_cannot_start_is_one_line(tmp_path: Path, workers: str) -> None:
    path = tmp_path / "nowhere"
    arguments = ("--log-format", "json", "--workers", workers)
    with server_process("--model-repository", str(path), *arguments) as process:
        assert process.finish() == 1
    *_, last = parsed(process)
    assert last["message"] == f"--model-repository: {path}: no such model repository"
    assert last["level"] == "critical"


PROGRAM = """
import threading, warnings
from serving import logs
from serving.config import ServerConfig
logs.configure("info", "{text_format}", 3)
class Bad:
    def __del__(self):
        raise ValueError("in a destructor")
def die():
    raise KeyError("in a thread")
Bad()
warnings.warn("a line\\nand another")
thread = threading.Thread(target=die, name="t1")
thread.start()
thread.join()
raise OSError("in the main thread")
"""


def stderr_of(program: str) -> str:
    command = [sys.executable, "-W", "default", "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stderr


def test_what_nobody_catches_and_warnings_are_lines_too() -> None:
    lines = [
        json.loads(line) for line in stderr_of(PROGRAM.format(text_format="json")).split("\n")[:-1]
    ]
    told = [
        (line["level"], line["logger"], line.get("exception", "").split("\n")[-1]) for line in lines
    ]
    assert told == [
        ("error", "serving", "ValueError: in a destructor"),
        ("warning", "py.warnings", ""),
        ("error", "serving", "KeyError: 'in a thread'"),
        ("critical", "serving", "OSError: in the main thread"),
    ]
    assert "a line\nand another" in lines[1]["message"]
    assert {line["worker"] for line in lines} == {3}


def test_a_person_reads_text_with_the_facts_behind_it() -> None:
    assert re.search(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ERROR serving\[3\]: thread t1 died\n"
        r"Traceback \(most recent call last\):\n",
        stderr_of(PROGRAM.format(text_format="human")),
        re.MULTILINE,
    )


@pytest.fixture
def said() -> Iterator[SimpleQueue[str]]:
    """The messages of the server's own logger, as they come."""
    queue: SimpleQueue[str] = SimpleQueue()
    handler = logging.Handler()
    handler.emit = lambda record: queue.put(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("serving").addHandler(handler)
    yield queue
    logging.getLogger("serving").removeHandler(handler)


class Broken(Collector):
    """Metrics that nobody can have."""

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        raise OSError("the counters are gone")


@pytest.fixture
def scraped(tmp_path: Path, said: SimpleQueue[str]) -> Iterator[MetricsServer]:
    """A metrics server that cannot collect."""
    server = MetricsServer(ServerConfig(metrics_port=0), tmp_path)
    server.registry.register(Broken())
    yield server
    server.stop()


def test_a_scrape_that_fails_is_a_line(
    scraped: MetricsServer, said: SimpleQueue[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://localhost:{scraped.port}/metrics", timeout=PATIENCE)
    caught.value.close()
    assert (caught.value.code, said.get(timeout=PATIENCE)) == (500, "a scrape failed")
    assert capfd.readouterr().err == ""


def test_a_scraper_that_goes_away_is_a_line(
    scraped: MetricsServer, said: SimpleQueue[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("localhost", scraped.port)) as connection:
        connection.sendall(b"GET /me")
        now = struct.pack("ii", 1, 0)  # closing then resets the connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
    assert re.fullmatch(
        r"a scrape from \('127.0.0.1', \d+\) failed: ConnectionResetError\(.*\)",
        said.get(timeout=PATIENCE),
    )
    assert capfd.readouterr().err == ""


def record(message: str, **facts: object) -> logging.LogRecord:
    values = {"name": "serving.x", "levelname": "INFO", "msg": message, "created": 0.0015, **facts}
    return logging.makeLogRecord(values)


@pytest.mark.parametrize(
    ("fact", "shown"),
    [
        ("plain-text_1.5", "plain-text_1.5"),
        (0.25, "0.25"),
        (None, "None"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ("x\nERROR serving: forged", '"x\\nERROR serving: forged"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("\u2028", '"\\u2028"'),
    ],
)
def test_no_fact_can_pass_for_another_or_for_a_line(fact: object, shown: str) -> None:
    line = logs.Human().format(record("said", fact=fact, more=1))
    assert line.endswith(f" INFO serving.x: said fact={shown} more=1")


def test_json_holds_whatever_a_fact_is() -> None:
    line = logs.Json().format(record("said %s", args=("\n\u2028",), path=Path("/x"), rows=3))
    assert line.isascii()
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.001Z",
        "level": "info",
        "logger": "serving.x",
        "message": "said \n\u2028",
        "path": "/x",
        "rows": 3,
    }
