"""Random small shifts and rotations of a batch of images, drawn from one generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Augment:
    """The largest shift, in pixels along each axis, and rotation, in degrees; zeros do nothing."""

    shift: float
    rotation: float


def augment(images: Tensor, how: Augment, generator: Generator) -> Tensor:
    """(N, 28, 28) uint8 → the same shape and type, each image moved and turned on its own."""
    if not how.shift and not how.rotation:
        return images
    count, size = len(images), images.shape[-1]
    draws = torch.rand(count, 3, generator=generator).to(images.device) * 2 - 1  # in [-1, 1)
    angle = draws[:, 0] * math.radians(how.rotation)
    offset = draws[:, 1:] * (2 * how.shift / size)  # affine_grid spans [-1, 1]
    theta = torch.stack(
        [
            torch.stack([angle.cos(), -angle.sin(), offset[:, 0]], dim=1),
            torch.stack([angle.sin(), angle.cos(), offset[:, 1]], dim=1),
        ],
        dim=1,
    )  # (N, 2, 3)
    grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)
    moved = F.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False)
    return moved.squeeze(1).round().to(torch.uint8)
