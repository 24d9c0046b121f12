"""What a model's outputs say of each row: its class, and how sure the model is.

Owns which output that is read from, and the two arrays that carry it beside the model's own outputs
from the run to each request's share of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_repository import Manifest, TensorSpec
from serving.batch import Tensors

# Names that no ONNX tensor has; each array is (N,).
_LABEL = "\0label"
_CONFIDENCE = "\0confidence"
# How far a row of probabilities may be from adding up to 1, at fp16.
_ROUNDING = 5e-3


class Prediction(NamedTuple):
    """What the model says of one row."""

    label: int  # index into the manifest's labels
    confidence: float  # the probability of that class; NaN where the model gives none


def class_output(manifest: Manifest) -> TensorSpec | None:
    """The output that tells a row's class: `labels` where the model gives them, else its first
    output of scores, (N, C); None where neither is there."""
    for spec in manifest.outputs:
        if spec.name == "labels" and spec.datatype in ("INT32", "INT64") and len(spec.shape) == 1:
            return spec
    return score_output(manifest)


def score_output(manifest: Manifest) -> TensorSpec | None:
    """The first output of floating-point scores, (N, C)."""
    for spec in manifest.outputs:
        if spec.datatype.startswith("FP") and len(spec.shape) == 2:
            return spec
    return None


def classes(outputs: Tensors, spec: TensorSpec) -> NDArray[np.generic]:
    """The class of each row, (N,), by the output that `class_output` names."""
    array = outputs[spec.name]
    return array if array.ndim == 1 else array.argmax(axis=1)


class Predictor:
    """Wraps the run of a model that has class labels; `of` reads what it added."""

    def __init__(self, run: Callable[[Tensors], Tensors], manifest: Manifest) -> None:
        spec = class_output(manifest)
        assert spec
        self._run = run
        self._class = spec
        self._scores = score_output(manifest)

    def run(self, inputs: Tensors) -> Tensors:
        """The model's outputs, and of each row its class and confidence."""
        outputs = self._run(inputs)
        labels = classes(outputs, self._class)
        outputs[_LABEL] = labels
        outputs[_CONFIDENCE] = self._confidence(outputs, labels)
        return outputs

    def of(self, outputs: Tensors) -> Sequence[Prediction]:
        """One prediction for each row of the outputs, whole or a request's share of them."""
        labels, confidences = outputs[_LABEL].tolist(), outputs[_CONFIDENCE].tolist()
        return [Prediction(*each) for each in zip(labels, confidences, strict=True)]

    def _confidence(self, outputs: Tensors, labels: NDArray[np.generic]) -> NDArray[np.generic]:
        """(N,) float32: the score of each row's class; NaN where scores are no shares of one."""
        if self._scores is None:
            return np.full(len(labels), np.nan, np.float32)
        scores = outputs[self._scores.name].astype(np.float32, copy=False)  # (N, C)
        confidence: NDArray[np.generic] = scores.max(axis=1)
        proper = (np.abs(scores.sum(axis=1) - 1) < _ROUNDING) & (scores.min(axis=1) >= 0)
        return confidence if proper.all() else np.where(proper, confidence, np.float32(np.nan))


def predictor(run: Callable[[Tensors], Tensors], manifest: Manifest) -> Predictor | None:
    """None for a model without class labels, or without an output that tells a class."""
    return Predictor(run, manifest) if manifest.labels and class_output(manifest) else None
