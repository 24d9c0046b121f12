"""Every metric that the server has: name, text, labels, and how processes' values become one.

Declares, and registers nothing. A new metric is one line of `Exported`; `Metrics` writes it by its
declaration, and `/metrics` shows it. A label value is a loaded model's, never a client's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.counters import Merge, Series

MODEL = ("model", "version")
SECONDS = (
    *(50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0),
)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(frozen=True, slots=True)
class Family:
    """A metric; each combination of its labels' values is a series of its own.

    A histogram's slots are the count of each bucket by itself (one for each of the ascending
    `bounds`, which belong to their buckets, and one beyond them), then the sum of all values.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    merge: Merge = Merge.SUM
    bounds: tuple[float, ...] = ()
    slots: int = 1

    def series(self, *values: str) -> Series:
        """The series with these label values, in the order of `labels`."""
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, got {values}")
        return Series(self.merge, self.name, values)


def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Family:
    """What only grows; its name ends in _total where it is exported."""
    return Family("counter", name, text, labels)


def gauge(name: str, text: str, labels: tuple[str, ...], merge: Merge) -> Family:
    """What goes up and down."""
    return Family("gauge", name, text, labels, merge)


def histogram(
    name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...] = SECONDS
) -> Family:
    """How values are distributed over buckets."""
    return Family("histogram", name, text, labels, Merge.SUM, bounds, len(bounds) + 2)


class Exported:
    """What /metrics shows, in this order."""

    requests = counter(
        "inference_requests_total",
        "Requests by gRPC status; model and version are empty when no such model is loaded.",
        (*MODEL, "code"),
    )
    inferences = counter("inference_inferences_total", "Rows of the batches that ran.", MODEL)
    executions = counter("inference_executions_total", "Batches that ran.", MODEL)
    request_seconds = histogram(
        "inference_request_seconds",
        "Seconds from the arrival of a request to its answer, of those answered.",
        MODEL,
    )
    queue_seconds = histogram(
        "inference_queue_seconds", "Seconds that a request waited for its batch to run.", MODEL
    )
    compute_input_seconds = histogram(
        "inference_compute_input_seconds", "Seconds to prepare the inputs of one batch.", MODEL
    )
    compute_seconds = histogram(
        "inference_compute_seconds", "Seconds that the model took for one batch.", MODEL
    )
    compute_output_seconds = histogram(
        "inference_compute_output_seconds", "Seconds to hand out the outputs of one batch.", MODEL
    )
    batch_rows = histogram("inference_batch_rows", "Rows per batch.", MODEL, ROWS)
    pending = gauge(
        "inference_pending_requests", "Requests waiting now, in all workers.", MODEL, Merge.LIVE_SUM
    )
    model_ready = gauge(
        "inference_model_ready", "1 when every worker serves the version.", MODEL, Merge.LIVE_MIN
    )
    load_seconds = gauge(
        "inference_model_load_seconds",
        "Seconds that loading took, in the slowest worker.",
        MODEL,
        Merge.LIVE_MAX,
    )
    load_failures = counter(
        "inference_model_load_failures_total",
        "Versions that were refused, by what was wrong with them; each worker counts its own.",
        (*MODEL, "reason"),
    )
    worker_restarts = counter(
        "inference_worker_restarts_total", "Workers that died and were replaced."
    )
    server_info = gauge("inference_server_info", "The server.", ("version",), Merge.LIVE_MAX)


FAMILIES = tuple(value for value in vars(Exported).values() if isinstance(value, Family))


class Kept:
    """What only ModelStatistics tells, which has durations per request and per batch size."""

    # Seconds of compute input, infer and output, once for each request of a batch; of failures.
    requests = Family("counter", "statistics_requests", "", MODEL, slots=4)
    # Batches of so many rows, and their seconds of compute input, infer and output.
    batches = Family("counter", "statistics_batches", "", (*MODEL, "rows"), slots=4)
    # Milliseconds since 1970.
    last_inference = Family("gauge", "statistics_last_inference", "", MODEL, Merge.MAX)
