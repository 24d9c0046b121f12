"""What /metrics says of a real server's load: exact counts, and gauges that end at zero."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import (
    LIFETIME,
    PATIENCE,
    Digits,
    Running,
    crowd,
    publish_classifier,
    publish_model,
    publish_slow,
    save,
    slow_request,
    until,
)
from onnx import TensorProto, helper, numpy_helper
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from model_repository import TensorSpec
from serving.errors import Rejection
from serving.pb import inference_pb2 as pb
from serving.replies import Refusal, Reply

Serve = Callable[..., AbstractContextManager[Running]]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
CODE = grpc.StatusCode
SLOW = {"model": "slow", "version": "1"}
CLASSIFIER = {"model": "classifier", "version": "1"}
NOBODY = {"model": "", "version": ""}


def scraped(running: Running, accept: str = "text/plain") -> tuple[str, str]:
    """The media type and the text."""
    request = urllib.request.Request(running.metrics_url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return response.headers["Content-Type"], response.read().decode()


def samples(running: Running) -> Samples:
    families = text_string_to_metric_families(scraped(running)[1])
    return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def once_idle(running: Running) -> Samples:
    """A caller has its answer a moment before the server is done with the request."""
    assert running.server.inference.service.wait_until_idle(PATIENCE)
    return samples(running)


def rejected(found: Samples, **model: str) -> dict[str, float]:
    """By reason, those that are not zero."""
    by_reason = {
        reason.value: value(found, "inference_rejected_total", reason=reason, **model)
        for reason in Rejection
    }
    return {reason: count for reason, count in by_reason.items() if count}


def images(digits: Digits, rows: int, model: str = "classifier") -> pb.ModelInferRequest:
    some = digits.images[:rows]
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[some.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=some.shape)
    return request


def code_of(running: Running, request: pb.ModelInferRequest, timeout: float = PATIENCE) -> CODE:
    call = running.stub.ModelInfer.future(request, timeout=timeout)
    code: CODE = call.code()
    return code


def test_rows_and_bytes_are_those_of_the_messages(
    serve: Serve, repository: Path, digits: Digits
) -> None:
    with serve(repository) as own:
        requests = [images(digits, rows) for rows in (1, 3, 3, 8)]
        answers = [own.stub.ModelInfer(request) for request in requests]
        unknown_output, unknown_model = images(digits, 2), images(digits, 1, "nosuch")
        unknown_output.outputs.add(name="logits")
        assert code_of(own, unknown_output) is CODE.INVALID_ARGUMENT
        assert code_of(own, unknown_model) is CODE.NOT_FOUND
        found = once_idle(own)
    read = sum(each.ByteSize() for each in (*requests, unknown_output))
    assert value(found, "inference_request_bytes_total", **CLASSIFIER) == read
    assert value(found, "inference_request_bytes_total", **NOBODY) == unknown_model.ByteSize()
    made = sum(each.ByteSize() for each in answers)
    assert value(found, "inference_response_bytes_total", **CLASSIFIER) == made
    rows = "inference_request_rows"
    assert value(found, f"{rows}_sum", **CLASSIFIER) == 15
    bounds = ("1.0", "2.0", "4.0", "8.0", "+Inf")
    counts = [value(found, f"{rows}_bucket", le=bound, **CLASSIFIER) for bound in bounds]
    assert counts == [1, 1, 3, 4, 4]


def test_every_refusal_has_its_reason(serve: Serve, repository: Path, digits: Digits) -> None:
    # What waits would do so for minutes: it is late, or finds no room, or leaves.
    with serve(repository, max_queue_delay=LIFETIME, max_batch_size=4, max_queue_size=2) as own:
        many, late = images(digits, 5), images(digits, 1)
        late.parameters["timeout"].int64_param = 1  # microsecond
        assert code_of(own, many) is CODE.INVALID_ARGUMENT
        assert code_of(own, late) is CODE.DEADLINE_EXCEEDED
        assert code_of(own, images(digits, 1, "nosuch")) is CODE.NOT_FOUND
        calls = [own.stub.ModelInfer.future(images(digits, 1), timeout=LIFETIME) for _ in range(3)]
        until(lambda: any(call.done() for call in calls))
        (refused,) = [call for call in calls if call.done()]
        assert refused.code() is CODE.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()  # type: ignore[no-untyped-call]
        found = once_idle(own)
        assert rejected(found, **CLASSIFIER) == {
            "invalid_input": 1,
            "deadline": 1,
            "queue_full": 1,
            "cancelled": 2,
        }
        assert rejected(found, **NOBODY) == {"model_not_found": 1}
        assert value(found, "inference_pending_requests", **CLASSIFIER) == 0


def test_what_has_not_happened_yet_is_shown_as_zero(serve: Serve, repository: Path) -> None:
    with serve(repository) as own:
        found = samples(own)
    for code in ("OK", "INTERNAL", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"):
        assert value(found, "inference_requests_total", code=code, **CLASSIFIER) == 0
    assert value(found, "inference_requests_total", code="UNAVAILABLE", **NOBODY) == 0
    assert value(found, "inference_rejected_total", reason="failed", **CLASSIFIER) == 0


def test_a_model_that_fails_is_counted_as_such(serve: Serve, tmp_path: Path) -> None:
    with serve(publish_lookup(tmp_path)) as own:
        assert code_of(own, lookup(2)) is CODE.OK
        assert code_of(own, lookup(9)) is CODE.INTERNAL
        found = once_idle(own)
        model = {"model": "lookup", "version": "1"}
        assert rejected(found, **model) == {"failed": 1}
        assert value(found, "inference_instances_busy", **model) == 0


def test_what_is_refused_unread_is_counted_apart(serve: Serve, tmp_path: Path) -> None:
    publish_slow(tmp_path)
    with serve(tmp_path, max_batch_size=1, max_in_flight=3) as own:
        refused = sum(call.code() is CODE.RESOURCE_EXHAUSTED for call in crowd(own, slow_request()))
        found = once_idle(own)
        assert rejected(found, **NOBODY) == {"overloaded": refused}
        assert rejected(found, **SLOW) == {}
        assert value(found, "inference_request_bytes_total", **NOBODY) == 0
        own.server.inference.service.draining = True
        answer = own.server.inference.service.refuse_unread(
            slow_request("last").SerializeToString()
        )
        assert (answer.status, answer.request_id) == ("UNAVAILABLE", "last")
        found = samples(own)
        assert rejected(found, **NOBODY) == {"overloaded": refused, "draining": 1}
        size = slow_request("last").ByteSize()
        assert value(found, "inference_request_bytes_total", **NOBODY) == size


def test_how_full_the_server_is_shows_while_it_is_and_not_after(
    serve: Serve, tmp_path: Path
) -> None:
    publish_slow(tmp_path)
    with serve(tmp_path, max_batch_size=1, max_queue_size=9, max_in_flight=77) as own:

        def fullness(found: Samples) -> list[float | None]:
            return [
                value(found, "inference_in_flight_requests"),
                value(found, "inference_instances_busy", **SLOW),
                value(found, "inference_pending_requests", **SLOW),
            ]

        calls = []

        def one_runs_and_others_wait() -> bool:
            calls.append(own.stub.ModelInfer.future(slow_request(), timeout=LIFETIME))
            in_flight, busy, pending = fullness(samples(own))
            return pending is not None and 0 < pending == (in_flight or 0) - 1 and busy == 1

        until(one_runs_and_others_wait)
        assert {call.code() for call in calls} == {CODE.OK}
        found = once_idle(own)
        assert fullness(found) == [0, 0, 0]
        assert value(found, "inference_in_flight_limit_requests") == 77
        assert value(found, "inference_queue_limit_requests", **SLOW) == 9
        assert value(found, "inference_instances", **SLOW) == 1


def test_after_a_storm_of_answers_deadlines_and_cancellations_nothing_is_left(
    serve: Serve, repository: Path, digits: Digits
) -> None:
    """Gauges that are stored to by several threads must not keep an old value."""
    with serve(repository, instance_count=2, max_batch_size=2) as own:
        service = own.server.inference.service
        message = images(digits, 1).SerializeToString()
        outcomes: list[Reply | Refusal] = []

        def storm(seed: int) -> None:
            random = np.random.default_rng(seed)
            for _ in range(200):
                wait = random.choice([1e-4, 30.0])
                cancel = service.submit(message, time.monotonic() + wait, outcomes.append)
                if random.random() < 0.2:
                    cancel()

        threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = once_idle(own)
        assert len(outcomes) == 800
        assert value(found, "inference_in_flight_requests") == 0
        assert value(found, "inference_pending_requests", **CLASSIFIER) == 0
        until(lambda: value(samples(own), "inference_instances_busy", **CLASSIFIER) == 0)
        answered = value(found, "inference_requests_total", code="OK", **CLASSIFIER)
        assert (answered or 0) + sum(rejected(found, **CLASSIFIER).values()) == 800


def test_how_a_version_runs_is_shown_until_it_is_unloaded(
    serve: Serve, tmp_path: Path, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    runs = {"precision": "fp32", "device": "cpu", "provider": "CPUExecutionProvider"}
    options: dict[str, object] = {"model_control_mode": "explicit", "load_model": ("*",)}
    with serve(tmp_path, **options) as own:

        def gauges() -> list[float | None]:
            found = samples(own)
            names = ("model_ready", "queue_limit_requests", "instances", "pending_requests")
            shown = [value(found, f"inference_{name}", **CLASSIFIER) for name in names]
            return [value(found, "inference_model_info", **CLASSIFIER, **runs), *shown]

        assert gauges() == [1, 1, 256, 1, 0]
        own.server.inference.admin.unload("classifier")
        assert gauges() == [0, 0, 0, 0, 0]
        own.server.inference.admin.load("classifier")
        assert gauges() == [1, 1, 256, 1, 0]


def test_tritons_names_say_the_same_as_its_statistics(
    serve: Serve, repository: Path, digits: Digits
) -> None:
    with serve(repository, triton_metrics=True) as own:
        for rows in (1, 4):
            own.stub.ModelInfer(images(digits, rows))
        late, crowd = images(digits, 1), images(digits, 65)
        late.parameters["timeout"].int64_param = 1  # microsecond
        assert code_of(own, late) is CODE.DEADLINE_EXCEEDED
        assert code_of(own, crowd) is CODE.INVALID_ARGUMENT
        found = once_idle(own)
        (told,) = own.stub.ModelStatistics(pb.ModelStatisticsRequest(name="classifier")).model_stats
        inference = told.inference_stats
        counts = {
            "nv_inference_request_success": 2,
            "nv_inference_count": 5,
            "nv_inference_exec_count": 2,
            "nv_inference_pending_request_count": 0,
        }
        assert {name: value(found, name, **CLASSIFIER) for name in counts} == counts
        for name, duration in {
            "request": inference.success,
            "queue": inference.queue,
            "compute_input": inference.compute_input,
            "compute_infer": inference.compute_infer,
            "compute_output": inference.compute_output,
        }.items():
            microseconds = value(found, f"nv_inference_{name}_duration_us", **CLASSIFIER)
            assert microseconds == pytest.approx(duration.ns / 1000, abs=0.001)
            assert duration.count == 2
        failure = "nv_inference_request_failure"
        reasons = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
        failures = {each: value(found, failure, reason=each, **CLASSIFIER) for each in reasons}
        assert failures == {"REJECTED": 1, "CANCELED": 0, "BACKEND": 0, "OTHER": 1}
        seconds = value(found, "inference_model_load_seconds", **CLASSIFIER)
        assert value(found, "nv_model_load_duration_secs", **CLASSIFIER) == seconds


def test_tritons_names_are_shown_on_request_only(running: Running) -> None:
    assert "nv_" not in scraped(running)[1]


def test_prometheus_gets_openmetrics_where_it_asks_for_it(serve: Serve, repository: Path) -> None:
    with serve(repository, triton_metrics=True) as own:
        kind, text = scraped(own, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        families = openmetrics_families(text)  # type: ignore[no-untyped-call]
        named = {sample.name for family in families for sample in family.samples}
        plain = {name for name, _ in samples(own)}
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    assert named == plain
    assert {"inference_request_bytes_total", "nv_inference_count"} <= named


def publish_lookup(repository: Path) -> Path:
    """Publish a table of four numbers, which fails for a place beyond them."""

    def write(path: Path) -> None:
        node = helper.make_node("Gather", ["table", "place"], ["number"])
        place = helper.make_tensor_value_info("place", TensorProto.INT64, ["N"])
        number = helper.make_tensor_value_info("number", TensorProto.FLOAT, ["N"])
        table = numpy_helper.from_array(np.arange(4, dtype=np.float32), "table")
        save(helper.make_graph([node], "lookup", [place], [number], [table]), path)

    place, number = TensorSpec("place", "INT64", (-1,)), TensorSpec("number", "FP32", (-1,))
    publish_model(repository, "lookup", write, (place,), (number,))
    return repository


def lookup(place: int) -> pb.ModelInferRequest:
    raw = np.array([place], np.int64).tobytes()
    request = pb.ModelInferRequest(model_name="lookup", raw_input_contents=[raw])
    request.inputs.add(name="place", datatype="INT64", shape=[1])
    return request
