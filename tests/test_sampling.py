"""One request in so many is logged, or traced, over either transport; over the native lane, which
chooses them, all others stay native.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import PATIENCE, Running, publish_times, times_request

from serving.families import Exported
from serving.pb import inference_pb2 as pb

Serve = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    publish_times(repository)
    return repository


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def ids(caplog: pytest.LogCaptureFixture, name: str = "serving.access") -> list[str]:
    """Of the requests that are lines of a log."""
    return [vars(record)["request_id"] for record in caplog.records if record.name == name]


def numbered(count: int) -> Iterator[pb.ModelInferRequest]:
    for number in range(count):
        request = times_request(number)
        request.id = str(number)
        yield request


def typed(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """The same as the lane passes it on."""
    request.inputs[0].contents.fp32_contents.append(1.0)
    del request.raw_input_contents[:]
    return request


def ask(running: Running, *requests: pb.ModelInferRequest, **options: Any) -> None:
    """One after the other, each until all is told of it."""
    for request in requests:
        running.stub.ModelInfer(request, timeout=PATIENCE, **options)
        assert running.server.inference.wait_until_idle(PATIENCE)


def answered_by_python(running: Running) -> int:
    """How many requests, by the bytes that it counted: the lane counts its own."""
    served = running.server.inference.registry.get("times", "")
    (one,) = numbered(1)
    return round(served.metrics.slots(Exported.request_bytes)[0] / one.ByteSize())


def test_a_sampled_log_leaves_all_others_to_the_lane(
    models: Path, serve: Serve, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(models, transport=transport, access_log=4) as running:
        ask(running, *numbered(9))
        assert answered_by_python(running) == (3 if transport == "native" else 9)
    assert ids(caplog) == ["0", "4", "8"]


def test_requests_that_go_by_python_anyhow_are_of_the_same_sample(
    models: Path, serve: Serve, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = [typed(each) if n % 3 else each for n, each in enumerate(numbered(13))]
    with serve(models, transport=transport, access_log=4) as running:
        ask(running, *mixed)
    assert ids(caplog) == ["0", "4", "8", "12"]


def test_refusals_are_of_the_sample_too(
    models: Path, serve: Serve, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(models, transport=transport, access_log=2) as running:
        for request in numbered(4):
            request.model_name = "nosuch"
            with pytest.raises(grpc.RpcError):
                running.stub.ModelInfer(request, timeout=PATIENCE)
            assert running.server.inference.wait_until_idle(PATIENCE)
    assert ids(caplog) == ["0", "2"]


def test_a_stream_s_requests_are_sampled_by_themselves(
    models: Path, serve: Serve, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(models, transport=transport, access_log=3) as running:
        for request in numbered(6):  # a stream each, as their order counts
            assert len(list(running.stub.ModelStreamInfer(iter([request]), timeout=PATIENCE))) == 1
            assert running.server.inference.wait_until_idle(PATIENCE)
    assert ids(caplog) == ["0", "3"]


def test_a_client_cannot_say_what_is_logged(
    models: Path, serve: Serve, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(models, transport=transport, access_log=3) as running:
        for chosen in ("log", "no"):
            ask(running, *numbered(3), metadata=(("x-digits-chosen", chosen),))
        ask(running, *map(typed, numbered(3)), metadata=(("x-digits-chosen", "log"),))
    assert ids(caplog) == ["0", "0", "0"]


def test_a_traced_model_leaves_all_but_the_sample_to_the_lane(
    models: Path, serve: Serve, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"trace_level": ("TIMESTAMPS",), "trace_rate": ("3",), "trace_count": ("2",)}
    with serve(models, transport=transport) as running:
        running.server.inference.admin.change_trace(settings, "")
        ask(running, *numbered(12))
        assert answered_by_python(running) == (2 if transport == "native" else 12)
        running.server.inference.admin.change_trace({"trace_level": ("OFF",)}, "times")
        running.server.inference.admin.change_trace({"trace_count": ("-1",)}, "")
        ask(running, *numbered(4))
        running.server.inference.admin.change_trace({"trace_level": ()}, "times")
        ask(running, *numbered(4))
        assert answered_by_python(running) == (4 if transport == "native" else 20)
    assert ids(caplog, "serving.trace") == ["0", "3", "0", "3"]
