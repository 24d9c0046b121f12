"""Composition root: builds the parts, wires them, watches over health, signals and draining."""

from __future__ import annotations

import importlib.metadata
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from types import FrameType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, start_http_server

from serving.admission import Admission
from serving.config import ServerConfig
from serving.device import runtime_for
from serving.errors import StartupError
from serving.metrics import Metrics
from serving.options import parse
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc
from serving.registry import Batching, ModelRegistry, ServedModel
from serving.servicer import InferenceServicer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READINESS = ("", "readiness")
LIVENESS = "liveness"
# Threads beyond those of admitted requests: they refuse, and answer health and metadata.
SPARE_THREADS = 16
# Seconds for the last answers to leave, and then for streams, such as health watches, to end.
LAST_ANSWERS = 0.5

log = logging.getLogger("serving")


class Server:
    """One server. `start` makes it answer and loads the models behind that; `stop` drains it.

    Raises StartupError for what an operator must put right first.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._runtime = runtime_for(config)
        self.metrics_registry = CollectorRegistry()
        metrics = Metrics(self.metrics_registry, _version())
        self.registry = ModelRegistry(
            config.model_repository, self._runtime, _batching(config), metrics
        )
        self._ready = False
        self._stopping = False
        self._admission = Admission(_room(config))
        self._health = health.HealthServicer()
        self._grpc = _grpc_server(config)
        servicer = InferenceServicer(
            self.registry, metrics, self._admission, _version(), lambda: self._ready
        )
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, self._grpc)
        _add_health_and_reflection(self._grpc, self._health)
        self._loader = threading.Thread(target=self._load, name="load", daemon=True)
        self.grpc_port = 0
        self.metrics_port = 0

    def start(self) -> None:
        """Listen, then load. The ports are known when this returns; `wait_until_loaded` waits."""
        for name in (*READINESS, *self.registry.names):
            self._health.set(name, NOT_SERVING)
        self._health.set(LIVENESS, SERVING)
        config = self._config
        self._check_free("--grpc-port", config.grpc_port)
        try:
            self._metrics_server, _ = start_http_server(
                config.metrics_port, config.host, self.metrics_registry
            )
        except OSError as error:
            raise _cannot_listen(
                "--metrics-port", config.host, config.metrics_port, error
            ) from None
        self.metrics_port = self._metrics_server.server_port
        self.grpc_port = self._grpc.add_insecure_port(_address(config.host, config.grpc_port))
        self._grpc.start()
        self._loader.start()

    def wait_until_loaded(self) -> None:
        """Return when every model was loaded or refused."""
        self._loader.join()

    def stop(self) -> None:
        """Report not serving, refuse what is new, and let what is in flight finish in time."""
        self._stopping, self._ready = True, False
        self._health.enter_graceful_shutdown()
        self._grpc.stop(self._config.drain_timeout)
        # Open streams would hold gRPC's own wait to its end; only inference is worth waiting for.
        self._admission.wait_until_idle(self._config.drain_timeout)
        self._grpc.stop(min(LAST_ANSWERS, self._config.drain_timeout)).wait()
        self._metrics_server.shutdown()
        self._metrics_server.server_close()

    def _load(self) -> None:
        started = time.monotonic()
        log.info(self._runtime.why)
        self.registry.load(lambda name: self._health.set(name, SERVING))
        served = self.registry.served
        if not served:
            log.error("not ready: none of the models could be loaded")
            return
        if self._stopping:
            return
        self._ready = True
        for name in READINESS:
            self._health.set(name, SERVING)
        log.info(
            "ready in %.1f s: gRPC on %s, metrics on http://%s/metrics\n%s",
            time.monotonic() - started,
            _address(self._config.host, self.grpc_port),
            _address(self._config.host, self.metrics_port),
            _table(served),
        )

    def _check_free(self, flag: str, port: int) -> None:
        """Ask before gRPC does: its core reports a port that is taken on stderr, at length."""
        host = self._config.host
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise _cannot_listen(flag, host, port, error) from None


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    config = parse(argv, environ)
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        server = Server(config)
        server.start()
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _wait_for_signal()
    log.info("draining, for at most %g s", config.drain_timeout)
    server.stop()
    log.info("drained")
    return 0


def _wait_for_signal() -> None:
    """Return at the first SIGTERM or SIGINT; only SIGINT, pressed again, then kills.

    A second SIGTERM is nobody's impatience: `timeout` and some init processes send two.
    """
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stopping.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)
    stopping.wait()


def _batching(config: ServerConfig) -> Batching:
    return Batching(
        max_batch_size=config.max_batch_size,
        max_queue_delay=config.max_queue_delay,
        max_queue_size=config.max_queue_size,
        instance_count=config.instance_count,
    )


def _room(config: ServerConfig) -> int:
    """Requests inside at most: one model's full queue, and its full batches of single rows."""
    return config.max_queue_size + config.max_batch_size * config.instance_count


def _grpc_server(config: ServerConfig) -> grpc.Server:
    # A thread per request inside: with fewer, requests would wait unseen in front of the queue.
    threads = _room(config) + SPARE_THREADS
    return grpc.server(
        futures.ThreadPoolExecutor(threads, thread_name_prefix="rpc"),
        options=[
            ("grpc.so_reuseport", 0),  # two servers must not share a port by accident
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", config.max_message_bytes),
        ],
    )


def _add_health_and_reflection(server: grpc.Server, servicer: health.HealthServicer) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
    reflection.enable_server_reflection(
        [service, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cannot_listen(flag: str, host: str, port: int, error: OSError) -> StartupError:
    return StartupError(f"{flag}: cannot listen on {_address(host, port)}: {error.strerror}")


def _table(served: list[ServedModel]) -> str:
    rows = [("model", "version", "precision", "device", "accuracy")]
    for each in served:
        manifest, variant = each.manifest, each.model.variant
        accuracy = "-" if variant.accuracy is None else f"{variant.accuracy:.4f}"
        device = each.model.device
        rows.append((manifest.name, str(manifest.version), variant.precision, device, accuracy))
    return "\n".join(f"  {a:<24} {b:>7}  {c:<9}  {d:<6}  {e:>8}" for a, b, c, d, e in rows)


def _version() -> str:
    try:
        return importlib.metadata.version("digits")
    except importlib.metadata.PackageNotFoundError:
        return "source"
