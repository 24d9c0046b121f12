"""The sums once more under Triton's names and in its units, for dashboards and autoscalers made so.

Only what means here what it means there; names, labels and meanings are those of Triton 25:
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from serving.counter_directory import Sums
from serving.errors import Rejection
from serving.families import MODEL, Exported, Family
from serving.statistics import ModelTotals, model_totals

# Triton's reason of ours; the others are OTHER.
REASONS = {
    Rejection.QUEUE_FULL: "REJECTED",
    Rejection.DEADLINE: "REJECTED",
    Rejection.CANCELLED: "CANCELED",
    Rejection.FAILED: "BACKEND",
}
OTHER = "OTHER"

_COUNTERS: tuple[tuple[str, str, Callable[[ModelTotals], float]], ...] = (
    (
        "nv_inference_request_success",
        "Requests answered.",
        lambda totals: totals.success.count,
    ),
    ("nv_inference_count", "Rows of the batches that ran.", lambda totals: totals.inference_count),
    (
        "nv_inference_exec_count",
        "Batches that ran.",
        lambda totals: totals.execution_count,
    ),
    (
        "nv_inference_request_duration_us",
        "Microseconds from arrival to answer, of all requests answered.",
        lambda totals: totals.success.seconds * 1e6,
    ),
    (
        "nv_inference_queue_duration_us",
        "Microseconds that they waited for their batches.",
        lambda totals: totals.queue.seconds * 1e6,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Microseconds of their batches' inputs, once for each request.",
        lambda totals: totals.compute_input.seconds * 1e6,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Microseconds of their batches' runs, once for each request.",
        lambda totals: totals.compute_infer.seconds * 1e6,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Microseconds of their batches' outputs, once for each request.",
        lambda totals: totals.compute_output.seconds * 1e6,
    ),
)
_GAUGES = (
    (
        "nv_inference_pending_request_count",
        "Requests waiting now.",
        Exported.pending,
    ),
    ("nv_model_load_duration_secs", "Seconds that loading took.", Exported.load_seconds),
)


def metrics(sums: Sums) -> Iterator[Metric]:
    """Every family, whether it has series yet or not; `gpu_metrics` has those of a GPU."""
    totals = model_totals(sums)
    for name, text, of in _COUNTERS:
        counter = _counter(name, text)
        for key, each in totals.items():
            counter.add_sample(name, dict(zip(MODEL, key, strict=True)), of(each))
        yield counter
    yield _failures(sums, totals)
    for name, text, family in _GAUGES:
        yield _gauge(name, text, sums, family)


def _counter(name: str, text: str) -> Metric:
    """Of no type: the formats' counters end in _total, and Triton's names do not. rate() and all
    else in Prometheus take it as it is."""
    return Metric(name, text, "untyped")


def _failures(sums: Sums, models: Iterable[tuple[str, str]]) -> Metric:
    """By model and reason, from 0; those of no model have no place in it."""
    name = "nv_inference_request_failure"
    metric = _counter(name, "Requests not answered, by Triton's reasons.")
    found = {(*key, reason): 0.0 for key in models for reason in sorted({*REASONS.values(), OTHER})}
    for series, (count,) in _of(sums, Exported.rejected):
        model, version, reason = series
        theirs = (model, version, REASONS.get(Rejection(reason), OTHER))
        if theirs in found:
            found[theirs] += count
    for labels, count in found.items():
        metric.add_sample(name, dict(zip((*MODEL, "reason"), labels, strict=True)), count)
    return metric


def _gauge(name: str, text: str, sums: Sums, family: Family) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=MODEL)
    for labels, (value,) in _of(sums, family):
        gauge.add_metric(labels, value)
    return gauge


def _of(sums: Sums, family: Family) -> list[tuple[tuple[str, ...], list[float]]]:
    return [(series.labels, slots) for series, slots in sums.items() if series.name == family.name]
