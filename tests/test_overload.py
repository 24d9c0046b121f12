"""What both transports promise to more requests than there is room or time for, and to those that
are in flight when their caller, their model or the server goes.

A model whose requests share runs is queued by the transport's own batcher; another, always by
Python's.
"""

from __future__ import annotations

import contextlib
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import (
    LIFETIME,
    PATIENCE,
    SLOW_SIZE,
    Digits,
    Running,
    crowd,
    publish_slow,
    slow_request,
    until,
)
from prometheus_client.parser import text_string_to_metric_families

from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc
from serving.transport import RECEIVING_THREADS

Serve = Callable[..., AbstractContextManager[Running]]
CODE = grpc.StatusCode


@pytest.fixture(scope="module", params=[True, False], ids=["shared", "alone"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one slow model, whose requests may share a run, or not."""
    path = tmp_path_factory.mktemp("slow")
    publish_slow(path, request.param)
    return path


@pytest.fixture(scope="module")
def slow(serve: Serve, models: Path, transport: str) -> Iterator[Running]:
    """It takes a row at a time and lets four requests wait."""
    options: dict[str, Any] = {"max_batch_size": 1, "max_queue_size": 4, "max_in_flight": 100}
    with serve(models, transport=transport, **options) as running:
        yield running


def count(running: Running, name: str, **labels: str) -> float:
    text = urllib.request.urlopen(running.metrics_url, timeout=PATIENCE).read().decode()
    found = (s for family in text_string_to_metric_families(text) for s in family.samples)
    name = f"inference_{name}"
    return sum(s.value for s in found if s.name == name and labels.items() <= s.labels.items())


def send(running: Running, *requests: pb.ModelInferRequest) -> list[Any]:
    return [running.stub.ModelInfer.future(each, timeout=LIFETIME) for each in requests]


def one_runs_and_others_wait(running: Running) -> list[Any]:
    """Calls in flight at this moment; the last of them waits."""
    calls: list[Any] = []

    def so_it_is() -> bool:
        calls.extend(send(running, slow_request(value=1.0)))
        waiting = count(running, "pending_requests")
        return waiting >= 4 and count(running, "in_flight_requests") > waiting

    until(so_it_is)
    return calls


def powers(calls: Sequence[Any]) -> list[float]:
    answers = [call.result().raw_output_contents[0] for call in calls]
    return [float(np.frombuffer(answer, np.float32)[0]) for answer in answers]


# Room


def test_a_full_queue_refuses_at_once_and_says_when_to_try_again(slow: Running) -> None:
    calls = crowd(slow, slow_request())
    refused = [call for call in calls if call.code() is CODE.RESOURCE_EXHAUSTED]
    assert {call.code() for call in calls} == {CODE.OK, CODE.RESOURCE_EXHAUSTED}
    trailers = dict(refused[0].trailing_metadata())
    assert 1 <= int(trailers["grpc-retry-pushback-ms"]) < 60_000
    assert refused[0].details() == "4 requests are already waiting"


def test_beyond_its_room_the_server_refuses_requests_unread_and_answers_all_else(
    serve: Serve, models: Path, transport: str
) -> None:
    with serve(models, transport=transport, max_batch_size=1, max_in_flight=3) as own:
        calls = crowd(own, slow_request())
        assert own.stub.ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE).live
        refused = [call for call in calls if call.code() is CODE.RESOURCE_EXHAUSTED]
        assert {f.details() for f in refused} == {"the server is overloaded"}
        assert int(dict(refused[0].trailing_metadata())["grpc-retry-pushback-ms"]) >= 10
        assert {call.code() for call in calls if call not in refused} == {CODE.OK}
        assert own.stub.ModelInfer(slow_request("after"), timeout=PATIENCE).id == "after"


def test_the_room_is_one_whichever_way_requests_come(
    serve: Serve, models: Path, transport: str
) -> None:
    """The lane passes typed contents on, and answers raw ones itself."""
    raw, typed = slow_request(), slow_request()
    typed.inputs[0].contents.fp32_contents.extend([0.0] * SLOW_SIZE)
    del typed.raw_input_contents[:]
    fullest = 0.0
    with serve(models, transport=transport, max_batch_size=1, max_in_flight=3) as own:
        calls = send(own, *[raw, typed] * 10)
        while not all(call.done() for call in calls):
            fullest = max(fullest, count(own, "in_flight_requests"))
        assert {call.code() for call in calls} == {CODE.OK, CODE.RESOURCE_EXHAUSTED}
        assert powers(send(own, typed) + send(own, raw)) == [0.0, 0.0]
    # grpcio's own counts a request when it has been received.
    assert 1 < fullest <= 3 + (RECEIVING_THREADS if transport == "grpcio" else 0)


def test_requests_of_streams_and_calls_share_the_room(
    serve: Serve, repository: Path, digits: Digits, transport: str
) -> None:
    options: dict[str, Any] = {"max_batch_size": 8, "max_queue_delay": LIFETIME, "max_in_flight": 3}

    def inside(number: int) -> None:
        until(lambda: count(own, "in_flight_requests") == number)

    def streamed() -> Any:
        return own.stub.ModelStreamInfer(iter([images(digits, 1)]), timeout=LIFETIME)

    with serve(repository, transport=transport, drain_timeout=0.1, **options) as own:
        calls = send(own, *[images(digits, 1)] * 3)
        inside(3)
        assert next(iter(streamed())).error_message == "the server is overloaded"
        for call in calls:
            call.cancel()
        inside(0)
        streams = [streamed() for _ in range(3)]
        inside(3)
        refused = own.stub.ModelInfer.future(images(digits, 1), timeout=LIFETIME)
        assert (refused.code(), refused.details()) == (
            CODE.RESOURCE_EXHAUSTED,
            "the server is overloaded",
        )
        streams[0].cancel()
        inside(2)
        (last,) = send(own, images(digits, 6))
        assert last.code() is CODE.OK  # it fills the batch
        assert [len(list(each)) for each in streams[1:]] == [1, 1]


def test_priority_1_goes_first(serve: Serve, models: Path, transport: str) -> None:
    with serve(models, transport=transport, max_batch_size=1) as own:
        low = send(own, *[slow_request() for _ in range(10)])
        urgent = slow_request()
        urgent.parameters["priority"].uint64_param = 1
        waited = queue_milliseconds(own.stub.ModelInfer.with_call(urgent, timeout=PATIENCE)[1])
        assert waited < max(map(queue_milliseconds, low))


def queue_milliseconds(call: Any) -> float:
    """What an answer's trailers say of its wait."""
    timing = dict(call.trailing_metadata())["server-timing"]
    return float(timing.split("queue;dur=")[1].split(",")[0])


# Time


def test_what_is_late_in_the_queue_never_runs(serve: Serve, models: Path, transport: str) -> None:
    with serve(models, transport=transport, max_batch_size=1) as own:
        calls = one_runs_and_others_wait(own)
        late, in_time = slow_request(), slow_request(value=1.0)
        late.parameters["timeout"].int64_param = 1000  # microseconds
        in_time.parameters["timeout"].int64_param = 10**6 * int(PATIENCE)
        too_late, good = send(own, late, in_time)
        calls.append(good)
        hurried = own.stub.ModelInfer.future(slow_request(), timeout=0.02)
        assert (too_late.code(), too_late.details()) == (
            CODE.DEADLINE_EXCEEDED,
            "the deadline passed before the request could run",
        )
        assert hurried.code() is CODE.DEADLINE_EXCEEDED
        assert powers(calls) == [1.0] * len(calls)
        until(lambda: count(own, "in_flight_requests") == 0)
        assert count(own, "executions_total") == len(calls)


@pytest.mark.parametrize("by_parameter", [True, False])
def test_the_deadline_ends_the_wait_for_company(
    serve: Serve, repository: Path, digits: Digits, transport: str, by_parameter: bool
) -> None:
    late = images(digits, 1)
    if by_parameter:
        late.parameters["timeout"].int64_param = 1000
    with serve(repository, transport=transport, max_queue_delay=0.3, max_batch_size=2) as own:
        call = own.stub.ModelInfer.future(late, timeout=PATIENCE if by_parameter else 0.05)
        assert call.code() is CODE.DEADLINE_EXCEEDED
        own.stub.ModelInfer(images(digits, 2))
        assert count(own, "batch_rows_sum", model="classifier") == 2


def images(digits: Digits, rows: int) -> pb.ModelInferRequest:
    some = digits.images[:rows]
    request = pb.ModelInferRequest(model_name="classifier", raw_input_contents=[some.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=some.shape)
    return request


# Who goes


def test_what_its_caller_cancels_leaves_the_queue_and_what_runs_is_not_answered(
    serve: Serve, models: Path, transport: str
) -> None:
    with serve(models, transport=transport, max_batch_size=1) as own:
        calls = one_runs_and_others_wait(own)
        for call in calls:
            call.cancel()
        until(lambda: count(own, "in_flight_requests") == 0)
        assert {call.code() for call in calls} <= {CODE.CANCELLED, CODE.OK}
        cancelled = count(own, "rejected_total", reason="cancelled")
        answered = count(own, "requests_total", code="OK")
        assert cancelled + answered == len(calls)
        assert cancelled >= 2
        (after,) = send(own, slow_request(value=1.25))
        assert powers([after]) == [pytest.approx(1.25**17)]
        # Of those that were cancelled, one ran at most.
        assert count(own, "executions_total") - answered - 1 in (0, 1)


def test_a_connection_that_is_cut_takes_its_requests_along(
    serve: Serve, models: Path, transport: str
) -> None:
    with serve(models, transport=transport, max_batch_size=1) as own:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(own.address, options) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            calls = [stub.ModelInfer.future(slow_request(), timeout=LIFETIME) for _ in range(20)]
            until(lambda: count(own, "pending_requests") > 2)
        assert CODE.CANCELLED in {call.code() for call in calls}
        until(lambda: count(own, "in_flight_requests") == 0)
        cancelled = count(own, "rejected_total", reason="cancelled")
        answered = count(own, "requests_total", code="OK")
        assert cancelled > 0
        assert cancelled + answered <= 20
        assert count(own, "executions_total") - answered in (0, 1)


def test_a_model_that_is_unloaded_answers_what_it_was_asked_before(
    serve: Serve, models: Path, transport: str
) -> None:
    explicit: dict[str, Any] = {"model_control_mode": "explicit", "load_model": ("slow",)}
    with serve(models, transport=transport, max_batch_size=1, **explicit) as own:
        calls = one_runs_and_others_wait(own)
        own.server.inference.admin.unload("slow")
        assert powers(calls) == [1.0] * len(calls)
        with pytest.raises(grpc.RpcError) as caught:
            own.stub.ModelInfer(slow_request(), timeout=PATIENCE)
        assert (caught.value.code(), caught.value.details()) == (
            CODE.UNAVAILABLE,
            "model 'slow' version 1 is not served: was unloaded",
        )
        own.server.inference.admin.load("slow")
        assert powers(send(own, slow_request(value=1.5))) == [pytest.approx(1.5**17)]


def test_a_server_that_stops_answers_what_it_was_asked_before(
    serve: Serve, models: Path, transport: str
) -> None:
    with contextlib.ExitStack() as clients:
        with serve(models, transport=transport, max_batch_size=1, drain_timeout=LIFETIME) as own:
            channel = clients.enter_context(grpc.insecure_channel(own.address))
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            calls: list[Any] = []

            def all_are_inside() -> bool:
                if sum(not call.done() for call in calls) < 3:
                    more = [slow_request(value=1 + n / 8) for n in range(6)]
                    calls.extend(stub.ModelInfer.future(each, timeout=LIFETIME) for each in more)
                left = sum(not call.done() for call in calls)
                return 2 <= left == count(own, "in_flight_requests")

            until(all_are_inside)
        expected = [(1 + n / 8) ** 17 for n in range(6)] * (len(calls) // 6)
        assert powers(calls) == pytest.approx(expected)
        assert stub.ModelInfer.future(slow_request(), timeout=PATIENCE).code() is CODE.UNAVAILABLE


def test_a_stream_ends_with_the_first_request_that_comes_while_the_server_stops(
    serve: Serve, repository: Path, digits: Digits, transport: str
) -> None:
    """Something in flight keeps the server from having stopped."""
    outgoing: SimpleQueue[pb.ModelInferRequest | None] = SimpleQueue()
    options: dict[str, Any] = {"max_queue_delay": LIFETIME, "max_batch_size": 2}
    with serve(repository, transport=transport, drain_timeout=LIFETIME, **options) as own:
        answers: Any = own.stub.ModelStreamInfer(iter(outgoing.get, None), timeout=LIFETIME)
        outgoing.put(images(digits, 2))
        assert next(answers).error_message == ""
        waits: Any = own.stub.ModelInfer.future(images(digits, 1), timeout=LIFETIME)
        until(lambda: count(own, "pending_requests") == 1)
        stops = threading.Thread(target=own.server.stop)
        stops.start()
        until(lambda: own.server.inference.service.draining)
        outgoing.put(images(digits, 2))
        outgoing.put(images(digits, 2))
        assert next(answers).error_message == "the server is stopping"
        assert answers.code() is CODE.UNAVAILABLE
        assert answers.details() == "the server is stopping"
        waits.cancel()
        outgoing.put(None)
        stops.join(PATIENCE)
        assert not stops.is_alive()


def test_a_server_that_stops_waits_no_longer_than_it_was_told(
    serve: Serve, repository: Path, digits: Digits, transport: str
) -> None:
    options: dict[str, Any] = {"max_queue_delay": LIFETIME, "max_batch_size": 8}
    with contextlib.ExitStack() as clients:
        with serve(repository, transport=transport, drain_timeout=0.1, **options) as own:
            channel = clients.enter_context(grpc.insecure_channel(own.address))
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            call = stub.ModelInfer.future(images(digits, 1), timeout=LIFETIME)
            until(lambda: count(own, "pending_requests") == 1)
        assert call.code() in (CODE.UNAVAILABLE, CODE.CANCELLED)


def test_after_a_storm_of_answers_deadlines_and_cancellations_nothing_is_left(
    serve: Serve, repository: Path, digits: Digits, transport: str
) -> None:
    options: dict[str, Any] = {"instance_count": 2, "max_batch_size": 2, "max_queue_size": 50}
    random = np.random.default_rng(7)
    with serve(repository, transport=transport, **options) as own:
        request = images(digits, 1)
        calls: list[Any] = []
        for number in range(1000):
            wait = float(random.choice([1e-3, LIFETIME]))
            calls.append(own.stub.ModelInfer.future(request, timeout=wait))
            if random.random() < 0.2:
                calls[int(random.integers(max(0, number - 20), number + 1))].cancel()
        codes = {call.code() for call in calls}
        assert codes <= {
            CODE.OK,
            CODE.CANCELLED,
            CODE.DEADLINE_EXCEEDED,
            CODE.RESOURCE_EXHAUSTED,
        }
        for gauge in ("in_flight_requests", "pending_requests", "instances_busy"):
            until(lambda gauge=gauge: count(own, gauge) == 0)  # type: ignore[misc]
        labels = np.frombuffer(own.stub.ModelInfer(request).raw_output_contents[1], np.int64)
        assert labels.tolist() == digits.classes[:1].tolist()
