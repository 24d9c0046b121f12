"""Images as they should not come: blurred, noisy, turned, inverted. The same every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]  # (N, H, W), 0 black ... 255 white ink


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What is done to every image, and how much of it."""

    kind: str  # of KINDS
    amount: float = 0.0

    def __str__(self) -> str:
        unit = {"blur": " px", "rotation": "°"}.get(self.kind, "")
        return f"{self.kind} {self.amount:g}{unit}" if self.amount else self.kind

    def of(self, images: Images) -> Images:
        """The perturbed images."""
        return KINDS[self.kind](images, self.amount)


def blur(images: Images, sigma: float) -> Images:
    """Convolved with a Gaussian of `sigma` pixels; black lies beyond the border."""
    rows, columns = (_gaussian(size, sigma) for size in images.shape[1:])
    blurred: Images = np.rint(rows @ images.astype(np.float64) @ columns.T).astype(np.uint8)
    return blurred


def noise(images: Images, deviation: float) -> Images:
    """Normal noise of that share of white added to every pixel, and cut off at black and white.

    Digits being black for the most part, that makes them brighter too.
    """
    random = np.random.default_rng(0)
    noisy = images + random.normal(0, 255 * deviation, images.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def rotation(images: Images, degrees: float) -> Images:
    """Turned counter-clockwise around the middle."""
    turn = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(image).rotate(degrees, turn)) for image in images])


KINDS: dict[str, Callable[[Images, float], Images]] = {
    "clean": lambda images, _: images,
    "blur": blur,
    "noise": noise,
    "rotation": rotation,
    "inversion": lambda images, _: 255 - images,
}


def _gaussian(size: int, sigma: float) -> NDArray[np.float64]:
    """(size, size): the weight of each pixel in each blurred one; those beyond the border count."""
    distance = np.arange(size)[:, np.newaxis] - np.arange(-size, 2 * size)
    weights = np.exp(-(distance**2) / (2 * sigma**2))
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares[:, size : 2 * size]
