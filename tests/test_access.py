"""The access log: what was asked by whom, what came of it, and what it cost."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import (
    PATIENCE,
    crowd,
    publish_slow,
    publish_times,
    running_server,
    slow_request,
    times_request,
)

from serving.access import Caller, Sampling

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-00"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    publish_times(repository)
    return repository


def facts(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Of each line of the access log."""
    return [vars(record) for record in caplog.records if record.name == "serving.access"]


def test_without_the_option_nothing_is_logged(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running_server(models) as running:
        running.stub.ModelInfer(times_request(1))
    assert facts(caplog) == []


def test_a_request_is_one_line_with_what_it_cost(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = times_request(1, 2, 3)
    with running_server(models, access_log=1) as running:
        metadata = (("x-request-id", "of the call"), ("traceparent", TRACEPARENT))
        answer = running.stub.ModelInfer(request, metadata=metadata)
        assert running.server.inference.wait_until_idle(PATIENCE)  # with its line, too
        request.id = "of the request"
        running.stub.ModelInfer(request, metadata=metadata)
    first, second = facts(caplog)
    assert first["peer"].startswith(("ipv4:127.0.0.1:", "ipv6:%5B::1%5D:"))
    expected = {
        "rpc": "ModelInfer",
        "model": "times",
        "version": "1",
        "request_id": "of the call",
        "trace_id": TRACE_ID,
        "code": "OK",
        "rows": 3,
        "batch_rows": 3,
        "request_bytes": times_request(1, 2, 3).ByteSize(),
        "response_bytes": answer.ByteSize(),
    }
    assert {name: first[name] for name in expected} == expected
    assert second["request_id"] == "of the request"
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    assert 0 < sum(first[f"{stage}_seconds"] for stage in stages) < first["seconds"] < PATIENCE


def test_refusals_are_lines_too(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wrong = times_request(1)
    wrong.inputs[0].datatype = "FP64"
    with running_server(models, access_log=1) as running:
        infer = running.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", None, None
        )
        unknown = times_request(1, name="nosuch", version="7")
        for message in (unknown.SerializeToString(), wrong.SerializeToString(), b"no message"):
            with pytest.raises(grpc.RpcError):
                infer(message)
            assert running.server.inference.wait_until_idle(PATIENCE)
    told = [
        (line["code"], line.get("model"), line.get("version"), line.get("rows"))
        for line in facts(caplog)
    ]
    assert told == [
        ("NOT_FOUND", "nosuch", "7", None),
        ("INVALID_ARGUMENT", "times", "1", None),
        ("INVALID_ARGUMENT", None, None, None),
    ]
    assert facts(caplog)[0]["details"] == "model 'nosuch' is unknown"
    assert "queue_seconds" not in facts(caplog)[1]


def test_requests_refused_unread_are_lines_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    publish_slow(tmp_path)
    with running_server(tmp_path, access_log=1, max_in_flight=1, max_batch_size=1) as running:
        codes = [call.code().name for call in crowd(running, slow_request())]
    assert {"OK", "RESOURCE_EXHAUSTED"} == set(codes)
    told = facts(caplog)
    assert sorted(line["code"] for line in told) == sorted(codes)
    unread = [line for line in told if line["code"] != "OK"]
    assert {line["peer"] for line in unread} == {told[0]["peer"]}
    assert not any("model" in line for line in unread)


def test_each_request_of_a_stream_is_a_line(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    requests = [times_request(1, name=name) for name in ("times", "nosuch", "times")]
    for number, request in enumerate(requests):
        request.id = str(number)
    with running_server(models, access_log=1) as running:
        assert len(list(running.stub.ModelStreamInfer(iter(requests)))) == 3
    told = {(line["request_id"], line["rpc"], line["code"]) for line in facts(caplog)}
    rpc = "ModelStreamInfer"
    assert told == {("0", rpc, "OK"), ("1", rpc, "NOT_FOUND"), ("2", rpc, "OK")}


def test_one_in_so_many_is_logged(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running_server(models, access_log=4) as running:
        for number in range(9):
            request = times_request(number)
            request.id = str(number)
            running.stub.ModelInfer(request)
            assert running.server.inference.wait_until_idle(PATIENCE)
    assert [line["request_id"] for line in facts(caplog)] == ["0", "4", "8"]


def test_a_name_that_a_caller_chose_is_cut(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with (
        running_server(models, access_log=1) as running,
        pytest.raises(grpc.RpcError),
    ):
        running.stub.ModelInfer(times_request(1, name="x" * 100_000))
    (line,) = facts(caplog)
    assert line["model"] == "x" * 200


def test_a_sampling_takes_the_first_of_so_many_until_it_has_enough() -> None:
    sampling = Sampling(3, 2)
    assert [n for n in range(20) if sampling.takes_next()] == [0, 3]


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [(TRACEPARENT, TRACE_ID), ("", ""), ("00-short-b7ad6b7169203331-00", ""), (TRACE_ID, "")],
)
def test_a_trace_is_told_by_its_id(traceparent: str, trace_id: str) -> None:
    assert Caller("ModelInfer", "", "", traceparent).trace_id == trace_id


def test_who_calls_cannot_say_who_calls(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    forged = (("x-digits-peer", "ipv4:10.0.0.1:1"), ("x-digits-peer-identity", "CN=root"))
    with running_server(models, access_log=1) as running:
        running.stub.ModelInfer(times_request(1), metadata=forged)
        assert len(list(running.stub.ModelStreamInfer(iter([times_request(1)]), metadata=forged)))
        assert running.server.inference.wait_until_idle(PATIENCE)
    assert len(facts(caplog)) == 2
    for line in facts(caplog):
        assert line["peer"].startswith(("ipv4:127.0.0.1:", "ipv6:%5B::1%5D:"))
