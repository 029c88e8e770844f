"""Normalisation inside segmentation heads: batch statistics over all ranks, or groups of channels of each image.

torch's own synchronised batch norm does not run on CPUs. This one does, on whatever the ranks talk over, and gives
gradients as if one rank held the whole batch. Statistics are those of one forward pass: where a step is made of several
micro-batches, each has its own, as in every training with gradient accumulation; see `require_statistics`.

Running statistics are buffers, the same on every rank: they are saved, resumed and averaged with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from beit.common.errors import InputError
from beit.common.processes.distributed import ranks_together

ResolvedNorm = Literal["batch", "group"]
_MOMENTUM = 0.1
"""Share of a new batch in the running statistics; torch's and the released code's."""
_GROUPS = 32
"""Of channels, at most; the number of the paper on group norm."""


class RankBatchNorm(nn.BatchNorm2d):
    """Batch norm of maps (B, C, h, w) over the images of all ranks; alone, and in eval mode, torch's own.

    A step that is not finite leaves the running statistics as they were: its update of the weights is skipped, too.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise every channel."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        running, ranks = (self.running_mean, self.running_var), ranks_together()
        if not self.training or ranks == 0:
            return nn.functional.batch_norm(maps, *running, self.weight, self.bias, eps=self.eps)
        if ranks == 1 and maps.numel() == maps.shape[1]:
            raise InputError(
                "batch norm has one value per channel, of one image; set train.micro_batch_size to 2 or more, or "
                "head.norm=group"
            )
        self.num_batches_tracked += 1
        mean, variance = (statistic.clone() for statistic in running)  # as moved; the gradient holds on to them
        if ranks > 1:
            normalised = self._over_ranks(maps, mean, variance)
        else:
            normalised = nn.functional.batch_norm(
                maps, mean, variance, self.weight, self.bias, training=True, momentum=_MOMENTUM, eps=self.eps
            )
        with torch.no_grad():
            for statistic, moved in zip(running, (mean, variance), strict=True):
                statistic.copy_(torch.where(torch.isfinite(moved), moved, statistic))
        return normalised

    def _over_ranks(self, maps: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        """Normalise by the mean and variance over all ranks, in float32, and move the running ones."""
        with torch.autocast(maps.device.type, enabled=False):
            values, channels = maps.float(), maps.shape[1]
            own_count = values.new_tensor([values.numel() / channels])
            # First the mean, then the squares around it: the sum of plain squares would cancel where means are large.
            total = _sum_over_ranks(torch.cat([values.sum((0, 2, 3)), own_count]))
            count = total[channels:].detach()
            mean = total[:channels] / count
            centred = values - mean[None, :, None, None]
            variance = _sum_over_ranks(centred.square().sum((0, 2, 3))) / count
            with torch.no_grad():
                running_mean.lerp_(mean, _MOMENTUM)
                running_var.lerp_(variance * count / (count - 1).clamp(min=1), _MOMENTUM)
            scale = self.weight * torch.rsqrt(variance + self.eps)
            normalised: Tensor = centred * scale[None, :, None, None] + self.bias[None, :, None, None]
            return normalised.to(maps.dtype)


def _sum_over_ranks(value: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(value)  # type: ignore[no-untyped-call]
    return total


class _SumOverRanks(torch.autograd.Function):
    """Sum a tensor over the ranks; the gradient of every rank's result flows back to every rank."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def build_norm(kind: ResolvedNorm, channels: int) -> nn.Module:
    """Return a norm of maps (B, channels, h, w)."""
    if kind == "batch":
        return RankBatchNorm(channels)
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)


def require_statistics(modules: Iterable[nn.Module], images: int) -> None:
    """Refuse batch norm where all ranks together see a single image at a time, before anything starts.

    The pyramid of upernet pools an image to one value per channel, of which there is no variance; where there is one,
    that of a single image says little.

    Args:
        modules: Of the model.
        images: In one micro-batch over all ranks.
    """
    if images < 2 and any(isinstance(module, RankBatchNorm) for module in modules):
        raise InputError(
            f"head.norm (batch) needs at least 2 images at a time over all ranks, and there is {images}; raise "
            "train.micro_batch_size or train.global_batch_size, or set head.norm=group"
        )
