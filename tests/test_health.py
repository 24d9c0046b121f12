"""Watches of health come and go while statuses change."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.health import HealthServicer

HEALTH = health_pb2.HealthCheckResponse
PATIENCE = 20.0  # seconds; only a server that hangs takes them


def test_watches_that_end_while_others_are_told_do_not_hang_the_server() -> None:
    servicer = HealthServicer()
    server = grpc.server(ThreadPoolExecutor(8))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            for status in (HEALTH.SERVING, HEALTH.NOT_SERVING):
                servicer.set("model", status)

    def look(count: int) -> int:
        told = 0
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for _ in range(count):
                request = health_pb2.HealthCheckRequest(service="model")
                watch = stub.Watch(request, timeout=PATIENCE)
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
    server.stop(0).wait()
