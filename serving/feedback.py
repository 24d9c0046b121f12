"""Feedback: takes the true labels of predictions, and counts them. Knows no gRPC.

Owns who is refused and why, and which cells of the confusion matrix there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from model_repository import (
    WITHDRAWN,
    Manifest,
    RepositoryError,
    read_manifest,
    require_model_name,
)
from serving.counted_ids import CountedIds
from serving.counters import Record
from serving.families import MOST_LABELS, Exported
from serving.metrics import Metrics
from serving.prediction_ids import ForgedId, MalformedId, PredictionId, Signer
from serving.predictions import class_output

OTHER = "other"  # the truth of what is none of the model's classes


class Outcome(StrEnum):
    """What became of a label; all but the first are reasons in `inference_feedback_refused`."""

    COUNTED = "counted"
    REPEATED = "repeated"
    MALFORMED = "malformed"
    FORGED = "forged"
    EXPIRED = "expired"
    UNKNOWN_MODEL = "unknown_model"


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one label, and why it was not counted."""

    outcome: Outcome
    reason: str = ""


COUNTED = Result(Outcome.COUNTED)
REPEATED = Result(Outcome.REPEATED, "this prediction's label was counted before")


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A label that counts, unless its id was counted before."""

    digest: bytes
    record: Record
    labels: tuple[str, str]  # model and version
    delay: float  # seconds


class Feedback:
    """Counts labels into this process's counters. Of any number of threads.

    `published` gives a version's labels by the model repository, or None; `ttl` is in seconds,
    `clock` seconds since 1970.
    """

    def __init__(
        self,
        signer: Signer,
        metrics: Metrics,
        counted: CountedIds,
        published: Callable[[str, int], tuple[str, ...] | None],
        ttl: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signer = signer
        self._metrics = metrics
        self._counted = counted
        self._published = published
        self._ttl = ttl
        self._clock = clock
        self._labels: dict[tuple[str, int], tuple[str, ...]] = {}
        for outcome in Outcome:
            if outcome is not Outcome.COUNTED:
                metrics.slots(Exported.feedback_refused, outcome)

    def expect(self, manifest: Manifest, *, show: bool) -> None:
        """The version is served: `show` each of its cells from now on, at 0 first.

        Without that, a rate would miss what each is counted first. One process's zeros do for all:
        every cell of every process is read at each scrape.
        """
        if manifest.labels and class_output(manifest):
            self._labels[manifest.name, manifest.version] = manifest.labels
            if show:
                self._show(manifest.name, manifest.version, manifest.labels)

    def take(self, items: Sequence[tuple[str, str]]) -> list[Result]:
        """Count (prediction id, true label) pairs; what became of each, in their order."""
        now = self._clock()
        checked = [self._check(text, label, now) for text, label in items]
        accepted = [each for each in checked if isinstance(each, _Accepted)]
        counted = iter(self._counted.count([(each.digest, each.record) for each in accepted]))
        return [
            self._refused(each) if isinstance(each, Result) else self._told(each, next(counted))
            for each in checked
        ]

    def _check(self, text: str, truth: str, now: float) -> _Accepted | Result:
        if not truth:
            return Result(Outcome.MALFORMED, "no label")
        try:
            prediction = self._signer.read(text)
        except MalformedId as error:
            return Result(Outcome.MALFORMED, str(error))
        except ForgedId as error:
            return Result(Outcome.FORGED, str(error))
        age = max(0.0, now - prediction.time)  # clocks differ between replicas
        if age > self._ttl:
            return Result(Outcome.EXPIRED, f"older than {self._ttl:.15g} seconds")
        labels = self._labels_of(prediction)
        if labels is None:
            where = f"model {prediction.model!r} version {prediction.version}"
            return Result(Outcome.UNKNOWN_MODEL, f"{where} is not in the repository any more")
        names = (prediction.model, str(prediction.version))
        series = Exported.feedback.series(*names, *cell(labels, truth, labels[prediction.label]))
        record = self._metrics.counters.record(series)
        return _Accepted(prediction.digest, record, names, age)

    def _labels_of(self, prediction: PredictionId) -> tuple[str, ...] | None:
        """None, too, where that many labels are no longer what the version has."""
        key = prediction.model, prediction.version
        labels = self._labels.get(key)
        if labels is None and (labels := self._published(*key)):
            self._show(*key, labels)
            self._labels[key] = labels
        return labels if labels and prediction.label < len(labels) else None

    def _show(self, model: str, version: int, labels: tuple[str, ...]) -> None:
        names = (model, str(version))
        for each in cells(labels):
            self._metrics.slots(Exported.feedback, *names, *each)
        self._metrics.slots(Exported.feedback_delay_seconds, *names)

    def _told(self, accepted: _Accepted, counted: bool) -> Result:
        if not counted:
            return self._refused(REPEATED)
        self._metrics.observe(Exported.feedback_delay_seconds, accepted.delay, *accepted.labels)
        return COUNTED

    def _refused(self, result: Result) -> Result:
        self._metrics.add(Exported.feedback_refused, 1, result.outcome)
        return result


def cell(labels: Sequence[str], truth: str, predicted: str) -> tuple[str, str, str]:
    """Where a label is counted: its values of truth, predicted and correct.

    A matrix of more classes would be too many series: only right and wrong are told apart then.
    """
    correct = str(truth == predicted).lower()
    if len(labels) > MOST_LABELS:
        return "", "", correct
    return truth if truth in labels else OTHER, predicted, correct


def cells(labels: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """All that `cell` gives for a model: C predictions of C classes and `other`."""
    if len(labels) > MOST_LABELS:
        yield from (("", "", "true"), ("", "", "false"))
        return
    for predicted in labels:
        yield from (cell(labels, truth, predicted) for truth in labels)
        yield OTHER, predicted, "false"


def published_labels(repository: Path, model: str, version: int) -> tuple[str, ...] | None:
    """A version's labels by its manifest, also after it was rolled back: labels come late."""
    for name in (str(version), f"{WITHDRAWN}{version}"):
        try:
            require_model_name(model)
            manifest = read_manifest(repository / model / name)
        except RepositoryError:
            continue
        if (manifest.name, manifest.version) == (model, version):
            return manifest.labels or None
    return None
