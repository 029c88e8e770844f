"""How much arithmetic a segmentation is: its head, and an evaluation, whose images are looked at in parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from beit.common.vit.config import ViTConfig
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig
from beit.finetune.segmentation.model import Segmenter

_ASPECT = 4 / 3
"""Of an image of which only the short side is known."""


def head_flops(architecture: ViTConfig, head: HeadConfig, *, num_classes: int) -> int:
    """Return multiplications and additions of neck and heads in one crop's forward pass; nothing is computed."""
    with torch.device("meta"):
        model = Segmenter(architecture, num_classes=num_classes, head=head).eval()
        height, width = architecture.grid_size
        levels = [torch.zeros(1, architecture.embed_dim, height, width) for _ in head.blocks or ()]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if model.neck is not None:
            levels = model.neck(levels)
        model.decode_head(levels)
        if model.auxiliary_head is not None:
            model.auxiliary_head(levels)
    return int(counter.get_total_flops())


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
