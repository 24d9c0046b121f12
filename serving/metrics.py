"""Every metric that the server exports. Knows no gRPC; a label value is a loaded model's, never a
client's text."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_MODEL = ("model", "version")
_SECONDS = (
    *(50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0),
)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ModelMetrics:
    """One version's own series; their labels are looked up once."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._metrics = metrics
        self._labels = (model, version)
        self._request_seconds = metrics.request_seconds.labels(*self._labels)
        self._queue_seconds = metrics.queue_seconds.labels(*self._labels)
        self._compute_seconds = metrics.compute_seconds.labels(*self._labels)
        self._batch_rows = metrics.batch_rows.labels(*self._labels)
        self._inferences = metrics.inferences.labels(*self._labels)
        self._executions = metrics.executions.labels(*self._labels)
        self._answered = metrics.requests.labels(*self._labels, "OK")

    def answered(self, rows: int, seconds: float, queue_seconds: float) -> None:
        """A request of so many rows was answered."""
        self._answered.inc()
        self._inferences.inc(rows)
        self._request_seconds.observe(seconds)
        self._queue_seconds.observe(queue_seconds)

    def failed(self, code: str) -> None:
        """A request was refused or failed with that gRPC status name."""
        self._metrics.requests.labels(*self._labels, code).inc()

    def executed(self, rows: int, seconds: float) -> None:
        """One batch ran."""
        self._executions.inc()
        self._batch_rows.observe(rows)
        self._compute_seconds.observe(seconds)

    def loaded(self, seconds: float, pending: Callable[[], float]) -> None:
        """The model is ready; `pending` tells how many requests wait for it."""
        self._metrics.model_ready.labels(*self._labels).set(1)
        self._metrics.load_seconds.labels(*self._labels).set(seconds)
        self._metrics.pending.labels(*self._labels).set_function(pending)


class Metrics:
    """The exported metrics, registered with the given registry."""

    def __init__(self, registry: CollectorRegistry, server_version: str) -> None:
        self.requests = Counter(
            "inference_requests",
            "Requests by gRPC status; model and version are empty when no such model is loaded.",
            (*_MODEL, "code"),
            registry=registry,
        )
        self.inferences = Counter(
            "inference_inferences", "Rows of answered requests.", _MODEL, registry=registry
        )
        self.executions = Counter(
            "inference_executions", "Batches that ran.", _MODEL, registry=registry
        )
        self.request_seconds = self._seconds(
            "inference_request_seconds", "From parsed request to answer.", registry
        )
        self.queue_seconds = self._seconds(
            "inference_queue_seconds", "What a request waited for its batch to run.", registry
        )
        self.compute_seconds = self._seconds(
            "inference_compute_seconds", "What one batch took to run.", registry
        )
        self.batch_rows = Histogram(
            "inference_batch_rows", "Rows per batch.", _MODEL, buckets=_ROWS, registry=registry
        )
        self.pending = Gauge(
            "inference_pending_requests", "Requests waiting now.", _MODEL, registry=registry
        )
        self.model_ready = Gauge(
            "inference_model_ready", "1 when the version is served.", _MODEL, registry=registry
        )
        self.load_seconds = Gauge(
            "inference_model_load_seconds", "What loading took.", _MODEL, registry=registry
        )
        Info("inference_server", "The server.", registry=registry).info({"version": server_version})
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

    def model(self, name: str, version: int) -> ModelMetrics:
        """The series of a version that is about to be served."""
        return ModelMetrics(self, name, str(version))

    def unknown_model(self, code: str) -> None:
        """A request named no model that is loaded."""
        self.requests.labels("", "", code).inc()

    @staticmethod
    def _seconds(name: str, text: str, registry: CollectorRegistry) -> Histogram:
        return Histogram(name, text, _MODEL, buckets=_SECONDS, registry=registry)
