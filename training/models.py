"""The digit classifiers of the fastai book's chapter 4, and the contract they are exported under.

A network maps (N, 28, 28) uint8 images to logits: (N, C), or (N, 1) where two classes share one
logit. `Classifier` wraps any of them into what is published: probabilities and labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.resnet import ResNet18


class Scale(nn.Module):
    """(N, 28, 28) uint8 → (N, 1, 28, 28) float32, in [0, 1] or standardised as MNIST is."""

    def __init__(self, standardise: bool) -> None:
        super().__init__()
        self.standardise = standardise

    def forward(self, images: Tensor) -> Tensor:
        """Floats with a channel axis."""
        pixels = images.unsqueeze(1).float()
        if self.standardise:
            return (pixels - 255 * 0.1307) / (255 * 0.3081)  # MNIST's training mean and deviation
        return pixels / 255


class PixelSimilarity(nn.Module):
    """The baseline: the class whose mean training image is nearest; nothing is learned by descent.

    Logits are minus the distance (L1, or RMSE) to each mean image, times a scale fitted with the
    means, so that the softmax is a sensible probability. Takes and averages pixels in [0, 1].
    """

    def __init__(self, classes: int, rmse: bool) -> None:
        super().__init__()
        self.rmse = rmse
        self.register_buffer("means", torch.zeros(classes, 28, 28))
        self.register_buffer("sharpness", torch.ones(()))
        self.means: Tensor
        self.sharpness: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) → (N, C) logits."""
        difference = x - self.means  # (N, C, 28, 28)
        if self.rmse:
            distance = difference.square().mean((-1, -2)).sqrt()
        else:
            distance = difference.abs().mean((-1, -2))
        return -self.sharpness * distance

    @torch.no_grad()
    def fit(self, images: Tensor, labels: Tensor) -> None:
        """Store each class's mean of (N, 28, 28) uint8 images, and the likeliest sharpness."""
        x = images.unsqueeze(1).float() / 255
        classes = range(len(self.means))
        self.means.copy_(torch.stack([x[labels == label, 0].mean(0) for label in classes]))
        self.sharpness.fill_(1.0)
        logits = torch.cat([self(chunk) for chunk in x.split(1024)])
        candidates = torch.logspace(0, 3, 61, device=x.device)
        losses = [nn.functional.cross_entropy(logits * value, labels) for value in candidates]
        self.sharpness.copy_(candidates[torch.stack(losses).argmin()])


def _mlp(outputs: int, *hidden: int) -> nn.Sequential:
    sizes = (28 * 28, *hidden, outputs)
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (inputs, size) in enumerate(itertools.pairwise(sizes)):
        layers += ([nn.ReLU()] if index else []) + [nn.Linear(inputs, size)]
    return nn.Sequential(*layers)


# Name → body, a module from (N, 1, 28, 28) floats to (N, outputs) logits.
MODELS: dict[str, Callable[[int], nn.Module]] = {
    "pixel_similarity": lambda outputs: PixelSimilarity(outputs, rmse=False),
    "pixel_similarity_rmse": lambda outputs: PixelSimilarity(outputs, rmse=True),
    "linear": lambda outputs: _mlp(outputs),
    "mlp": lambda outputs: _mlp(outputs, 30),
    "mlp_deep": lambda outputs: _mlp(outputs, 256, 128, 64, 32),
    "resnet18": lambda outputs: ResNet18(outputs),
    "resnet18_concat_pool": lambda outputs: ResNet18(outputs, concat_pool=True),
}


def build(model: str, outputs: int, standardise: bool) -> nn.Sequential:
    """The named network with fresh weights: (N, 28, 28) uint8 → (N, outputs) logits."""
    return nn.Sequential(Scale(standardise), MODELS[model](outputs))


class Classifier(nn.Module):
    """What is published: (N, 28, 28) uint8 → probabilities (N, C) float32, labels (N,) int64.

    With one logit the second class's probability is its sigmoid, the first's the complement.
    """

    def __init__(self, network: nn.Module, one_logit: bool) -> None:
        super().__init__()
        self.network = network
        self.one_logit = one_logit

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities that sum to 1 in each row, and the index of the largest."""
        logits = self.network(images)
        if self.one_logit:
            probabilities = torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
        else:
            probabilities = torch.softmax(logits, dim=1)
        return probabilities, probabilities.argmax(dim=1)
