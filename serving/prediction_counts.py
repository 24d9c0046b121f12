"""Counts what one version answered: labels, confidence, ink; and notes what its manifest expects.

The counts of all processes and that reference are what `drift` compares.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence

from model_repository import CONFIDENCE_EDGES, INK_EDGES, Distribution, Manifest
from serving.families import MOST_LABELS, Exported, Kept
from serving.model_metrics import ModelMetrics
from serving.predictions import Prediction

log = logging.getLogger(__name__)


class PredictionCounts:
    """The series of one version that has class labels."""

    def __init__(self, metrics: ModelMetrics, manifest: Manifest) -> None:
        self._lock = metrics.lock
        few = len(manifest.labels) <= MOST_LABELS
        self._labels = len(manifest.labels) if few else 0
        self._by_label = [
            metrics.slots(Exported.predictions, label) for label in manifest.labels if few
        ]
        self._predicted = metrics.slots(Kept.predicted)
        self._confidence = metrics.slots(Exported.confidence)
        self._ink = metrics.slots(Exported.ink)
        _expect(metrics, manifest)

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Count the rows of one answer, in about a microsecond and half of one for each."""
        confidences = inks = 0.0
        with self._lock:
            for label, _, confidence, ink in predictions:
                if 0 <= label < self._labels:
                    self._by_label[label][0] += 1
                    self._predicted[label] += 1
                if confidence == confidence:  # not NaN
                    self._confidence[bisect_left(CONFIDENCE_EDGES, confidence)] += 1
                    confidences += confidence
                if ink == ink:
                    self._ink[bisect_left(INK_EDGES, ink)] += 1
                    inks += ink
            self._confidence[-1] += confidences
            self._ink[-1] += inks


def _expect(metrics: ModelMetrics, manifest: Manifest) -> None:
    """Write the reference down for the process that looks for drift; zeros where there is none, as
    another content may have had this number before."""
    quality = manifest.quality
    metrics.slots(Kept.temperature)[0] = quality.temperature if quality else 0
    shares = {
        "ink": _shares(manifest, "ink", quality.ink if quality else None, INK_EDGES),
        "confidence": _shares(
            manifest, "confidence", quality.confidence if quality else None, CONFIDENCE_EDGES
        ),
        "label": _label_shares(manifest),
    }
    for feature, each in shares.items():
        slots = metrics.slots(Kept.reference, feature)
        slots[0] = 0  # a reader meanwhile finds none
        for index, share in enumerate(each, start=2):
            slots[index] = share
        slots[1] = quality.images if quality else 0
        slots[0] = len(each)


def _shares(
    manifest: Manifest, feature: str, known: Distribution | None, edges: tuple[float, ...]
) -> Sequence[float]:
    """Those of the manifest, where it counted in the same bins as this server."""
    if known is None:
        return ()
    if known.edges != edges:
        name, version = manifest.name, manifest.version
        text = "model %s version %d: no drift of %s, its manifest has other bins than this server"
        log.info(text, name, version, feature)
        return ()
    return known.shares


def _label_shares(manifest: Manifest) -> Sequence[float]:
    shares = manifest.quality.labels if manifest.quality else ()
    return shares if len(shares) <= MOST_LABELS else ()
