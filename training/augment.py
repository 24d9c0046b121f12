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


def draw(how: Augment, count: int, generator: Generator) -> Tensor:
    """How each of so many images is moved, (N, 3) in [-1, 1); nothing is drawn for no movement."""
    if not how.shift and not how.rotation:
        return torch.zeros(count, 3)
    return torch.rand(count, 3, generator=generator) * 2 - 1


def augment(images: Tensor, how: Augment, draws: Tensor) -> Tensor:
    """(N, 28, 28) uint8 → the same shape and type, each image moved and turned as was drawn."""
    if not len(images) or not (how.shift or how.rotation):
        return images
    count, size = len(images), images.shape[-1]
    draws = draws.to(images.device)
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
