"""What Prometheus sees of a run, beside what its clients counted.

Counters are asked for as they are: they are exact. What is recorded over a window extrapolates.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deploy.load import Tally
from deploy.prometheus_server import Prometheus
from serving.client import ModelQuality
from serving.families import SECONDS


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `agrees` is None for what need not be equal."""

    what: str
    counted: str
    seen: str
    agrees: bool | None


def compare(metrics: Prometheus, tally: Tally) -> list[Row]:
    """Counts and accuracy, which must be equal, and latency, which the server sees less of."""
    of = f'model="{tally.model}",version="{tally.version}"'
    right = metrics.value(f'sum(inference_feedback_total{{{of},correct="true"}})')
    wrong = metrics.value(f'sum(inference_feedback_total{{{of},correct="false"}})')
    counts = {
        "requests answered": (tally.requests, f'sum(inference_requests_total{{{of},code="OK"}})'),
        "request latencies": (tally.requests, f"sum(inference_request_seconds_count{{{of}}})"),
        "rows": (tally.rows, f"sum(inference_inferences_total{{{of}}})"),
        "rows by predicted label": (tally.rows, f"sum(inference_predictions_total{{{of}}})"),
    }
    rows = [_equal(what, count, metrics.value(expr)) for what, (count, expr) in counts.items()]
    rows.append(_equal("labels that were right", tally.right, right))
    rows.append(_equal("labels that were wrong", tally.wrong, wrong))
    accuracy, seen = tally.right / tally.rows, right / (right + wrong)
    rows.append(Row("accuracy by labels", f"{accuracy:.6f}", f"{seen:.6f}", accuracy == seen))
    rows.append(_equal("feedback refused", tally.refused, _refused(metrics)))
    return [*rows, *_latencies(metrics, tally, of)]


def _refused(metrics: Prometheus) -> float:
    return metrics.value("sum(inference_feedback_refused_total) or vector(0)")


def _equal(what: str, counted: int, seen: float) -> Row:
    return Row(what, f"{counted:,}", f"{seen:,.0f}", counted == seen)


def _latencies(metrics: Prometheus, tally: Tally, of: str) -> Iterator[Row]:
    """The server's quantiles are known to within a bucket, and may not lie above the client's."""
    for share in (0.5, 0.99):
        buckets = f"sum by (le) (inference_request_seconds_bucket{{{of}}})"
        seen = metrics.value(f"histogram_quantile({share}, {buckets})")
        counted = tally.quantile(share)
        yield Row(
            f"p{share * 100:g} latency",
            f"{counted * 1000:.2f} ms",
            f"{seen * 1000:.2f} ms",
            seen <= one_bucket_above(counted),
        )


def one_bucket_above(seconds: float) -> float:
    """The upper bound of the bucket of a latency: a quantile within it may be anywhere there."""
    bucket = bisect_left(SECONDS, seconds)
    return SECONDS[bucket] if bucket < len(SECONDS) else math.inf


def qualities(
    metrics: Prometheus, tally: Tally, told: Sequence[ModelQuality]
) -> Iterator[tuple[str, str]]:
    """What is known of the answers, by labels and without them."""
    of = f'{{model="{tally.model}",version="{tally.version}"}}'
    for each in told:
        if each.accuracy:
            bounds = f"{each.accuracy.low:.4f} to {each.accuracy.high:.4f}"
            yield "GetQuality: accuracy by labels", f"{each.accuracy.value:.4f} ({bounds})"
    recorded = {
        "accuracy over 5 minutes, as recorded": "model_version:inference_accuracy:ratio_increase5m",
        "accuracy on the holdout, promised": "model_version:inference_holdout_accuracy:ratio",
        "accuracy on the holdout, replayed": "model_version:inference_probe_accuracy:ratio",
        "accuracy estimated without labels": "inference_estimated_accuracy_ratio",
    }
    for what, name in recorded.items():
        yield what, f"{metrics.value(name + of):.4f}"
    for sample in metrics.query(f"inference_drift_psi{of}"):
        feature = sample.labels["feature"]
        one = of.replace("}", f',feature="{feature}"}}')
        limit = metrics.value(f"inference_drift_limit_psi{one}")
        yield f"drift of {feature} ({limit:.2f} is much)", f"{sample.value:.3f}"
