"""Health is told at once, in order and once, and watches that come and go hang nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from conftest import PATIENCE
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.health import HealthServicer

HEALTH = health_pb2.HealthCheckResponse
CODE = grpc.StatusCode


@pytest.fixture
def servicer() -> HealthServicer:
    return HealthServicer()


@pytest.fixture
def channel(servicer: HealthServicer) -> Iterator[grpc.Channel]:
    server = grpc.server(ThreadPoolExecutor(8))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        yield channel
    servicer.enter_graceful_shutdown()
    server.stop(0).wait()


def stub(channel: grpc.Channel) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(channel)


def asked(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


def test_a_service_is_unknown_until_it_has_a_status(
    servicer: HealthServicer, channel: grpc.Channel
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub(channel).Check(asked("model"), timeout=PATIENCE)
    assert (caught.value.code(), caught.value.details()) == (
        CODE.NOT_FOUND,
        "service 'model' is unknown",
    )
    servicer.set("model", HEALTH.NOT_SERVING)
    assert stub(channel).Check(asked("model"), timeout=PATIENCE).status == HEALTH.NOT_SERVING


def test_all_services_are_listed(servicer: HealthServicer, channel: grpc.Channel) -> None:
    servicer.set("", HEALTH.NOT_SERVING)
    servicer.set("model", HEALTH.SERVING)
    listed = stub(channel).List(health_pb2.HealthListRequest(), timeout=PATIENCE).statuses
    assert {name: each.status for name, each in listed.items()} == {
        "": HEALTH.NOT_SERVING,
        "model": HEALTH.SERVING,
    }


def test_a_watcher_hears_of_each_change_once_also_of_a_service_that_comes_later(
    servicer: HealthServicer, channel: grpc.Channel
) -> None:
    statuses = stub(channel).Watch(asked("model"), timeout=PATIENCE)
    assert next(statuses).status == HEALTH.SERVICE_UNKNOWN
    servicer.set("model", HEALTH.SERVING)
    assert next(statuses).status == HEALTH.SERVING
    servicer.set("model", HEALTH.SERVING)  # no change
    servicer.set("other", HEALTH.NOT_SERVING)
    servicer.enter_graceful_shutdown()
    assert next(statuses).status == HEALTH.NOT_SERVING
    servicer.set("model", HEALTH.SERVING)
    assert stub(channel).Check(asked("model"), timeout=PATIENCE).status == HEALTH.NOT_SERVING


def test_a_watch_that_is_over_leaves_nothing_behind(
    servicer: HealthServicer, channel: grpc.Channel
) -> None:
    for number in range(200):  # some are over before the server has them
        stub(channel).Watch(asked(f"service {number}"), timeout=PATIENCE).cancel()
    last = stub(channel).Watch(asked("last"), timeout=PATIENCE)
    assert next(last).status == HEALTH.SERVICE_UNKNOWN
    last.cancel()
    end = time.monotonic() + PATIENCE
    while servicer.watched:
        assert time.monotonic() < end, servicer.watched


def test_a_watcher_that_reads_nothing_keeps_nobody_waiting(servicer: HealthServicer) -> None:
    go, stuck = threading.Event(), threading.Event()

    class Call:
        def add_callback(self, callback: object) -> bool:
            return True

    def send(response: health_pb2.HealthCheckResponse) -> None:
        if response.status == HEALTH.SERVING:
            stuck.set()
            assert go.wait(PATIENCE)

    servicer.Watch(asked("model"), Call(), send)  # type: ignore[arg-type]
    servicer.set("model", HEALTH.SERVING)
    assert stuck.wait(PATIENCE)
    began = time.monotonic()
    servicer.set("model", HEALTH.NOT_SERVING)
    servicer.enter_graceful_shutdown()
    assert time.monotonic() - began < PATIENCE / 2
    go.set()


def test_watches_that_end_while_others_are_told_do_not_hang_the_server(
    servicer: HealthServicer, channel: grpc.Channel
) -> None:
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            for status in (HEALTH.SERVING, HEALTH.NOT_SERVING):
                servicer.set("model", status)
                over.wait(0.0001)  # to let others have the interpreter

    def look(count: int) -> int:
        told = 0
        for _ in range(count):
            watch = stub(channel).Watch(asked("model"), timeout=PATIENCE)
            told += next(watch).status in (HEALTH.SERVING, HEALTH.NOT_SERVING)
            watch.cancel()
        return told

    servicer.set("model", HEALTH.SERVING)
    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    with ThreadPoolExecutor(4) as watchers:
        assert list(watchers.map(look, [50] * 4)) == [50] * 4
    over.set()
    changing.join(PATIENCE)
    assert not changing.is_alive()
