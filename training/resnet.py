"""ResNet-18 with torchvision's architecture and parameter names, for one-channel images.

Owns the convolutional network, fastai's concat-pooling head as a variant, and loading the weights
that torchvision publishes. Source: He et al. 2015, https://arxiv.org/abs/1512.03385; torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the first may halve height and width."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """(N, 1, H, W) floats → (N, outputs) logits; one input channel, otherwise torchvision's."""

    def __init__(self, outputs: int, concat_pool: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.avgpool: nn.Module = ConcatPool() if concat_pool else nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Module = _fastai_head(512, outputs) if concat_pool else nn.Linear(512, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of (N, 1, H, W) images."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class ConcatPool(nn.Module):
    """fastai's AdaptiveConcatPool2d: (N, D, H, W) → (N, 2 D, 1, 1), maximum beside average."""

    def forward(self, x: Tensor) -> Tensor:
        """Maximum and average over height and width."""
        return torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], dim=1)


def _fastai_head(features: int, outputs: int) -> nn.Sequential:
    """The layers of fastai's `create_head` behind its pooling, with its initialisation."""
    head = nn.Sequential(
        nn.BatchNorm1d(2 * features),
        nn.Dropout(0.25),
        nn.Linear(2 * features, 512, bias=False),
        nn.ReLU(),
        nn.BatchNorm1d(512),
        nn.Dropout(0.5),
        nn.Linear(512, outputs, bias=False),
    )
    for module in head:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return head


def load_torchvision_weights(network: ResNet18, state: Mapping[str, Tensor]) -> None:
    """Load torchvision's published ResNet-18 weights, all but the 1000-class `fc` layer.

    Summing the stem over its three input channels is exact for grey images, whose channels are
    equal. Raises ValueError naming the keys where the state is not a ResNet-18's.
    """
    weights = {key: value for key, value in state.items() if not key.startswith("fc.")}
    if "conv1.weight" not in weights:
        raise ValueError("not a ResNet-18 state: conv1.weight is missing")
    weights["conv1.weight"] = weights["conv1.weight"].sum(dim=1, keepdim=True)  # (64, 1, 7, 7)
    result = network.load_state_dict(weights, strict=False)
    missing = [key for key in result.missing_keys if not key.startswith("fc.")]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"not a ResNet-18 state: missing {missing}, unexpected {result.unexpected_keys}"
        )
