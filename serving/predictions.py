"""What a run says of each row: its class, how sure the model is, and how much ink there was.

Owns which output that is read from, how confidence is calibrated, and the array that carries it all
beside the model's own outputs from the run to each request's share of it. Counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_repository import Manifest, TensorSpec
from serving.batch import Tensors

# Where the facts are among the outputs: a name that no ONNX tensor has. One array of records, (N,),
# as every array costs each request.
FACTS = "\0facts"
RECORD = np.dtype([("label", "i8"), ("confidence", "f8"), ("calibrated", "f8"), ("ink", "f8")])
# How far a row of probabilities may be from adding up to 1, at fp16.
_ROUNDING = 5e-3
_ONE = np.float32(1)
# Values of a row whose sum is sure to fit into 32 bits, in which it is faster.
_SHORT = 2**32 // 255


class Prediction(NamedTuple):
    """What the model says of one row, and of how sure it is after calibration."""

    label: int  # index into the manifest's labels
    confidence: float  # the model's own probability of that class; NaN where it gives none
    calibrated: float = math.nan  # the same by the manifest's temperature, where it has one
    ink: float = math.nan  # mean input from 0 to 1; NaN where that is not UINT8


class PredictionPlan(NamedTuple):
    """Where a model's class, scores and image are: names of tensors, empty where there is none."""

    class_output: str
    score_output: str
    image_input: str
    temperature: float


def class_output(manifest: Manifest) -> TensorSpec | None:
    """The output that tells a row's class: `labels` where the model gives them, else its first
    output of scores, (N, C); None where neither is there."""
    for spec in manifest.outputs:
        if spec.name == "labels" and spec.datatype in ("INT32", "INT64") and len(spec.shape) == 1:
            return spec
    return score_output(manifest)


def score_output(manifest: Manifest) -> TensorSpec | None:
    """The first output of floating-point scores, (N, C). A single column, such as a sigmoid's, is
    not one score for each class: its highest would always be the first."""
    for spec in manifest.outputs:
        if spec.datatype.startswith("FP") and len(spec.shape) == 2 and spec.shape[1] != 1:
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
        self._image = image_input(manifest)
        self._temperature = manifest.quality.temperature if manifest.quality else 1.0

    def run(self, inputs: Tensors) -> Tensors:
        """The model's outputs, and the facts of each row."""
        outputs = self._run(inputs)
        labels = classes(outputs, self._class)
        facts = np.empty(len(labels), RECORD)
        facts["label"] = labels
        facts["confidence"], facts["calibrated"] = self._confidences(outputs, len(labels))
        facts["ink"] = ink(inputs[self._image], len(labels)) if self._image else np.nan
        outputs[FACTS] = facts
        return outputs

    @property
    def plan(self) -> PredictionPlan:
        """For who does the same without Python."""
        scores = self._scores.name if self._scores else ""
        return PredictionPlan(self._class.name, scores, self._image, self._temperature)

    def of(self, outputs: Tensors) -> Sequence[Prediction]:
        """One prediction for each row of the outputs, whole or a request's share of them."""
        return [Prediction._make(facts) for facts in outputs[FACTS].tolist()]

    def _confidences(
        self, outputs: Tensors, rows: int
    ) -> tuple[NDArray[np.float32] | float, NDArray[np.float32] | float]:
        """The highest score of each row, (N,), and calibrated; NaN where scores are no shares."""
        if self._scores is None or len(outputs[self._scores.name]) != rows:
            return np.nan, np.nan
        scores = shares(outputs[self._scores.name].astype(np.float32, copy=False))
        top = np.maximum.reduce(scores, axis=1)
        return top, top if self._temperature == 1 else calibrated(scores, top, self._temperature)


def shares(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, C) as it is, but for rows that are no shares of one, which become NaN."""
    off = np.abs(np.add.reduce(scores, axis=1) - _ONE)
    # All at once first, which is twice as fast and holds for every usual model.
    if (
        np.minimum.reduce(scores, axis=None, initial=0) == 0
        and np.maximum.reduce(off, initial=0) < _ROUNDING
    ):
        return scores
    proper = (off < _ROUNDING) & (np.minimum.reduce(scores, axis=1) >= 0)
    return np.where(proper[:, np.newaxis], scores, np.float32(np.nan))


def calibrated(
    scores: NDArray[np.float32], top: NDArray[np.float32], temperature: float
) -> NDArray[np.float32]:
    """The highest of p ** (1 / temperature), made to add up to 1, of each row of (N, C); `top` is
    each row's highest.

    As 1 / sum((p / top) ** (1 / temperature)): no power is above 1, one of them is 1, and nothing
    overflows or needs the logarithm of 0. Guo et al., On Calibration of Modern Neural Networks,
    2017, have the same for logits: softmax(logits / temperature).
    """
    powers = np.power(scores / top[:, np.newaxis], np.float32(1 / temperature))
    highest: NDArray[np.float32] = np.reciprocal(np.add.reduce(powers, axis=1))
    return highest


def image_input(manifest: Manifest) -> str:
    """The name of a model's only input, where that is UINT8 with at least two dimensions."""
    (spec, *others) = manifest.inputs
    return spec.name if not others and spec.datatype == "UINT8" and len(spec.shape) > 1 else ""


def ink(images: NDArray[np.generic], rows: int) -> NDArray[np.float64] | float:
    """The mean of each row of (N, ...) uint8 as a share of 255; NaN where there are other rows.

    Of a model that takes a single image without a first dimension for rows, the mean of all of it.
    """
    if not images.size or (rows != 1 and len(images) != rows):
        return np.nan
    flat = images.reshape(rows, -1)
    total = np.uint32 if flat.shape[1] <= _SHORT else np.uint64
    sums: NDArray[np.unsignedinteger] = np.add.reduce(flat, axis=1, dtype=total)
    means: NDArray[np.float64] = sums / (255.0 * flat.shape[1])
    return means


def predictor(run: Callable[[Tensors], Tensors], manifest: Manifest) -> Predictor | None:
    """None for a model without class labels, or without an output that tells a class."""
    return Predictor(run, manifest) if manifest.labels and class_output(manifest) else None
