"""The head of the paper, UPerNet, and the auxiliary head that helps it train.

Names of parameters are mmsegmentation's. What is pooled, joined and resized follows its version 0.11, the one that the
released configurations were made with.

Legend: B = batch, D = encoder's width, C = classes, W = channels inside the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from beit.finetune.segmentation.config import HeadConfig
from beit.finetune.segmentation.heads import LEVELS, classifier, conv_norm, resize
from beit.finetune.segmentation.norm import ResolvedNorm

POOL_SCALES = (1, 2, 3, 6)
"""Sides of the grids that the coarsest level is pooled to."""
AUXILIARY_LEVEL = 2
"""The auxiliary head sees the third level, which is the patch grid itself."""
AUXILIARY_CHANNELS = 256
"""Inside the auxiliary head."""


class UperHead(nn.Module):
    """Pool the coarsest level at four scales, add each level to the next finer one, join all four at the finest.

    Source: T. Xiao et al., "Unified Perceptual Parsing for Scene Understanding", 2018; mmsegmentation 0.11's UPerHead
        as the released BEiT configurations set it. Differs: nothing but the order of sums.
    """

    def __init__(self, width: int, head: HeadConfig, num_classes: int) -> None:
        super().__init__()
        channels, norm = cast(int, head.channels), cast(ResolvedNorm, head.norm)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_norm(width, channels, 1, norm)) for scale in POOL_SCALES
        )
        self.bottleneck = _joining(width + len(POOL_SCALES) * channels, channels, norm)
        finer = range(len(LEVELS) - 1)
        self.lateral_convs = nn.ModuleList(conv_norm(width, channels, 1, norm) for _ in finer)
        self.fpn_convs = nn.ModuleList(conv_norm(channels, channels, 3, norm) for _ in finer)
        self.fpn_bottleneck = _joining(len(LEVELS) * channels, channels, norm)
        self.dropout = nn.Dropout2d(head.dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Map the neck's four levels (B, D, ...) to logits (B, C, h', w') on the grid of the first."""
        *finer, coarsest = levels
        top = [self.pool(coarsest)]
        for lateral, level in zip(reversed(self.lateral_convs), reversed(finer), strict=True):
            top.append(lateral(level) + resize(top[-1], level.shape[-2:]))
        smoothed = [conv(level) for conv, level in zip(self.fpn_convs, reversed(top[1:]), strict=True)]
        return self.conv_seg(self.dropout(self.fpn_bottleneck([*smoothed, top[0]])))  # type: ignore[no-any-return]

    def pool(self, coarsest: Tensor) -> Tensor:
        """Put a map (B, D, h, w) beside what is seen of it at four scales, and mix that, (B, W, h, w)."""
        return self.bottleneck([coarsest, *(module(coarsest) for module in self.psp_modules)])  # type: ignore[no-any-return]


class JoiningConv2d(nn.Conv2d):
    """A 3x3 convolution on maps of several sizes, all resized to that of the first and put side by side.

    Three quarters of the input of UPerNet's last convolution are coarse maps made larger. Resizing acts on places and a
    tap of the kernel on channels, so they may change places: each of the nine taps mixes the channels of the small
    map, and one matrix per axis resizes and shifts all nine results at once. Equal up to rounding, in 40 % of the time.
    """

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """Map maps (B, C_i, h_i, w_i), whose channels are the input's in this order, to (B, W, h_0, w_0)."""
        first, *smaller = maps
        kernels = torch.split(self.weight, [level.shape[1] for level in maps], dim=1)
        result = nn.functional.conv2d(first, kernels[0], padding=1)
        for level, kernel in zip(smaller, kernels[1:], strict=True):
            result = result + _conv_of_resized(level, kernel, first.shape[-2:])
        return result


def _conv_of_resized(maps: Tensor, kernel: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, C, h, w) bilinearly and convolve them with a kernel (W, C, 3, 3); returns (B, W, *size)."""
    channels, (height, width) = kernel.shape[0], maps.shape[-2:]
    taps = nn.functional.conv2d(maps, kernel.permute(0, 2, 3, 1).reshape(9 * channels, -1, 1, 1))
    taps = taps.view(-1, channels, 3, 3, height, width).transpose(3, 4).reshape(-1, channels, 3 * height, 3 * width)
    rows, columns = (_shifted_resize(old, new, taps) for old, new in zip((height, width), size, strict=True))
    return rows @ (taps @ columns.T)


def _shifted_resize(length: int, new_length: int, like: Tensor) -> Tensor:
    """Return the matrix (new_length, 3 length) of one axis: of three signals the resized sum.

    The first is seen one place before, the third one place after, and zeros are beyond the ends.
    """
    unit = torch.eye(length, device=like.device)[None]
    matrix = nn.functional.interpolate(unit, size=new_length, mode="linear", align_corners=False)[0].T  # (new, old)
    zeros = torch.zeros_like(matrix[:1])
    shifted = [torch.cat([zeros, matrix[:-1]]), matrix, torch.cat([matrix[1:], zeros])]
    return torch.cat(shifted, dim=1).to(like.dtype)


def _joining(in_channels: int, out_channels: int, norm: ResolvedNorm) -> nn.Sequential:
    """Return what `conv_norm` does, for maps of several sizes."""
    return conv_norm(in_channels, out_channels, 3, norm, kind=JoiningConv2d)


class AuxiliaryHead(nn.Module):
    """A 3x3 convolution and a classifier on one level; of use while training only, and left in the file."""

    def __init__(self, width: int, head: HeadConfig, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(conv_norm(width, AUXILIARY_CHANNELS, 3, cast(ResolvedNorm, head.norm)))
        self.dropout = nn.Dropout2d(head.dropout)
        self.conv_seg = classifier(AUXILIARY_CHANNELS, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Map the neck's levels (B, D, ...) to logits (B, C, h, w) on the patch grid."""
        return self.conv_seg(self.dropout(self.convs(levels[AUXILIARY_LEVEL])))  # type: ignore[no-any-return]
