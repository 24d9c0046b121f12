"""What a version's manifest says of its probabilities: how to calibrate them, and how they lie.

Owns the temperature, the expected calibration error and the reference distributions that a server
without labels is compared with. Knows no network and reads no file: it is given answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repository import CONFIDENCE_EDGES, INK_EDGES, Distribution, Quality
from training.dataset import Dataset

Probabilities = NDArray[np.float32] | NDArray[np.float64]  # (N, C)
Floats = NDArray[np.float64]

BINS = 15  # of equal width, as Guo et al. 2017 have them
TEMPERATURES = 0.1, 10.0  # the bounds of the search
PRECISION = 1e-6


@dataclass(frozen=True, slots=True)
class Bin:
    """The images whose confidence lies within one of BINS."""

    images: int
    confidence: float  # their mean
    accuracy: float  # their share of right labels


def fit_temperature(probabilities: Probabilities, labels: NDArray[np.int64]) -> float:
    """The temperature at which the mean confidence is the share of right labels.

    That is expectation consistency (Clarté et al. 2023, https://arxiv.org/abs/2303.02644). The
    likeliest temperature (Guo et al. 2017) is as good for two classes. For ten it heeds the losing
    classes too, and left the mean confidence of the linear model 1.3 points below its accuracy.

    Half an image that is right and half one that is wrong are added (Jeffreys' prior), or a model
    that makes no error here would be told to be sure of everything.
    """
    right = float((probabilities.argmax(axis=1) == labels).sum())
    accuracy = (right + 0.5) / (len(labels) + 1)
    low, high = TEMPERATURES
    while high - low > PRECISION:  # the mean confidence falls as the temperature rises
        middle = (low + high) / 2
        too_sure = calibrated(probabilities, middle).max(axis=1).mean() > accuracy
        low, high = (middle, high) if too_sure else (low, middle)
    return (low + high) / 2


def calibrated(probabilities: Probabilities, temperature: float) -> Floats:
    """(N, C): p ** (1 / temperature), made to add up to 1 in each row."""
    relative = probabilities.astype(np.float64) / probabilities.max(axis=1, keepdims=True)
    powers = relative ** (1 / temperature)  # at most 1
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
