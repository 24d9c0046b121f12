"""Every metric that the server has: name, text, labels, and how processes' values become one.

Declares, and registers nothing. A new metric is one line of `Exported`; `Metrics` writes it by its
declaration, and `/metrics` shows it. A label value is a loaded model's, never a client's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model_repository import CONFIDENCE_EDGES, INK_EDGES
from serving.counters import Merge, Series

MODEL = ("model", "version")
SECONDS = (
    *(50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0),
)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
# How long after a prediction its true label comes: from a second to a month.
DELAYS = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0, 7 * 86400.0, 30 * 86400.0)

# Of a model, for its predictions to be counted by label, and its feedback by truth and prediction.
MOST_LABELS = 100


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
    rejected = counter(
        "inference_rejected_total",
        "Requests that were not answered, by why; model and version are empty before the lookup.",
        (*MODEL, "reason"),
    )
    request_bytes = counter(
        "inference_request_bytes_total", "Bytes of the requests that were read.", MODEL
    )
    response_bytes = counter("inference_response_bytes_total", "Bytes of the answers.", MODEL)
    request_rows = histogram(
        "inference_request_rows", "Rows per request, of those answered.", MODEL, ROWS
    )
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
    compute_infer_seconds = histogram(
        "inference_compute_infer_seconds", "Seconds that the model took for one batch.", MODEL
    )
    compute_output_seconds = histogram(
        "inference_compute_output_seconds", "Seconds to hand out the outputs of one batch.", MODEL
    )
    batch_rows = histogram("inference_batch_rows", "Rows per batch.", MODEL, ROWS)
    pending = gauge(
        "inference_pending_requests", "Requests waiting now, in all workers.", MODEL, Merge.LIVE_SUM
    )
    queue_limit = gauge(
        "inference_queue_limit_requests",
        "Requests that may wait, in all workers, before more are refused.",
        MODEL,
        Merge.LIVE_SUM,
    )
    in_flight = gauge(
        "inference_in_flight_requests",
        "Requests inside now, waiting or running, in all workers.",
        (),
        Merge.LIVE_SUM,
    )
    in_flight_limit = gauge(
        "inference_in_flight_limit_requests",
        "Requests that may be inside, in all workers, before more are refused unread.",
        (),
        Merge.LIVE_SUM,
    )
    connections = gauge(
        "inference_connections",
        "Clients' connections open now, in all workers; of the native transport only.",
        (),
        Merge.LIVE_SUM,
    )
    connections_limit = gauge(
        "inference_connections_limit",
        "Connections that may be open, in all workers, before new ones are turned away.",
        (),
        Merge.LIVE_SUM,
    )
    connections_turned_away = counter(
        "inference_connections_turned_away_total",
        "Connections that were closed at once, as there was no room for one more.",
    )
    connections_dropped = counter(
        "inference_connections_dropped_total",
        "Connections that were closed for what their client did, by why: abuse (too many pings,"
        " resets, continuations or empty frames), keepalive (it did not say that it lives),"
        " handshake (none in time), stalled (it left its answers unread).",
        ("reason",),
    )
    stalled_requests = counter(
        "inference_stalled_requests_total",
        "Requests that were reset as they stopped arriving, or came too slowly.",
    )
    tls_certificate_expiry = gauge(
        "inference_tls_certificate_expiry_timestamp_seconds",
        "When the server's certificate ends, in seconds since 1970; in all workers, the earliest. 0"
        " without TLS.",
        (),
        Merge.LIVE_LEAST,
    )
    instances_busy = gauge(
        "inference_instances_busy", "Batches running now, in all workers.", MODEL, Merge.LIVE_SUM
    )
    instances = gauge(
        "inference_instances",
        "Batches that may run at the same time, in all workers.",
        MODEL,
        Merge.LIVE_SUM,
    )
    model_info = gauge(
        "inference_model_info",
        "1 for how a version runs here.",
        (*MODEL, "precision", "device", "provider"),
        Merge.LIVE_MAX,
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

    feedback = counter(
        "inference_feedback_total",
        "Predictions whose true label came; truth is `other` for what is no class of the model. Of"
        " models with more than 100 classes only `correct` is told.",
        (*MODEL, "truth", "predicted", "correct"),
    )
    feedback_delay_seconds = histogram(
        "inference_feedback_delay_seconds",
        "Seconds from a prediction to its true label.",
        MODEL,
        DELAYS,
    )
    feedback_refused = counter(
        "inference_feedback_refused_total", "Feedback that was not counted, by why.", ("reason",)
    )
    predictions = counter(
        "inference_predictions_total", "Rows by predicted label.", (*MODEL, "label")
    )
    confidence = histogram(
        "inference_confidence_ratio",
        "Calibrated confidence of each prediction: its mean estimates the accuracy.",
        MODEL,
        CONFIDENCE_EDGES,
    )
    ink = histogram("inference_ink_ratio", "Mean input of each row, from 0 to 1.", MODEL, INK_EDGES)
    accuracy = gauge(
        "inference_accuracy_ratio",
        "Share of right labels on the holdout: what the manifest promises (holdout), and what the"
        " latest replay reached in the worst worker (probe).",
        (*MODEL, "source"),
        Merge.LIVE_LEAST,
    )
    probe_passed = gauge(
        "inference_probe_passed",
        "0 where the latest replay of the holdout fell below what the manifest promises.",
        MODEL,
        Merge.LIVE_LEAST,
    )
    probe_failures = counter(
        "inference_probe_failures_total", "Replays of the holdout that did not pass.", MODEL
    )
    estimated_accuracy = gauge(
        "inference_estimated_accuracy_ratio",
        "Accuracy over --drift-window as calibrated confidence has it; NaN with too few rows.",
        MODEL,
        Merge.LIVE_MAX,
    )
    estimate_reliable = gauge(
        "inference_estimate_reliable",
        "0 where a feature has drifted, so that confidence may mislead; NaN with too few rows.",
        MODEL,
        Merge.LIVE_MAX,
    )
    drift = gauge(
        "inference_drift_psi",
        "Population stability index over --drift-window against the manifest's reference, by"
        " feature: ink, confidence, label; NaN with too few rows.",
        (*MODEL, "feature"),
        Merge.LIVE_MAX,
    )
    drift_limit = gauge(
        "inference_drift_limit_psi",
        "The index from which a feature has drifted: --drift-threshold, or more where so few rows,"
        " or so few images in the reference, could reach that by chance.",
        (*MODEL, "feature"),
        Merge.LIVE_MAX,
    )


FAMILIES = tuple(value for value in vars(Exported).values() if isinstance(value, Family))


class Kept:
    """What is not exported: what only ModelStatistics tells, and what drift is computed from."""

    # Seconds of compute input, infer and output, once for each request of a batch; of failures.
    requests = Family("counter", "statistics_requests", "", MODEL, slots=4)
    # Batches of so many rows, and their seconds of compute input, infer and output.
    batches = Family("counter", "statistics_batches", "", (*MODEL, "rows"), slots=4)
    # Rows by index of the predicted label.
    predicted = Family("counter", "drift_predicted", "", MODEL, slots=MOST_LABELS)
    # What the manifest expects, by feature as `Exported.drift` has them: how many bins there are, 0
    # where it says nothing; of how many images at least; then the share of rows in each bin.
    reference = Family(
        "gauge",
        "drift_reference",
        "",
        (*MODEL, "feature"),
        Merge.LIVE_MAX,
        slots=2 + MOST_LABELS,
    )
    # That confidence is calibrated with; 0 where it is not.
    temperature = Family("gauge", "drift_temperature", "", MODEL, Merge.LIVE_MAX)
    # Rows over --drift-window.
    window_rows = Family("gauge", "drift_window_rows", "", MODEL, Merge.LIVE_MAX)
    # Milliseconds since 1970.
    last_inference = Family("gauge", "statistics_last_inference", "", MODEL, Merge.MAX)
