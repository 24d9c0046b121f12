"""One version's counts and durations as Triton's ModelStatistics tells them. Knows no protobuf.

As there, the stages of a batch count once per request, each with the batch's duration: the counts
of queue and compute are one number, and grow together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.counter_directory import Sums
from serving.families import Exported, Family, Kept


@dataclass(frozen=True, slots=True)
class Duration:
    """So many, and their seconds together."""

    count: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Batches of so many rows; their seconds are counted once per batch."""

    rows: int
    count: int
    compute_input_seconds: float
    compute_infer_seconds: float
    compute_output_seconds: float


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """What one version did in all workers, those that are gone included."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    inference_count: int = 0  # rows
    execution_count: int = 0  # batches
    last_inference: int = 0  # milliseconds since the epoch; 0 for never
    batches: Mapping[int, BatchTotals] = field(default_factory=dict)  # by rows


def model_totals(sums: Sums) -> dict[tuple[str, str], ModelTotals]:
    """The totals of every model and version that any process served or refused."""
    failures: dict[tuple[str, str], int] = defaultdict(int)
    batches: dict[tuple[str, str], dict[int, BatchTotals]] = defaultdict(dict)
    for series, slots in sums.items():
        if series.name == Kept.batches.name:
            model, version, rows = series.labels
            batches[model, version][int(rows)] = BatchTotals(int(rows), int(slots[0]), *slots[1:])
        elif series.name == Exported.requests.name:
            model, version, code = series.labels
            failures[model, version] += 0 if code == "OK" else int(slots[0])
    known = [(s.labels[0], s.labels[1]) for s in sums if s.name == Kept.requests.name]
    return {key: _totals(sums, key, failures[key], batches[key]) for key in known}


def _totals(
    sums: Sums, key: tuple[str, str], failed: int, batches: Mapping[int, BatchTotals]
) -> ModelTotals:
    compute_input, compute_infer, compute_output, fail = _slots(sums, Kept.requests, *key)
    answered = int(_slots(sums, Exported.requests, *key, "OK")[0])
    return ModelTotals(
        success=Duration(answered, _slots(sums, Exported.request_seconds, *key)[-1]),
        fail=Duration(failed, fail),
        queue=Duration(answered, _slots(sums, Exported.queue_seconds, *key)[-1]),
        compute_input=Duration(answered, compute_input),
        compute_infer=Duration(answered, compute_infer),
        compute_output=Duration(answered, compute_output),
        inference_count=int(_slots(sums, Exported.inferences, *key)[0]),
        execution_count=int(_slots(sums, Exported.executions, *key)[0]),
        last_inference=int(_slots(sums, Kept.last_inference, *key)[0]),
        batches=dict(sorted(batches.items())),
    )


def _slots(sums: Sums, family: Family, *labels: str) -> list[float]:
    return sums.get(family.series(*labels), [0.0] * family.slots)
