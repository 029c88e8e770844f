"""How much arithmetic a segmentation is: its head, and an evaluation, whose images are looked at in parts."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from beit.common.vit.config import ViTConfig
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig
from beit.finetune.segmentation.model import HEAD_PREFIXES, Segmenter
from beit.finetune.segmentation.step import pixel_loss

_ASPECT = 4 / 3
"""Of an image of which only the short side is known."""


class HeadCost(NamedTuple):
    """Of neck and heads, for one crop."""

    flops: int
    """Multiplications and additions of the forward pass."""
    parameters: int
    """All of them trained."""
    kept_bytes: int
    """What the backward pass needs in float32, the loss of every pixel included."""


def head_flops(architecture: ViTConfig, head: HeadConfig, *, num_classes: int) -> int:
    """Return multiplications and additions of neck and heads in one crop's forward pass; nothing is computed."""
    return head_cost(architecture, head, num_classes=num_classes).flops


@lru_cache(maxsize=4)
def head_cost(architecture: ViTConfig, head: HeadConfig, *, num_classes: int) -> HeadCost:
    """Count neck and heads by running them on tensors without contents: nothing is computed."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # else another tensor may get the identity of one that is gone

    def note(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.device("meta"):
        model = Segmenter(architecture, num_classes=num_classes, head=head).eval()
        height, width = architecture.grid_size
        maps = torch.zeros(1, architecture.embed_dim, height, width, requires_grad=True)
        levels: list[Tensor] = [maps.clone() for _ in head.blocks or ()]
        masks = torch.zeros(1, architecture.img_size, architecture.img_size, dtype=torch.uint8)
    own = [weight for name, weight in model.named_parameters() if name.startswith(HEAD_PREFIXES)]
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(note, lambda tensor: tensor):
        if model.neck is not None:
            levels = model.neck(levels)
        alive.append(pixel_loss(model.decode_head(levels), masks)[0])
        if model.auxiliary_head is not None:
            alive.append(pixel_loss(model.auxiliary_head(levels), masks)[0])
    for weight in own:
        kept.pop(weight.untyped_storage()._cdata, None)
    return HeadCost(int(counter.get_total_flops()), sum(map(torch.numel, own)), sum(kept.values()))


def evaluation_windows(pixel_counts: NDArray[np.integer[Any]], settings: InferenceConfig, *, crop_px: int) -> float:
    """Estimate what an evaluation costs, in crops.

    Args:
        pixel_counts: Pixels of each image by class, and of none, (images, classes + 1).
        settings: How images are segmented.
        crop_px: Side of the crop.
    """
    pixels = pixel_counts.sum(1).astype(np.float64)
    if settings.short_side is not None:
        pixels[:] = settings.short_side**2 * _ASPECT
    stride = settings.stride or max(1, round(2 / 3 * crop_px))
    own_px = crop_px if settings.mode == "whole" else min(stride, crop_px)
    scales = math.fsum(float(np.maximum(1, pixels * scale**2 / own_px**2).sum()) for scale in settings.scales)
    return scales * (2 if settings.flip else 1)
