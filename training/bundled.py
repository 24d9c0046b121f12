"""The 1,797 real handwritten digits that come inside scikit-learn, made like MNIST's.

They are the test set of UCI's Optical Recognition of Handwritten Digits: 13 writers, 8x8 pixels
of 0 ... 16. Needs no file and no network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digit_image import normalise
from training.dataset import Split, choose

_ENLARGED = 96  # pixels for 8 and a margin of 2 on each side: 8 for one


def read_digits(classes: tuple[str, ...]) -> tuple[Split, Split]:
    """Train and valid images of the chosen digits, in scikit-learn's order.

    The last fifth of each class validates. The order goes by writer, so that most of the writers
    validated on were not trained on.
    """
    from sklearn.datasets import load_digits  # takes a second, which other sources need not pay

    bunch = load_digits()
    levels: NDArray[np.float64] = bunch.images
    digits: NDArray[np.int64] = bunch.target
    chosen = np.flatnonzero(np.isin(digits, [int(name) for name in classes]))
    images = np.stack([_like_mnist(image) for image in levels[chosen]])
    whole = choose(images, digits[chosen], classes)
    valid = _last_fifth(whole.labels)
    return whole.at(np.flatnonzero(~valid)), whole.at(np.flatnonzero(valid))


def _like_mnist(levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(8, 8) of 0 ... 16 to (28, 28): on a black margin, enlarged smoothly, then normalised."""
    small = np.pad(np.rint(levels * (255.0 / 16.0)).astype(np.uint8), 2)
    image = Image.fromarray(small)
    return normalise(image.resize((_ENLARGED, _ENLARGED), Image.Resampling.BICUBIC))


def _last_fifth(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    last = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        last[positions[len(positions) - len(positions) // 5 :]] = True
    return last
