"""How each model is trained: one frozen Recipe per model and task, as published and at its best.

`book` is what the fastai book's chapter 4 or its write-ups do; `best`, the default, is ours. What
each recipe reaches, over how many seeds, in what time and on which hardware, is measured by
`python -m benchmarks.accuracy` and recorded in benchmarks/results/accuracy.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

RECIPE_NAMES = ("best", "book")
STANDARD_MODELS = ("pixel_similarity", "linear", "mlp", "mlp_deep", "resnet18")
MODEL_NAMES = (*STANDARD_MODELS, "pixel_similarity_rmse")
MEASURED_CLASSES = (("3", "7"), tuple("0123456789"))
SMALL_EPOCH = 16  # steps


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a training run besides the data and the seed."""

    network: str  # a key of training.models.MODELS
    loss: Literal["mnist_loss", "bce", "cross_entropy"] = "cross_entropy"
    optimiser: Literal["none", "sgd", "adam"] = "adam"
    schedule: Literal["constant", "one_cycle"] = "one_cycle"
    epochs: int = 1
    batch_size: int = 128
    lr: float = 0.01  # the constant rate, or the one-cycle maximum
    weight_decay: float = 0.0
    momenta: tuple[float, float] = (0.0, 0.0)  # one-cycle's high and low
    standardise: bool = False
    shift: float = 0.0  # random translation, pixels
    rotation: float = 0.0  # random rotation, degrees
    min_steps: int = 0  # optimiser steps to take at least, however small the dataset
    mnist_floor: float = 0.0  # --min-accuracy on MNIST
    floor: float = 0.0  # --min-accuracy on any other images
    source: str = "this project"

    @property
    def one_logit(self) -> bool:
        """Whether two classes share one logit, as in the book."""
        return self.loss in ("mnist_loss", "bce")

    def batch_size_for(self, images: int) -> int:
        """The batch size; smaller over few images, so that an epoch has SMALL_EPOCH steps."""
        return min(self.batch_size, max(8, images // SMALL_EPOCH))

    def epochs_for(self, images: int) -> int:
        """Epochs over so many images: the recipe's, or more until `min_steps` are taken."""
        steps = max(1, images // self.batch_size_for(images))
        return max(self.epochs, math.ceil(self.min_steps / steps))

    def min_accuracy(self, dataset: str, labels: tuple[str, ...]) -> float:
        """The accuracy below which a model of this recipe is not published by default.

        For classes that the recipe was not measured on: one and a half times chance.
        """
        if labels not in MEASURED_CLASSES:
            return 1.5 / len(labels)
        return self.mnist_floor if dataset == "mnist" else self.floor


_MOMENTA = (0.95, 0.85)
_BOOK = "fastai book, chapter 4"


def _best(network: str, floors: tuple[float, float], classes: int, **changes: object) -> Recipe:
    settings: dict[str, object] = {
        "loss": "bce" if classes == 2 else "cross_entropy",
        "momenta": _MOMENTA,
        "standardise": True,
        "epochs": 10,
        "min_steps": 300,
        **changes,
    }
    return Recipe(network, mnist_floor=floors[0], floor=floors[1], **settings)  # type: ignore[arg-type]


def _baseline(network: str, floors: tuple[float, float]) -> Recipe:
    return Recipe(network, optimiser="none", mnist_floor=floors[0], floor=floors[1], source=_BOOK)


def _book(
    network: str, floors: tuple[float, float], classes: int, lr: float, epochs: int
) -> Recipe:
    return Recipe(
        network,
        loss="mnist_loss" if classes == 2 else "cross_entropy",
        optimiser="sgd",
        schedule="constant",
        epochs=epochs,
        batch_size=256,
        lr=lr,
        min_steps=400,
        mnist_floor=floors[0],
        floor=floors[1],
        source=_BOOK,
    )


def _book_resnet(floors: tuple[float, float]) -> Recipe:
    return Recipe(
        "resnet18_concat_pool",
        epochs=1,
        batch_size=64,
        lr=0.1,
        weight_decay=0.01,
        momenta=_MOMENTA,
        min_steps=100,
        mnist_floor=floors[0],
        floor=floors[1],
        source=f"{_BOOK}: fit_one_cycle(1, 0.1), fastai's head",
    )


_TWO: dict[str, dict[str, Recipe]] = {
    "best": {
        "pixel_similarity": _baseline("pixel_similarity", (0.95, 0.85)),
        "pixel_similarity_rmse": _baseline("pixel_similarity_rmse", (0.94, 0.85)),
        "linear": _best("linear", (0.98, 0.93), 2, weight_decay=0.1),
        "mlp": _best("mlp", (0.985, 0.93), 2, shift=1.0, rotation=10.0),
        "mlp_deep": _best("mlp_deep", (0.99, 0.93), 2, lr=3e-3, shift=1.0, rotation=10.0),
        "resnet18": _best(
            "resnet18", (0.995, 0.95), 2,
            epochs=2, batch_size=64, lr=5e-3, weight_decay=0.01,
            shift=1.5, rotation=8.0, min_steps=100,
        ),
    },
    "book": {
        "pixel_similarity": _baseline("pixel_similarity", (0.95, 0.85)),
        "pixel_similarity_rmse": _baseline("pixel_similarity_rmse", (0.94, 0.85)),
        "linear": _book("linear", (0.96, 0.9), 2, lr=1.0, epochs=20),
        "mlp": _book("mlp", (0.97, 0.9), 2, lr=0.1, epochs=40),
        "mlp_deep": _book("mlp_deep", (0.97, 0.75), 2, lr=0.5, epochs=40),
        "resnet18": _book_resnet((0.985, 0.75)),
    },
}  # fmt: skip

_MANY: dict[str, dict[str, Recipe]] = {
    "best": {
        "pixel_similarity": _baseline("pixel_similarity", (0.6, 0.6)),
        "pixel_similarity_rmse": _baseline("pixel_similarity_rmse", (0.75, 0.6)),
        "linear": _best("linear", (0.91, 0.85), 10, epochs=5),
        "mlp": _best("mlp", (0.955, 0.85), 10),
        "mlp_deep": _best("mlp_deep", (0.97, 0.85), 10, lr=3e-3, shift=1.0, rotation=10.0),
        "resnet18": _best(
            "resnet18", (0.985, 0.9), 10,
            epochs=3, batch_size=64, lr=5e-3, weight_decay=0.01,
            shift=1.5, rotation=8.0, min_steps=200,
        ),
    },
    "book": {
        "pixel_similarity": _baseline("pixel_similarity", (0.6, 0.6)),
        "pixel_similarity_rmse": _baseline("pixel_similarity_rmse", (0.75, 0.6)),
        "linear": _book("linear", (0.88, 0.8), 10, lr=0.1, epochs=20),
        "mlp": _book("mlp", (0.92, 0.8), 10, lr=0.1, epochs=20),
        "mlp_deep": _book("mlp_deep", (0.94, 0.5), 10, lr=0.1, epochs=20),
        "resnet18": _book_resnet((0.97, 0.5)),
    },
}  # fmt: skip


def recipe_for(model: str, recipe: str, classes: int) -> Recipe:
    """The named recipe of a model for so many classes; KeyError where there is none."""
    return (_TWO if classes == 2 else _MANY)[recipe][model]
