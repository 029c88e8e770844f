"""Mixup and cutmix: pairs of training images and their targets blended, one strength for a whole step.

Rows 2i and 2i + 1 of the data order are partners, and the strength is drawn from (seed, step): what is mixed with what
is the same for every number of ranks and micro-batches.

Legend: B = batch, C = classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from beit.common.rng import CounterRng
from beit.finetune.augment.settings import MixConfig


@dataclass(frozen=True, slots=True)
class Mix:
    """How the images of one step are mixed."""

    own_share: float
    """Share that an image keeps of itself and of its target, lambda."""
    box: tuple[int, int, int, int] | None
    """Cutmix: top, bottom, left and right of what comes from the partner; None blends the whole image."""


def draw_mix(config: MixConfig, *, seed: int, step: int, img_size: int) -> Mix | None:
    """Draw how the images of an optimizer step are mixed, of `img_size` pixels a side; None where it mixes nothing.

    All micro-batches of a step, on all ranks, share the draw.

    Source: `timm/data/mixup.py`, mode batch, with its corrected lambda. Differs: random numbers; one draw for all
        ranks, where each draws for itself there; partners are neighbours, not first and last.
    """
    rng = CounterRng(seed, "mix", step)
    is_mixed, is_cutmix = rng.uniform() < config.prob, rng.uniform() < config.switch_prob
    if not config.is_on or not is_mixed:
        return None
    if not (config.mixup_alpha and config.cutmix_alpha):
        is_cutmix = config.cutmix_alpha > 0
    if not is_cutmix:
        return Mix(beta(rng, config.mixup_alpha), None)
    top, bottom, left, right = box = _draw_box(rng, beta(rng, config.cutmix_alpha), img_size)
    return Mix(1.0 - (bottom - top) * (right - left) / img_size**2, box)


def _draw_box(rng: CounterRng, own_share: float, img_size: int) -> tuple[int, int, int, int]:
    """Draw a square of area (1 - own_share) around a random point, cut off at the border."""
    half = int(img_size * math.sqrt(1.0 - own_share)) // 2
    centre_y, centre_x = rng.integers(0, img_size - 1), rng.integers(0, img_size - 1)
    top, left = max(centre_y - half, 0), max(centre_x - half, 0)
    return top, min(centre_y + half, img_size), left, min(centre_x + half, img_size)


def beta(rng: CounterRng, alpha: float) -> float:
    """Draw from Beta(alpha, alpha) by Jöhnk's method, whose speed is fine for the small alphas in use."""
    while True:
        first, second = (math.pow(rng.uniform(), 1.0 / alpha) for _ in range(2))
        if 0.0 < first + second <= 1.0:
            return first / (first + second)


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Mix images (B, 3, H, W) float with their partners; B is even. Returns a new tensor."""
    other = swap_partners(images)
    if mix.box is None:
        return torch.lerp(other, images, mix.own_share)
    top, bottom, left, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return mixed


def mix_targets(targets: Tensor, mix: Mix) -> Tensor:
    """Mix targets (B, C) float with those of the partners."""
    return torch.lerp(swap_partners(targets), targets, mix.own_share)


def swap_partners(rows: Tensor) -> Tensor:
    """Exchange rows 2i and 2i + 1 along the first dimension, whose length is even."""
    return rows.reshape(-1, 2, *rows.shape[1:]).flip(1).flatten(0, 1)
