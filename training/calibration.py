"""What a version's manifest says of its probabilities: how to calibrate them, and how they lie.

Owns the temperature, the expected calibration error and the reference distributions that a server
without labels is compared with. Knows no network and reads no file: it is given answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repository import CONFIDENCE_EDGES, INK_EDGES, Distribution, Quality
from training.dataset import Dataset

Probabilities = NDArray[np.float32] | NDArray[np.float64]  # (N, C)
Floats = NDArray[np.float64]

BINS = 15  # of equal width, as Guo et al. 2017 have them
TEMPERATURES = 0.1, 10.0  # the bounds of the search
_GOLDEN = (math.sqrt(5) - 1) / 2
_TINY = float(np.finfo(np.float32).tiny)  # a probability that was rounded to 0 has a logarithm too


@dataclass(frozen=True, slots=True)
class Bin:
    """The images whose confidence lies within one of BINS."""

    images: int
    confidence: float  # their mean
    accuracy: float  # their share of right labels


def fit_temperature(probabilities: Probabilities, labels: NDArray[np.int64]) -> float:
    """The temperature with which the probabilities of the true classes are likeliest.

    Guo et al. 2017 (https://arxiv.org/abs/1706.04599), with a prior that weighs as little as one
    image: probabilities of images that are all right would be likeliest at temperature 0. The
    prior is Gamma(2, 1) of 1 / temperature, most likely at 1, so that the sum stays convex and has
    one minimum.
    """
    logits = _logits(probabilities)
    rows = np.arange(len(labels))

    def cost(sharpness: float) -> float:
        scaled = logits * sharpness
        likelihood = scaled[rows, labels] - np.log(np.exp(scaled).sum(axis=1))
        return sharpness - math.log(sharpness) - float(likelihood.sum())

    low, high = TEMPERATURES
    return 1 / _minimum(cost, 1 / high, 1 / low)


def calibrated(probabilities: Probabilities, temperature: float) -> Floats:
    """(N, C): p ** (1 / temperature), made to add up to 1 in each row."""
    powers = np.exp(_logits(probabilities) / temperature)
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def reliability(probabilities: Probabilities, labels: NDArray[np.int64]) -> list[Bin]:
    """Confidence against accuracy, by bins that contain their upper bounds; without empty ones."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1)
    members = [index == number for number in np.unique(index)]
    return [Bin(int(m.sum()), float(confidence[m].mean()), float(right[m].mean())) for m in members]


def expected_calibration_error(bins: list[Bin]) -> float:
    """The mean distance of accuracy from confidence, each bin weighing as much as its images."""
    images = sum(each.images for each in bins)
    return sum(each.images * abs(each.accuracy - each.confidence) for each in bins) / images


def distribution(values: Floats, edges: tuple[float, ...]) -> Distribution:
    """Shares of the values by bin; `edges` are the bins' upper bounds, which belong to them."""
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    return Distribution(edges, tuple((counts / len(values)).tolist()))


def ink(images: NDArray[np.uint8]) -> Floats:
    """(N,): the mean pixel of each image, 0 black ... 1 white ink."""
    means: Floats = images.reshape(len(images), -1).mean(axis=1) / 255
    return means


def quality(probabilities: Probabilities, dataset: Dataset) -> Quality:
    """What the manifest holds, of the model's probabilities for the calibration images.

    Ink, which no training can spoil, is that of the training images too. Confidence is not, as a
    model is surer of images that it was trained on; nor are the predicted classes, whose shares the
    calibration images, so many of each class, give as well.
    """
    labels = dataset.calibration.labels
    temperature = fit_temperature(probabilities, labels)
    shares = calibrated(probabilities, temperature)
    predicted = np.bincount(probabilities.argmax(axis=1), minlength=len(dataset.labels))
    images = np.concatenate([dataset.train.images, dataset.calibration.images])
    return Quality(
        temperature=temperature,
        expected_calibration_error=expected_calibration_error(reliability(shares, labels)),
        images=len(labels),
        ink=distribution(ink(images), INK_EDGES),
        confidence=distribution(shares.max(axis=1), CONFIDENCE_EDGES),
        labels=tuple((predicted / len(labels)).tolist()),
    )


def _logits(probabilities: Probabilities) -> Floats:
    """Logarithms, 0 for each row's likeliest class, so that no power of them overflows."""
    logarithms = np.log(np.maximum(probabilities.astype(np.float64), _TINY))
    logits: Floats = logarithms - logarithms.max(axis=1, keepdims=True)
    return logits


def _minimum(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum has it, by golden-section search, to 1e-6."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = cost(left), cost(right)
    while high - low > 1e-6:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = cost(right)
    return (low + high) / 2
