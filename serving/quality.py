"""How right each version was, and what is known of that without labels: pure functions of the sums.

Counts and gauges are others': `feedback` and the probe write them, and what looks for drift.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from serving.counter_directory import Sums
from serving.drift import FEATURES
from serving.families import Exported, Family, Kept

Z = 1.959964  # standard normal quantile of 97.5%

Version = tuple[str, str]  # model and version


class Interval(NamedTuple):
    """A share, from 0 to 1, and the bounds of its Wilson score interval at 95%."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cell:
    """How often one class was the truth of predictions of another."""

    truth: str
    predicted: str
    count: int


@dataclass(frozen=True, slots=True)
class Drift:
    """How far recent requests lie from the reference; by feature."""

    population_stability_index: Mapping[str, float]
    drifted: bool
    rows: int  # of the window


@dataclass(frozen=True, slots=True)
class Quality:
    """What is known of one version; None where there is no such figure."""

    feedback: int
    correct: int
    confusion: tuple[Cell, ...]  # those above 0; none with too many classes for a matrix
    holdout_accuracy: float | None
    probe_accuracy: float | None
    probe_passed: bool
    estimated_accuracy: float | None
    estimate_reliable: bool
    drift: Drift | None

    @property
    def accuracy(self) -> Interval | None:
        """By feedback; None without any."""
        return wilson(self.correct, self.feedback) if self.feedback else None


def wilson(hits: int, trials: int) -> Interval:
    """The share of hits and its score interval at 95%.

    Wilson, E. B., Journal of the American Statistical Association 22 (1927), 209-212.
    """
    share = hits / trials
    spread = Z * Z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    # Rounding must not leave a bound beside the share that it is equal to.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def qualities(sums: Sums, served: Collection[Version]) -> dict[Version, Quality]:
    """By model and version: those `served`, and every other that there is a figure of."""
    confusion = _confusion(sums)
    measured = {
        (series.labels[0], series.labels[1])
        for series, slots in sums.items()
        if series.name in _GAUGES and not math.isnan(slots[0])
    }
    versions = sorted({*served, *confusion, *measured}, key=_by_number)
    return {key: _quality(sums, key, confusion.get(key, {})) for key in versions}


_GAUGES = {family.name for family in (Exported.accuracy, Exported.estimated_accuracy)}
_Counts = dict[tuple[str, str, str], int]  # by truth, predicted and correct


def _confusion(sums: Sums) -> dict[Version, _Counts]:
    """Of each version with feedback, its cells above 0."""
    cells: dict[Version, _Counts] = defaultdict(dict)
    for series, slots in sums.items():
        if series.name == Exported.feedback.name and slots[0]:
            model, version, truth, predicted, correct = series.labels
            cells[model, version][truth, predicted, correct] = int(slots[0])
    return dict(cells)


def _quality(sums: Sums, key: Version, counts: _Counts) -> Quality:
    passed = _gauge(sums, Exported.probe_passed, *key)
    return Quality(
        feedback=sum(counts.values()),
        correct=sum(n for (_, _, correct), n in counts.items() if correct == "true"),
        confusion=_matrix(counts),
        holdout_accuracy=_gauge(sums, Exported.accuracy, *key, "holdout"),
        probe_accuracy=_gauge(sums, Exported.accuracy, *key, "probe"),
        probe_passed=passed is None or passed > 0,
        estimated_accuracy=_gauge(sums, Exported.estimated_accuracy, *key),
        estimate_reliable=bool(_gauge(sums, Exported.estimate_reliable, *key)),
        drift=_drift(sums, key),
    )


def _matrix(counts: _Counts) -> tuple[Cell, ...]:
    """Right and wrong may share a cell: a class named "other" has what is no class beside it."""
    cells: Counter[tuple[str, str]] = Counter()
    for (truth, predicted, _), count in counts.items():
        cells[truth, predicted] += count
    return tuple(Cell(*names, count) for names, count in sorted(cells.items()) if names[1])


def _drift(sums: Sums, key: Version) -> Drift | None:
    found = {name: _gauge(sums, Exported.drift, *key, name) for name in FEATURES}
    indices = {name: value for name, value in found.items() if value is not None}
    rows = _gauge(sums, Kept.window_rows, *key)
    if not indices and rows is None:
        return None
    drifted = _gauge(sums, Exported.estimate_reliable, *key) == 0
    return Drift(indices, drifted, int(rows or 0))


def _gauge(sums: Sums, family: Family, *labels: str) -> float | None:
    """None where it is not there, or no number."""
    slots = sums.get(family.series(*labels))
    return None if slots is None or math.isnan(slots[0]) else slots[0]


def _by_number(version: Version) -> tuple[str, int]:
    return version[0], int(version[1])
