"""Spans, as a collector gets them: a real server, and the receiving end of OTLP over HTTP."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import (
    LIFETIME,
    PATIENCE,
    ROOT,
    publish_times,
    running_server,
    server_process,
    times_request,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from serving.pb import inference_pb2_grpc as pb_grpc

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=1"))
UNSAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
STAGES = ["queue", "compute_input", "compute_infer", "compute_output"]
METHOD = "inference.GRPCInferenceService/ModelInfer"


class Collector(ThreadingHTTPServer):
    """Keeps what is sent to /v1/traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.received: list[ResourceSpans] = []

    @property
    def spans(self) -> list[Span]:
        """All that came, by start, and those around others first."""
        spans = [s for r in self.received for scope in r.scope_spans for s in scope.spans]
        return sorted(spans, key=lambda s: (s.start_time_unix_nano, -s.end_time_unix_nano))


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        found = self.path == "/v1/traces"
        if found:
            self.server.received.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """The test tells what matters."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.05,))
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    publish_times(repository)
    return repository


def attributes(of: Span | ResourceSpans) -> dict[str, str | int]:
    pairs = of.attributes if isinstance(of, Span) else of.resource.attributes
    return {
        pair.key: pair.value.string_value or pair.value.int_value  # of the two kinds that we send
        for pair in pairs
    }


def test_a_sampled_request_is_a_span_with_its_stages_inside(
    models: Path, collector: Collector
) -> None:
    request = times_request(1, 2, 3)
    request.id = "mine"
    with running_server(models, otlp_endpoint=f"{collector.url}/") as running:
        before = time.time_ns()
        running.stub.ModelInfer(request, metadata=SAMPLED)
        assert running.server.inference.wait_until_idle(PATIENCE)
        after = time.time_ns()
    root, *stages = collector.spans
    assert (root.name, root.kind) == (METHOD, Span.SPAN_KIND_SERVER)
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert (root.trace_state, root.status.code) == ("vendor=1", Status.STATUS_CODE_UNSET)
    peer = attributes(root).pop("network.peer.address")
    assert peer in ("127.0.0.1", "::1")
    assert attributes(root) == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
        "network.peer.address": peer,
        "inference.model.name": "times",
        "inference.model.version": "1",
        "inference.request.id": "mine",
        "inference.request.rows": 3,
    }
    assert [stage.name for stage in stages] == STAGES
    assert {stage.trace_id.hex() for stage in stages} == {TRACE}
    assert {stage.parent_span_id for stage in stages} == {root.span_id}
    assert {attributes(stage)["inference.batch.rows"] for stage in stages} == {3}
    starts = [span.start_time_unix_nano for span in (root, *stages)]
    ends = [span.end_time_unix_nano for span in (*stages, root)]
    assert starts[0] == starts[1]  # it waits from the moment it came
    assert starts[2:] == ends[:3]  # each stage begins where the one before ended
    assert before < starts[0] < ends[0] < ends[3] < ends[4] < after


def test_spans_say_which_process_they_are_from(models: Path, collector: Collector) -> None:
    with running_server(models, otlp_endpoint=collector.url) as running:
        running.stub.ModelInfer(times_request(1), metadata=SAMPLED)
    (resource,) = map(attributes, collector.received)
    assert resource["service.name"] == "digits"
    assert len(str(resource["service.instance.id"])) == 36


def test_only_what_the_caller_samples_is_traced(models: Path, collector: Collector) -> None:
    with running_server(models, otlp_endpoint=collector.url) as running:
        for metadata in ((), UNSAMPLED, (("traceparent", "nonsense"),)):
            running.stub.ModelInfer(times_request(1), metadata=metadata)
    assert collector.spans == []


def test_refused_requests_have_spans_and_only_the_servers_faults_are_errors(
    models: Path, collector: Collector
) -> None:
    with running_server(models, otlp_endpoint=collector.url) as running:
        with pytest.raises(grpc.RpcError):
            running.stub.ModelInfer(times_request(1, name="nosuch"), metadata=SAMPLED)
        assert running.server.inference.wait_until_idle(PATIENCE)
        running.server.inference.service.draining = True
        answers: Any = running.stub.ModelStreamInfer(iter([times_request(1)]), metadata=SAMPLED)
        assert next(answers).error_message == "the server is stopping"
    caller, stopping = collector.spans
    codes = [attributes(span)["rpc.response.status_code"] for span in (caller, stopping)]
    assert codes == ["NOT_FOUND", "UNAVAILABLE"]
    assert caller.status.code == Status.STATUS_CODE_UNSET
    assert stopping.status.code == Status.STATUS_CODE_ERROR
    assert stopping.status.message == "the server is stopping"
    assert stopping.name == "inference.GRPCInferenceService/ModelStreamInfer"


def test_requests_of_a_stream_are_children_of_its_caller(
    models: Path, collector: Collector
) -> None:
    with running_server(models, otlp_endpoint=collector.url) as running:
        requests = iter([times_request(1), times_request(2)])
        assert len(list(running.stub.ModelStreamInfer(requests, metadata=SAMPLED))) == 2
    roots = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert [root.parent_span_id.hex() for root in roots] == [PARENT, PARENT]
    assert len(collector.spans) == 2 * 5


@contextlib.contextmanager
def nobody_listens() -> Iterator[str]:
    """An address that refuses connections, as long as the block lasts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_without_a_collector_answers_go_on_and_the_end_does_not_wait(models: Path) -> None:
    with (
        nobody_listens() as endpoint,
        running_server(models, otlp_endpoint=endpoint, drain_timeout=LIFETIME) as running,
    ):
        for number in range(1700):  # five spans each: more than may wait
            answer = running.stub.ModelInfer(
                times_request(number), metadata=SAMPLED, timeout=PATIENCE
            )
            assert answer.model_version == "1"
        ended = time.monotonic()
    assert time.monotonic() - ended < PATIENCE / 2


def test_workers_are_instances_of_their_own_and_send_their_last_spans(
    models: Path, collector: Collector
) -> None:
    arguments = ("--workers", "2", "--otlp-endpoint", collector.url)
    with server_process("--model-repository", str(models), *arguments) as process:
        address = process.wait_for(r"workers listen on (\S+)")[1]
        process.wait_for("all 2 workers are ready")
        for _ in range(16):  # all to one of two once in 30,000 runs
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(address, options) as channel:
                stub = pb_grpc.GRPCInferenceServiceStub(channel)
                stub.ModelInfer(times_request(1), metadata=SAMPLED, timeout=PATIENCE)
        process.popen.send_signal(signal.SIGTERM)
        assert process.finish() == 0
    instances = {attributes(each)["service.instance.id"] for each in collector.received}
    assert (len(instances), len(collector.spans)) == (2, 16 * 5)


def test_without_the_extra_the_server_says_what_is_missing(models: Path) -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"  # as where it is not installed
        "from serving.main import main; sys.exit(main(sys.argv[1:], {}))"
    )
    options = ["--model-repository", str(models), "--otlp-endpoint", "http://127.0.0.1:4318"]
    command = [sys.executable, "-c", program, *options, "--grpc-port", "0", "--metrics-port", "0"]
    command += ["--http-port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: --otlp-endpoint needs the tracing extra, pip install 'digits[tracing]': "
    )
    assert done.stderr.count("\n") == 1
