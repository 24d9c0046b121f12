"""``python -m serving healthcheck``: asks the server on this machine for its health, as an
orchestrator without gRPC probes does.

Takes the server's options and environment, so that it asks where that server listens. By TLS it
trusts the server's own certificate alone, and shows it, too: with --tls-client-ca that must be one
that the server takes from clients.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.addresses import address
from serving.config import ServerConfig
from serving.options import parse

# Of a certificate's names, those that a server can be called by.
_NAMES = ("DNS", "IP Address")
# Every interface is also this machine's own: nothing is bound to any of them here.
_ANY = "0.0.0.0"  # nosec B104
_LOOPBACK = {_ANY: "127.0.0.1", "::": "::1", "[::]": "::1"}


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
    host = _LOOPBACK.get(config.host, config.host)
    try:
        with _channel(config, host, asked.timeout) as channel:
            status = check(channel, asked.service, asked.timeout)
    except OSError as error:
        status = f"UNAVAILABLE: {error}"
    print(status, file=sys.stdout if status == "SERVING" else sys.stderr)
    return 0 if status == "SERVING" else 1


def check(channel: grpc.Channel, service: str, timeout: float) -> str:
    """What the server says of a service: its status, or why there is none."""
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        answer = stub.Check(request, timeout=timeout)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return status


def _channel(config: ServerConfig, host: str, timeout: float) -> grpc.Channel:
    """To the server of that configuration; OSError where its certificate is not the configured."""
    target = address(host, config.grpc_port)
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]  # it is on this machine
    if config.tls_certificate is None or config.tls_key is None:
        return grpc.insecure_channel(target, options)
    certificate, key = config.tls_certificate.read_bytes(), config.tls_key.read_bytes()
    name = _name(config.tls_certificate, config.tls_key, (host, config.grpc_port), timeout)
    options.append(("grpc.ssl_target_name_override", name))
    credentials = grpc.ssl_channel_credentials(certificate, key, certificate)
    return grpc.secure_channel(target, credentials, options)


def _name(certificate: Path, key: Path, where: tuple[str, int], timeout: float) -> str:
    """A name of the server's certificate: gRPC asks for one, and 127.0.0.1 is seldom it."""
    context = ssl.create_default_context(cafile=certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # no CA's: the server's own
    context.check_hostname = False
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(where, timeout) as plain,
        context.wrap_socket(plain) as secure,
    ):
        shown: Any = secure.getpeercert()
    names = [name for kind, name in shown.get("subjectAltName", ()) if kind in _NAMES]
    names += [value for ((kind, value),) in shown["subject"] if kind == "commonName"]
    return names[0].replace("*", "any") if names else where[0]
