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
        self.bottleneck = conv_norm(width + len(POOL_SCALES) * channels, channels, 3, norm)
        finer = range(len(LEVELS) - 1)
        self.lateral_convs = nn.ModuleList(conv_norm(width, channels, 1, norm) for _ in finer)
        self.fpn_convs = nn.ModuleList(conv_norm(channels, channels, 3, norm) for _ in finer)
        self.fpn_bottleneck = conv_norm(len(LEVELS) * channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(head.dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Map the neck's four levels (B, D, ...) to logits (B, C, h', w') on the grid of the first."""
        *finer, coarsest = levels
        top = [self.pool(coarsest)]
        for lateral, level in zip(reversed(self.lateral_convs), reversed(finer), strict=True):
            top.append(lateral(level) + resize(top[-1], level.shape[-2:]))
        joined = [conv(level) for conv, level in zip(self.fpn_convs, reversed(top[1:]), strict=True)]
        joined = [joined[0], *(resize(level, joined[0].shape[-2:]) for level in (*joined[1:], top[0]))]
        return self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(joined, dim=1))))  # type: ignore[no-any-return]

    def pool(self, coarsest: Tensor) -> Tensor:
        """Put a map (B, D, h, w) beside what is seen of it at four scales, and mix that, (B, W, h, w)."""
        pooled = [resize(module(coarsest), coarsest.shape[-2:]) for module in self.psp_modules]
        return self.bottleneck(torch.cat([coarsest, *pooled], dim=1))  # type: ignore[no-any-return]


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
