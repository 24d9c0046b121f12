"""Batch normalisation of a batch whose rows lie in several processes: the whole batch decides.

Each process normalising its own rows would train another model than one process does, and fails
where only one row is left for it. PyTorch's SyncBatchNorm is for GPUs only; this one is for CPUs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def share_statistics(network: nn.Module, nccl: dist.ProcessGroup | None) -> nn.Module:
    """The network with each batch normalisation replaced by one over all processes, which has the
    same parameters and buffers; over GPUs where there is an NCCL group."""
    if nccl is not None:
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network, nccl)
        return shared
    if isinstance(network, _BatchNorm):
        return _Shared(network)
    for name, child in network.named_children():
        setattr(network, name, share_statistics(child, None))
    return network


class _Shared(nn.Module):
    """One batch normalisation in training: mean and variance of the rows of all processes.

    A process may have no rows. Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) → the same, each channel of mean 0 and variance 1 before weight and bias."""
        rows_and_pixels = [0, *range(2, x.dim())]
        wide = x.double()  # a variance as a difference of sums is too coarse in single precision
        count = torch.full((x.shape[1],), x.numel() / x.shape[1], dtype=torch.float64)
        sums = torch.stack([wide.sum(rows_and_pixels), wide.square().sum(rows_and_pixels), count])
        totals: Tensor = _Sum.apply(sums)  # type: ignore[no-untyped-call]
        total, squares, n = totals  # (C,) each
        mean = total / n
        variance = squares / n - mean.square()
        self._track(mean.detach(), (variance * n / (n - 1)).detach())
        scale = self.norm.weight * (variance + self.norm.eps).rsqrt()  # (C,)
        shape = (1, -1, *[1] * (x.dim() - 2))
        moved = (self.norm.bias - mean * scale).to(x.dtype)
        normalised: Tensor = x * scale.to(x.dtype).view(shape) + moved.view(shape)
        return normalised

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """What evaluation normalises with; the variance is the unbiased one."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert norm.momentum is not None
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_(variance.to(norm.running_var.dtype), norm.momentum)


class _Sum(torch.autograd.Function):
    """The sum over the processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total: Tensor = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total: Tensor = gradients[0].clone()
        dist.all_reduce(total)
        return total
