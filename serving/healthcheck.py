"""``python -m serving healthcheck``: asks the server on this machine for its health, as an
orchestrator without gRPC probes does.

Takes the server's options and environment, so that it asks where that server listens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.addresses import address
from serving.options import parse

# Every interface is also this machine's own.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0: SERVING; 1: not serving, unknown, or nobody answers in time. Says which."""
    parser = argparse.ArgumentParser(
        prog="python -m serving healthcheck",
        description="Exit with 0 if the server on this machine reports SERVING, else with 1."
        " Takes the server's options too.",
        allow_abbrev=False,
    )
    text = "readiness, liveness, startup, or a model's name [%(default)s]"
    parser.add_argument("--service", default="readiness", help=text)
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds [%(default)g]")
    asked, rest = parser.parse_known_args(argv)
    config = parse(rest, environ)
    target = address(_LOOPBACK.get(config.host, config.host), config.grpc_port)
    status = check(target, asked.service, asked.timeout)
    print(status, file=sys.stdout if status == "SERVING" else sys.stderr)
    return 0 if status == "SERVING" else 1


def check(target: str, service: str, timeout: float) -> str:
    """What the server at host:port says of a service: its status, or why there is none."""
    options = [("grpc.enable_http_proxy", 0)]  # it is on this machine
    with grpc.insecure_channel(target, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = stub.Check(request, timeout=timeout)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return status
