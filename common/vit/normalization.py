"""Pixels from bytes to what a network expects, on whatever device they lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize_images(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale images, (B, 3, H, W) uint8, to [0, 1], subtract `mean`, divide by `std`, per channel: to float32."""
    # One multiply-add: (x / 255 - mean) / std = x * scale + shift.
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(1, -1, 1, 1)
    return torch.addcmul(shift, images.float(), scale)
