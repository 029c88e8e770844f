"""Patches of images: cut out and put together, and the mean one of every word.

By means, words are painted that were never meant to be.

Words of features stand for what is in a square, not for its pixels; the mean of all squares that carry a word is the
picture of it that errs least, and a blurred one. Only pictures need it.

V words, p pixels per patch and side, B images, h x w patches each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cut_patches(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, 3, H, W) into patches (B, h, w, 3, p, p)."""
    batch, channels, height, width = images.shape
    sizes = (batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return images.reshape(sizes).permute(0, 2, 4, 1, 3, 5)


def join_patches(patches: Tensor) -> Tensor:
    """Join patches (B, h, w, 3, p, p) to images (B, 3, H, W)."""
    batch, rows, columns, channels, side, _ = patches.shape
    joined = patches.permute(0, 3, 1, 4, 2, 5)  # (B, 3, h, p, w, p)
    return joined.reshape(batch, channels, rows * side, columns * side)


class PatchMeans:
    """Adds up squares of images by their words, wherever the images are; sums are kept on the CPU."""

    def __init__(self, vocab_size: int, patch_size: int) -> None:
        self._sums = torch.zeros(vocab_size, 3, patch_size, patch_size, dtype=torch.int64)
        self._counts = torch.zeros(vocab_size, dtype=torch.int64)

    def add(self, images: Tensor, token_ids: Tensor) -> None:
        """Take images, uint8 (B, 3, h * p, w * p), and their words, int64 (B, h, w)."""
        squares = cut_patches(images.cpu(), self._sums.shape[-1]).flatten(0, 2)  # (B * h * w, 3, p, p)
        words = token_ids.flatten().cpu()
        self._sums.index_add_(0, words, squares.long())
        self._counts += torch.bincount(words, minlength=len(self._counts))

    def result(self) -> Tensor:
        """Return the mean patch of each word, uint8 (V, 3, p, p); the mean of all where a word was never seen."""
        overall = self._sums.sum(dim=0) / self._counts.sum().clamp_min(1)
        counts = self._counts.view(-1, 1, 1, 1)
        means = torch.where(counts > 0, self._sums / counts.clamp_min(1), overall)
        return means.round().to(torch.uint8)
