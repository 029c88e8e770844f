"""What turns the maps of the encoder's blocks into logits per place: the linear head, and the light one on a pyramid.

Here: what a head's open settings become, the linear head, the official neck, and the light top on it. Not here: the
paper's UPerNet (`upernet.py`), the encoder (`model.py`).

A head takes the maps of several blocks, each (B, D, h, w) on the grid of patches, and returns logits (B, C, h', w') on
a grid of its own. CLS takes no part, nor does a last norm of the encoder: blocks hand over the residual stream as it
is, as in the released code, and heads bring norms of their own.

Legend: B = batch, D = embed_dim, C = classes, h, w = patch grid, W = channels inside the head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from beit.common.errors import require
from beit.common.vit.config import ViTConfig
from beit.finetune.segmentation.config import HeadConfig
from beit.finetune.segmentation.norm import ResolvedNorm, build_norm

LEVELS = ((1, 3), (1, 2), (2, 3), (1, 1))
"""How far up the encoder the neck's blocks are: 4, 6, 8 and 12 of 12 counted from 1, 8, 12, 16 and 24 of 24."""
FPN_CHANNELS = 128
"""Of Panoptic FPN's semantic branch."""
LAST_BLOCKS = 4
"""That linear puts side by side where no probe found the best one; DINOv2's number."""
_CLASSIFIER_STD = 0.01
"""Of a last convolution's first weights; mmsegmentation's."""


def resolve_head(
    head: HeadConfig, architecture: ViTConfig, *, best_block: int | None = None, images: int | None = None
) -> HeadConfig:
    """Fill in what the settings leave open.

    Args:
        head: Settings.
        architecture: Of the encoder.
        best_block: That its probe found, from 0.
        images: In a forward pass while it trains, as far as the settings say, for `norm` auto; by these, not by the
            ranks of the moment, so that a run may go on with another number of them. None is many.

    Returns:
        The settings with blocks counted from 0; for fpn and upernet with channels, and a norm that is batch or group.
    """
    depth = architecture.depth
    blocks = head.blocks
    if blocks is None and head.kind == "linear":
        blocks = (best_block,) if best_block is not None else tuple(range(max(0, depth - LAST_BLOCKS), depth))
    blocks = level_blocks(depth) if blocks is None else tuple(block + depth * (block < 0) for block in blocks)
    is_pyramid = head.kind != "linear"
    require(
        len(blocks) == len(LEVELS) if is_pyramid else len(blocks) > 0,
        f"head.blocks {list(head.blocks or ())} must be {'four' if is_pyramid else 'at least one'} for {head.kind}; "
        "leave it out for the usual ones",
    )
    require(
        all(0 <= block < depth for block in blocks) and list(blocks) == sorted(blocks),
        f"head.blocks {list(head.blocks or ())} must ascend and lie in [{-depth}, {depth - 1}], the encoder's blocks",
    )
    require(
        is_pyramid or len(set(blocks)) == len(blocks), f"head.blocks {list(head.blocks or ())} must not name one twice"
    )
    usual = {"linear": None, "fpn": FPN_CHANNELS, "upernet": architecture.embed_dim}[head.kind]
    norm = head.norm
    if norm == "auto" and is_pyramid:
        norm = "group" if images is not None and images < 2 else "batch"
    return replace(head, blocks=blocks, channels=(head.channels or usual) if is_pyramid else None, norm=norm)


def level_blocks(depth: int) -> tuple[int, ...]:
    """Return the four blocks that the neck takes of an encoder, from 0; some more than once where there are fewer.

    Example:
        >>> level_blocks(12), level_blocks(24)
        ((3, 5, 7, 11), (7, 11, 15, 23))
    """
    # Rounded, a half up; the first block at least.
    return tuple(max(1, (2 * depth * part + whole) // (2 * whole)) - 1 for part, whole in LEVELS)


def head_in_words(head: HeadConfig) -> str:
    """Describe a head with nothing left open, for whoever watches a run begin.

    Example:
        >>> head_in_words(HeadConfig(kind="fpn", blocks=(3, 5, 7, 11), norm="group"))
        'fpn head on blocks 3, 5, 7, 11, group norm'
    """
    blocks = head.blocks or ()
    words = f"{head.kind} head on block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}"
    return words if head.kind == "linear" else f"{words}, {head.norm} norm"


class LinearHead(nn.Module):
    """A norm and a 1x1 convolution on the patches of one block, or of several side by side.

    The norm is a LayerNorm, one per block since the scale of the residual stream grows from block to block. DINOv2 and
    others have a batch norm there. Both put features in order for one linear map; LayerNorm does it patch by patch, so
    that training and use compute the same function, whatever the micro-batch and the number of ranks.
    """

    def __init__(self, config: ViTConfig, head: HeadConfig, num_classes: int) -> None:
        super().__init__()
        count, width = len(head.blocks or ()), config.embed_dim
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(count))
        self.dropout = nn.Dropout2d(head.dropout)
        self.conv_seg = classifier(width * count, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map maps (B, D, h, w), one per block, to logits (B, C, h, w)."""
        normed = [norm(level.movedim(1, -1)) for norm, level in zip(self.norms, maps, strict=True)]
        features = torch.cat(normed, dim=-1).movedim(-1, 1)
        return self.conv_seg(self.dropout(features))  # type: ignore[no-any-return]


class Neck(nn.Module):
    """The pyramid of the released code: maps of four blocks, all on the patch grid, become 4, 2, 1 and 1/2 times it.

    With patches of 16 px these are the usual strides 4, 8, 16 and 32. All keep the encoder's width D.

    Source: the released BEiT code. Differs: a grid one patch high or wide keeps its one row or column when halved.
    """

    def __init__(self, width: int, norm: ResolvedNorm) -> None:
        super().__init__()
        self.fpn1 = nn.Sequential(_double(width), build_norm(norm, width), nn.GELU(), _double(width))
        self.fpn2 = nn.Sequential(_double(width))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map four maps (B, D, h, w) to four (B, D, ...) of falling size."""
        first, second, third, fourth = maps
        is_thin = min(fourth.shape[-2:]) < 2
        return [
            self.fpn1(first),
            self.fpn2(second),
            third,
            nn.functional.max_pool2d(fourth, 2, ceil_mode=is_thin),
        ]


class FpnHead(nn.Module):
    """The light top: every level goes through a 1x1 convolution, all are added up at the finest, a 3x3 one follows.

    A lighter relative of Panoptic FPN's semantic branch, which has up to three 3x3 convolutions per level instead.
    """

    def __init__(self, width: int, head: HeadConfig, num_classes: int) -> None:
        super().__init__()
        channels, norm = cast(int, head.channels), cast(ResolvedNorm, head.norm)
        self.lateral_convs = nn.ModuleList(conv_norm(width, channels, 1, norm) for _ in LEVELS)
        self.fpn_conv = conv_norm(channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(head.dropout)
        self.conv_seg = classifier(channels, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Map the neck's four levels to logits (B, C, h', w') on the grid of the first."""
        finest, *coarser = (lateral(level) for lateral, level in zip(self.lateral_convs, levels, strict=True))
        for level in coarser:
            finest = finest + resize(level, finest.shape[-2:])
        return self.conv_seg(self.dropout(self.fpn_conv(finest)))  # type: ignore[no-any-return]


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, C, h, w) to a size (height, width), bilinear between centres of pixels.

    align_corners is off, as in the released configuration: corners of the grid of patches are not places of the image.
    """
    return nn.functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def conv_norm(
    in_channels: int, out_channels: int, side: int, norm: ResolvedNorm, kind: type[nn.Conv2d] = nn.Conv2d
) -> nn.Sequential:
    """Return a convolution without bias that keeps the size, a norm and a ReLU, with mmcv's names and first weights."""
    conv = kind(in_channels, out_channels, side, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    name = "bn" if norm == "batch" else "gn"
    return nn.Sequential(OrderedDict({"conv": conv, name: build_norm(norm, out_channels), "activate": nn.ReLU()}))


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """Return the last convolution, 1x1 with bias, from channels to logits."""
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=_CLASSIFIER_STD)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _double(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
