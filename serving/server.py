"""Composition root: builds the parts, wires them, watches over health and draining.

`InferenceServer` is the gRPC side, one per process. `Server` adds what there is once however many
processes there are: `/metrics` and the directory of counters. `workers` runs several.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import model_repository
from serving import health
from serving import model as models
from serving.addresses import address, check_free
from serving.admin import Admin, ProcessAdmin
from serving.authorization import Authorization
from serving.calls import StrictServer
from serving.classifier import Classifier
from serving.classify_rpcs import ClassifyHandlers
from serving.config import ServerConfig
from serving.control import ModelControl
from serving.counted_ids import CountedIds
from serving.counter_directory import CounterDirectory
from serving.device import runtime_for
from serving.digits import DIGITS, DigitsServicer, add_digits_service
from serving.drift_watch import DriftWatch
from serving.errors import ModelLoadError, StartupError
from serving.families import Exported
from serving.feedback import Feedback, published_labels
from serving.gate import Gate
from serving.http.app import application
from serving.http.bodies import LIMIT, Bodies
from serving.http.history import History
from serving.http.server import HttpServer
from serving.http.services import Services
from serving.inference import InferenceService
from serving.metrics import Metrics
from serving.native_transport import NativeTransport, choose
from serving.observers import observers, spans
from serving.prediction_ids import Signer, feedback_keys
from serving.probe import Prober
from serving.registry import ModelRegistry, ServedModel
from serving.room import Room
from serving.scrapes import MetricsServer
from serving.servicer import SERVICE, InferenceServicer, handlers
from serving.tls import tls_files
from serving.tls_watch import TlsWatch
from serving.tokens import Grant
from serving.trace import Tracer
from serving.transport import Handlers, add_port, grpc_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READINESS = ("", "readiness")
LIVENESS = "liveness"
# Serving from the first load on, and not back when models go: for who waits for a start only.
STARTUP = "startup"
# Seconds for the last answers to leave, and then for streams, such as health watches, to end.
LAST_ANSWERS = 0.5
# Seconds for the last spans to reach a collector, which may be away.
LAST_SPANS = 3.0
# Seconds between two looks at whether requests are still being received.
RECEIVED_WITHIN = 0.005

log = logging.getLogger("serving")


class InferenceServer:
    """The gRPC server of one process: `listen` makes it answer, then `load` loads its models.

    `counters` is the directory that the process counts in; `keys` sign prediction ids, the same
    ones in all processes; `admin_of` makes of what changes this process what changes the whole
    server; `group_ready` tells whether all other processes are ready. Raises StartupError for what
    an operator must put right first.
    """

    def __init__(
        self,
        config: ServerConfig,
        counters: Path,
        keys: Sequence[bytes],
        *,
        worker: int = 0,
        admin_of: Callable[[ProcessAdmin], Admin] = lambda admin: admin,
        group_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._config = config
        self._runtime = runtime_for(config)
        self._worker = worker
        self._group_ready = group_ready
        self._loaded = threading.Event()
        self._stopping = False
        self._never = threading.Event()  # to wait by: libfaketime breaks time.sleep
        self._health = health.HealthServicer()
        self._metrics = Metrics(counters, version(), worker)
        self._authorization = Authorization(config)
        self._tls = TlsWatch(config, self._metrics)
        module, self._why_transport = choose(config.transport)
        self._lane = _lane(module, config, self._metrics, keys, counters, self._tls)
        self._metrics.set(Exported.in_flight_limit, config.room)
        self.registry = ModelRegistry(self._model_changed)
        self._prober = Prober(self.registry, config.probe_interval)
        self.control = ModelControl(config, self.registry, self._load, self._metrics)
        tracer = Tracer(self._lane.trace if self._lane else None)
        self.admin = ProcessAdmin(self.control, tracer)
        signer = Signer(keys)
        self._feedback = _feedback(config, counters, signer, self._metrics)
        self._spans = spans(config, version(), worker)
        self.service = InferenceService(
            self.registry,
            self._metrics,
            tracer,
            signer if config.prediction_ids else None,
            config.priority_levels,
            observers(config, self._spans, chosen=self._lane is not None),
        )
        if self._lane:
            self._authorization.count_by(self._lane.wait_for_rate)
        self._grpc = self._grpc_server()
        self.services = self._services(self._servicer(admin_of(self.admin), tracer))
        self._add_services(self.services)
        app = application(self.services)
        self._http = HttpServer(config, app, self._tls) if config.allow_http else None
        self._loader = threading.Thread(target=self._run, name="control", daemon=True)
        self.port = 0
        self.http_port = 0

    def _grpc_server(self) -> grpc.Server:
        private = self._lane is not None
        gate = Gate(self._authorization, self.service, private=private)
        gates = [gate] if self._authorization.required else []
        return grpc_server(self._config, private=private, interceptors=gates)

    @property
    def ready(self) -> bool:
        """Loading is over in all processes, at least one model is served here, or models come on
        request only, and the server does not drain."""
        anything = bool(self.registry.served) or self._config.model_control_mode == "explicit"
        return self._loaded.is_set() and anything and not self._stopping and self._group_ready()

    @property
    def receiving(self) -> bool:
        """Calls were accepted that have not come as far as a model yet."""
        return self._handlers.receiving or self._classify.receiving

    def listen(self) -> None:
        """Answer from now on; the port is known when this returns."""
        for name in (*READINESS, STARTUP, *{state.name for state in self.registry.index}):
            self._health.set(name, NOT_SERVING)
        self._health.set(LIVENESS, SERVING)
        self._authorization.follow(self._tokens_changed)
        self.port = self._listen()
        if self._http:
            self._http.start()
            self.http_port = self._http.port
        self._tls.start()
        self.report_readiness()

    def _listen(self) -> int:
        config = self._config
        if config.workers == 1:
            check_free("--grpc-port", config.host, config.grpc_port)
        if not self._lane:
            port = add_port(self._grpc, address(config.host, config.grpc_port), self._tls)
            self._grpc.start()
            return port
        self._grpc.add_insecure_port(self._lane.upstream)
        self._grpc.start()
        return self._lane.listen()

    def load(self) -> None:
        """Load the models, and look for changes, on a thread of its own."""
        self._loader.start()

    def wait_until_loaded(self) -> None:
        """Return when every model was loaded or refused."""
        self._loaded.wait()

    def report_readiness(self) -> None:
        """Tell health watchers what `ready` says now."""
        if not self._stopping:
            for name in READINESS:
                self._health.set(name, SERVING if self.ready else NOT_SERVING)

    def wait_until_idle(self, timeout: float) -> bool:
        """Whether no inference is in flight any more, after at most `timeout` seconds."""
        end = time.monotonic() + timeout
        lane_idle = not self._lane or self._lane.wait_until_idle(timeout)
        return lane_idle and self.service.wait_until_idle(max(0.0, end - time.monotonic()))

    def stop(self) -> None:
        """Report not serving, refuse what is new, and let what is in flight finish in time."""
        self._stopping = self.service.draining = True
        end = time.monotonic() + self._config.drain_timeout
        self.control.stop()
        self._tls.stop()
        self._prober.stop()
        self._authorization.stop()
        self._health.enter_graceful_shutdown()
        if self._lane:
            self._lane.drain()
        else:
            self._grpc.stop(self._config.drain_timeout)
        # Open streams would hold gRPC's own wait to its end; only inference is worth waiting for.
        while self.receiving and time.monotonic() < end:
            self._never.wait(RECEIVED_WITHIN)
        self.wait_until_idle(max(0.0, end - time.monotonic()))
        self._grpc.stop(min(LAST_ANSWERS, self._config.drain_timeout)).wait()
        if self._http:
            self._http.stop(max(LAST_ANSWERS, end - time.monotonic()))
        self.services.classifier.decoding.close()
        if self._lane:
            self._lane.stop()
        if self._loader.is_alive():
            self._loader.join(max(0.0, end - time.monotonic()))
        for served in self.registry.loaded:
            served.batcher.close(0.0)
        if self._spans:
            self._spans.close(min(LAST_SPANS, max(0.0, end - time.monotonic())))

    def _run(self) -> None:
        log.info(self._runtime.why)
        log.info(self._why_transport)
        started = time.monotonic()
        self.control.start()
        self._loaded.set()
        self._health.set(STARTUP, SERVING)
        self.report_readiness()
        if not self.registry.served:
            log.warning("no model is served yet")
        elif not self._stopping:
            self._announce(time.monotonic() - started)
        self._prober.start()  # not before: probes would take the CPUs that loading needs
        self.control.run()

    def _announce(self, seconds: float) -> None:
        log.info(
            "ready in %.1f s: gRPC on %s, %s%s with %d threads\n%s",
            seconds,
            address(self._config.host, self.port or self._config.grpc_port),
            f"HTTP on {self._http.url}, " if self._http else "",
            self._runtime.device,
            self._runtime.threads,
            _table(self.registry.served),
        )

    def _load(self, directory: Path) -> ServedModel:
        model_repository.require_inside(self._config.model_repository, directory)
        manifest = model_repository.read_manifest(directory)
        name, number = directory.parent.name, directory.name
        if (manifest.name, str(manifest.version)) != (name, number):
            message = f"{directory}: the manifest is that of {manifest.name} {manifest.version}"
            raise ModelLoadError(message, "manifest")
        model_repository.require_model_name(name)
        model = models.load(directory, manifest, self._runtime)
        metrics = self._metrics.model(name, manifest.version)
        natively = self._lane.models if self._lane else None
        served = ServedModel(model, self._config, metrics, natively)
        self._feedback.expect(manifest, show=self._worker == 0)
        return served

    def _tokens_changed(self, grants: tuple[Grant, ...]) -> None:
        if self._lane:
            self._lane.authorize(grants)

    def _model_changed(self, name: str, served: bool) -> None:
        if self._lane:
            self._lane.route(lambda: self.registry.routes)
        if not self._stopping:
            self._health.set(name, SERVING if served else NOT_SERVING)
        if self._loaded.is_set():
            self.report_readiness()
        self._prober.wake()

    def _servicer(self, admin: Admin, tracer: Tracer) -> InferenceServicer:
        return InferenceServicer(
            self.registry,
            self._metrics,
            tracer,
            admin,
            self._config,
            version(),
            lambda: self.ready,
        )

    def _services(self, servicer: InferenceServicer) -> Services:
        digits = DigitsServicer(self._feedback, self.registry, self._metrics, self._config)
        room = Room(self.service, self._config.room, self._lane)
        classifier = Classifier(self.service, self.registry, self._config.max_batch_size)
        history = History(self._metrics.sums)
        bodies = Bodies(max(LIMIT, 4 * self._config.max_message_bytes))
        return Services(
            self._config,
            self.service,
            servicer,
            digits,
            room,
            classifier,
            history,
            bodies,
            self._authorization,
        )

    def _add_services(self, services: Services) -> None:
        authorization = services.authorization
        v2 = handlers(services.v2, authorization)
        self._handlers = Handlers(self.service, v2, services.room, authorization)
        self._grpc.add_generic_rpc_handlers((self._handlers,))
        strict: Any = StrictServer(self._grpc)  # as much of a server as is needed there
        health_pb2_grpc.add_HealthServicer_to_server(self._health, strict)
        add_digits_service(self._grpc, services.digits, authorization)
        self._classify = ClassifyHandlers(services.classifier, services.room, authorization)
        self._grpc.add_generic_rpc_handlers((self._classify,))
        names = [SERVICE.full_name, DIGITS.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, strict)


class Server:
    """A whole server in this process: inference, metrics, and the directory of counters."""

    def __init__(self, config: ServerConfig) -> None:
        tls_files(config)  # no good: said before anything is begun
        keys = feedback_keys(config.feedback_key_file)
        self._counters = CounterDirectory()
        try:
            self.inference = InferenceServer(config, self._counters.path, keys)
        except BaseException:
            self._counters.close()
            raise
        self._config = config
        self._metrics: MetricsServer | None = None
        self._drift: DriftWatch | None = None
        self.grpc_port = 0
        self.http_port = 0
        self.metrics_port = 0

    def start(self) -> None:
        """Listen, then load. The ports are known when this returns; `wait_until_loaded` waits."""
        check_free("--grpc-port", self._config.host, self._config.grpc_port)
        if self._config.allow_http:
            check_free("--http-port", self._config.host, self._config.http_port)
        self._metrics = MetricsServer(self._config, self._counters.path)
        self._drift = DriftWatch(self._config, self._counters.path)
        self.inference.listen()
        self.grpc_port, self.metrics_port = self.inference.port, self._metrics.port
        self.http_port = self.inference.http_port
        self.inference.load()

    def wait_until_loaded(self) -> None:
        """Return when every model was loaded or refused."""
        self.inference.wait_until_loaded()

    def stop(self) -> None:
        """Drain, then end; metrics are to be had until the last answer has left. Also for one that
        was not started, or could not be; again, it does nothing."""
        self.inference.stop()
        for each in (self._drift, self._metrics):
            if each:
                each.stop()
        self._drift = self._metrics = None
        self._counters.close()


def _lane(
    module: ModuleType | None,
    config: ServerConfig,
    metrics: Metrics,
    keys: Sequence[bytes],
    directory: Path,
    tls: TlsWatch,
) -> NativeTransport | None:
    if module is None:
        return None
    key = keys[0] if config.prediction_ids else None
    lane = NativeTransport(module, config, metrics, key, directory, tls.files)
    tls.follow(lane.renew)
    return lane


def version() -> str:
    """This package's, as it was installed."""
    try:
        return importlib.metadata.version("digits")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def _feedback(config: ServerConfig, counters: Path, signer: Signer, metrics: Metrics) -> Feedback:
    try:
        counted = CountedIds(counters, config.feedback_memory)
    except OSError as error:
        table = f"{config.feedback_memory} ids of 8 bytes in {counters.parent}"
        raise StartupError(f"--feedback-memory: {table}: {error.strerror}") from None
    published = functools.partial(published_labels, config.model_repository)
    return Feedback(signer, metrics, counted, published, config.feedback_ttl)


def _table(served: list[ServedModel]) -> str:
    rows = [("model", "version", "precision", "device", "accuracy")]
    for each in served:
        variant = each.model.variant
        accuracy = "-" if variant.accuracy is None else f"{variant.accuracy:.4f}"
        name, device = each.manifest.name, each.model.device
        rows.append((name, each.version, variant.precision, device, accuracy))
    return "\n".join(f"  {a:<24} {b:>7}  {c:<9}  {d:<6}  {e:>8}" for a, b, c, d, e in rows)
