"""Random erasing: a rectangle of a training image is replaced by noise.

The rectangle is drawn with the view, in a data worker (`augment.py`); the noise is made on the device, after
normalisation, because its values lie outside what uint8 pixels can hold. It is a pure function of a key, so it is the
same on every rank and after every restart.

Legend: B = batch, H x W = image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Replace each image's box by standard normal noise, one number per pixel and channel; no device sync.

    Args:
        images: (B, 3, H, W) float, normalised.
        boxes: (B, 6) int64 from `beit.finetune.augment.augment.draw_erase_box`.
    Returns:
        A new tensor like `images`.
    """
    top, left, height, width = (boxes[:, place, None] for place in range(4))  # (B, 1) each
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    is_row = (rows >= top) & (rows < top + height)  # (B, H)
    is_column = (columns >= left) & (columns < left + width)  # (B, W)
    is_erased = is_row[:, None, :, None] & is_column[:, None, None, :]  # (B, 1, H, W)
    return torch.where(is_erased, keyed_normal(boxes[:, 4:], images.shape[1:]).to(images.dtype), images)


def keyed_normal(keys: Tensor, shape: torch.Size) -> Tensor:
    """Return standard normal numbers, (B, *shape) float32, that depend on nothing but keys and place.

    Keys are (B, 2) int64 below 2**32.
    """
    place = torch.arange(shape.numel(), device=keys.device)
    first = _hash(place + _hash(keys[:, :1]) & _MASK)  # (B, shape.numel())
    second = _hash(first ^ keys[:, 1:])
    uniform = (first + 0.5) * 2.0**-32  # in (0, 1), so that its logarithm is finite
    angle = second * (2.0 * math.pi * 2.0**-32)
    normal = torch.sqrt(-2.0 * torch.log(uniform)) * torch.cos(angle)
    return normal.reshape(-1, *shape)


def _hash(values: Tensor) -> Tensor:
    """Mix 32-bit integers held in int64, so that products do not overflow (Mueller's hash)."""
    for _ in range(2):
        values = (((values >> 16) ^ values) * 0x45D9F3B) & _MASK
    return (values >> 16) ^ values
