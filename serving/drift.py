"""Drift and estimated accuracy of what was answered lately, from two sums of the counters.

Pure: nothing is read, set or waited for here. `drift_watch` is the thread that does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from serving.counter_directory import Sums
from serving.families import Exported, Family, Kept

# What is counted of each feature, and how many of its last slots are no bins.
FEATURES: Mapping[str, tuple[Family, int]] = {
    "ink": (Exported.ink, 1),
    "confidence": (Exported.confidence, 1),
    "label": (Kept.predicted, 0),
}
_COUNTED = frozenset(family.name for family, _ in FEATURES.values())
# Rows from which a mean confidence is worth telling: with a standard deviation of 0.15, which is
# that of a mediocre classifier, its standard error is then 0.01.
LEAST_ROWS = 200
# How often rows of the very distribution that is expected may count as drifted, at most.
FALSE_ALARMS = 1e-4
# How many sums a window remembers: it is up to one part in so many longer than asked for.
PARTS = 20


@dataclass(frozen=True, slots=True)
class Reference:
    """The shares of rows that a manifest expects by bin, of at least so many images."""

    images: float
    shares: Sequence[float]

    @property
    def bins_used(self) -> int:
        """Bins in which rows are expected."""
        return sum(1 for share in self.shares if share)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a version's rows over the window say; NaN where they are too few."""

    rows: int
    estimated_accuracy: float  # NaN also where confidence is not calibrated or not counted
    reliable: float  # 1, or 0 where a feature has drifted
    psi: dict[str, float]  # by feature; NaN also where the manifest has no reference for one
    limits: dict[str, float]  # the index from which each of them has drifted


def stability_index(counts: Sequence[float], expected: Reference) -> float:
    """Population stability index: the sum over bins of (p - q) ln(p / q), where p are the shares
    of the rows counted and q those expected.

    Siddiqi, Credit Risk Scorecards, 2006: below 0.1 nothing has changed, from 0.25 much has. An
    empty bin would make it infinite: half a row is added to every bin on both sides, each taken as
    so many rows as the smaller sample has, so that equal shares give 0.
    """
    counted = sum(counts)
    rows = min(counted, expected.images)
    scale, every = rows / max(1.0, counted), rows + len(counts) / 2
    index = 0.0
    for count, share in zip(counts, expected.shares, strict=True):
        p, q = (scale * count + 0.5) / every, (rows * share + 0.5) / every
        index += (p - q) * math.log(p / q)
    return index


def least_drift(rows: int, expected: Reference, threshold: float) -> float:
    """The index from which so many rows have drifted: the threshold, unless chance reaches that.

    Of two samples of one distribution, the index is 1 / rows + 1 / images times chi-squared with
    bins - 1 degrees of freedom (Yurdakul and Naranjo, Statistical properties of the population
    stability index, 2020); what that exceeds rarely is bounded as by Laurent and Massart, 2000.
    """
    freedom, rare = expected.bins_used - 1, -math.log(FALSE_ALARMS)
    chance = freedom + 2 * math.sqrt(freedom * rare) + 2 * rare
    return max(threshold, chance * (1 / rows + 1 / expected.images))


def judge(counted: Sums, kept: Sums, model: tuple[str, str], threshold: float) -> Judgement:
    """What `counted` over a window says of a version, by the reference in `kept`."""
    bins = {feature: _bins(counted, feature, model) for feature in FEATURES}
    rows = {feature: round(sum(each)) for feature, each in bins.items()}  # fewer where it was NaN
    enough = [feature for feature in FEATURES if rows[feature] >= LEAST_ROWS]
    expected = {feature: reference(kept, feature, model) for feature in FEATURES}
    told = [feature for feature in enough if expected[feature].shares]
    psi = dict.fromkeys(FEATURES, math.nan)
    limits = dict.fromkeys(FEATURES, math.nan)
    for feature in told:
        each = expected[feature]
        psi[feature] = stability_index(bins[feature][: len(each.shares)], each)
        limits[feature] = least_drift(rows[feature], each, threshold)
    known = "confidence" in enough and temperature(kept, model)
    return Judgement(
        max(rows.values()),
        estimated_accuracy=_mean(counted, model) if known else math.nan,
        reliable=float(all(psi[each] < limits[each] for each in told)) if told else math.nan,
        psi=psi,
        limits=limits,
    )


def models(kept: Sums) -> Iterator[tuple[str, str]]:
    """Name and version of every model that a reference was looked for."""
    for series in kept:
        if series.name == Kept.temperature.name:
            name, version = series.labels
            yield name, version


def temperature(kept: Sums, model: tuple[str, str]) -> float:
    """That the version's confidence is calibrated with; 0 where it is not."""
    return kept.get(Kept.temperature.series(*model), [0.0])[0]


def reference(kept: Sums, feature: str, model: tuple[str, str]) -> Reference:
    """What the manifest expects; no shares where it says nothing."""
    series = Kept.reference.series(*model, feature)
    bins, images, *shares = kept.get(series, [0.0, 0.0])
    return Reference(images, shares[: int(bins)])


def references(kept: Sums, model: tuple[str, str]) -> tuple[object, ...]:
    """All that a version's rows are compared with, to see whether it is still the same."""
    each = (reference(kept, feature, model) for feature in FEATURES)
    return temperature(kept, model), *((known.images, *known.shares) for known in each)


def _bins(counted: Sums, feature: str, model: tuple[str, str]) -> list[float]:
    family, beyond = FEATURES[feature]
    slots = counted.get(family.series(*model)) or [0.0] * family.slots
    return slots[: len(slots) - beyond]


def _mean(counted: Sums, model: tuple[str, str]) -> float:
    *counts, total = counted.get(Exported.confidence.series(*model), [0.0])
    rows = sum(counts)
    return total / rows if rows else math.nan


class DriftWindow:
    """What was counted over the last so many seconds, by the sums that it is shown now and then.

    It remembers about `PARTS` of them, however often it is asked. Nothing was counted before the
    first, which is at `start`; times are of one clock that never goes back.
    """

    def __init__(self, seconds: float, start: float) -> None:
        self._seconds = seconds
        self._past: deque[tuple[float, Sums]] = deque([(start, {})])

    def __len__(self) -> int:
        return len(self._past)

    def add(self, now: float, sums: Sums) -> Sums:
        """What was counted up to `sums` since the window began; before one has passed, since the
        start."""
        while len(self._past) > 1 and self._past[1][0] <= now - self._seconds:
            self._past.popleft()
        counted = {series: slots for series, slots in sums.items() if series.name in _COUNTED}
        since = self._past[0][1]
        if now - self._past[-1][0] >= self._seconds / PARTS:
            self._past.append((now, counted))
        return {series: _more(slots, since.get(series)) for series, slots in counted.items()}

    def restart(self, model: tuple[str, str], sums: Sums) -> None:
        """What the version counted up to `sums` was by another reference: leave it out."""
        counted = {
            series: slots
            for series, slots in sums.items()
            if series.name in _COUNTED and series.labels[:2] == model
        }
        for _, past in self._past:
            past.update(counted)


def _more(slots: list[float], before: list[float] | None) -> list[float]:
    """Never less than 0, as sums of seconds may differ in their last bit when files were folded."""
    if before is None:
        return slots
    return [max(0.0, now - then) for now, then in zip(slots, before, strict=True)]
