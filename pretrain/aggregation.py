"""Patch aggregation: CLS is made to hold what the patches of an earlier block lack to predict the words.

CLS of the last block and the patches of an earlier one go together through a few blocks more, whose predictions are
judged like the encoder's own. What the patches do not know, CLS has to tell them. The blocks are thrown away after
pre-training: they are under the official name `cls_pt_layers`, not part of the encoder, and not run for evaluations.

Legend: B = batch, N = patches, S = 1 + N with CLS first, D = embed_dim, K = positions predicted per image.

Source: BEiT v2 (Peng et al., 2022) §2.3 and its released code: initial values, stochastic depth and position biases are
those of blocks that follow the earlier one. Differs: the earlier block is given, 3/4 of the depth if not, where the
code has 9 of 12 and 21 of 24; positions that nobody predicts are left out of the last block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from beit.common.vit.config import ViTConfig
from beit.common.vit.init import init_vit
from beit.common.vit.position_bias import gather_bias
from beit.common.vit.vit import Block

LAYERS = "cls_pt_layers"
"""Official name of the blocks."""


def build_layers(config: ViTConfig, num_blocks: int, early: int) -> nn.ModuleList:
    """Return the blocks with initial values, as if they stood behind block `early`."""
    last = max(1, max(config.depth, early + num_blocks) - 1)
    numbers = range(early, early + num_blocks)
    layers = nn.ModuleList(Block(config, config.drop_path * number / last) for number in numbers)
    init_vit(layers, config)
    with torch.no_grad():
        for number, layer in zip(numbers, cast(Iterable[Block], layers), strict=True):
            for weight in (layer.attn.proj.weight, layer.mlp.fc2.weight):  # see `init_vit`
                weight.div_(math.sqrt(2 * (number + 1)))
    return layers


def layer_biases(
    layers: nn.ModuleList, shared: Tensor | None, index: Tensor, grid_size: tuple[int, int]
) -> list[Tensor | None]:
    """Return each block's position bias: by its own table, where blocks have one, else that which all of them share.

    Args:
        layers: From `build_layers`.
        shared: Bias of the encoder's first block, (1, H, S, S), or None.
        index: The encoder's `relative_position_index`.
        grid_size: Patches (height, width).
    """
    tables = [layer.attn.relative_position_bias_table for layer in cast(Iterable[Block], layers)]
    if shared is None or tables[0] is None:
        return [shared] * len(tables)
    return [gather_bias(cast(Tensor, table), index, grid_size).to(shared.dtype) for table in tables]


def with_cls(last: Tensor, early: Tensor) -> Tensor:
    """Put CLS of the last block, the first of (B, any, D), before the patches of the earlier one, (B, S, D)."""
    return torch.cat([last[:, :1], early[:, 1:]], dim=1)
