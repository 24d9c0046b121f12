"""The model card's reliability diagram: confidence against accuracy, before and after calibration.

Reads nothing and writes nothing: it is given answers and gives a figure.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.calibration import (
    Bin,
    Probabilities,
    calibrated,
    expected_calibration_error,
    reliability,
)

_Z = 1.959964  # standard deviations of a 95% interval


def reliability_diagram(
    probabilities: Probabilities, labels: NDArray[np.int64], temperature: float
) -> Figure:
    """Two panels for the same images; (N, C) and (N,)."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    before, after = figure.subplots(1, 2, sharex=True, sharey=True)
    _draw(before, "as the model says", reliability(probabilities, labels))
    shares = calibrated(probabilities, temperature)
    _draw(after, f"calibrated, temperature {temperature:.3f}", reliability(shares, labels))
    before.set(ylabel="share of right labels")
    return figure


def wilson(
    share: NDArray[np.float64], images: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of each share's 95% interval, by Wilson's score."""
    weight = 1 + _Z**2 / images
    middle = (share + _Z**2 / (2 * images)) / weight
    half = _Z * np.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2)) / weight
    return middle - half, middle + half


def _draw(axes: Axes, title: str, bins: list[Bin]) -> None:
    confidence = [each.confidence for each in bins]
    accuracy = np.array([each.accuracy for each in bins])
    images = np.array([each.images for each in bins])
    low, high = wilson(accuracy, images)
    # At 0 and 1 rounding may put an end of the interval beyond its middle.
    reach = np.maximum([accuracy - low, high - accuracy], 0)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    axes.errorbar(confidence, accuracy, reach, fmt="none", alpha=0.5)
    axes.scatter(confidence, accuracy, 15 + 600 * images / images.sum(), alpha=0.6)
    error = expected_calibration_error(bins)
    axes.set(title=f"{title}\nexpected calibration error {error:.4f}", xlabel="confidence")
    axes.set(xlim=(0, 1.05), ylim=(-0.05, 1.08))
