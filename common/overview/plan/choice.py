"""Which recipes fit so many images, labels and such a machine, and the store that a recipe is made for.

Thresholds are those of the recipes' own headers, or lie between what was measured on both sides of them.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

SMALL_IMAGE_PX = 48
"""Images up to this side hold no more than views of 32 px do."""
FEW_PHOTOS, SOME_PHOTOS, MANY_PHOTOS, MOST_PHOTOS = 1000, 10_000, 400_000, 5_000_000
"""From some hundred photos on tiny networks, from ten thousand small ones, from about a million the paper's."""
SOME_LABELS, MANY_LABELS, MOST_LABELS = 2000, 10_000, 300_000
_STORE_COMMAND = re.compile(r"^#\s+beit tokenize \S+ \S+ (.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What the advice goes by."""

    num_images: int
    """Without labels or with, to pre-train on."""
    num_labels: int | None = None
    """Labelled images to fine-tune on; None where nothing was said of them."""
    has_gpu: bool = False
    """Whether the training is to run on GPUs."""
    side_px: float | None = None
    """Typical short side of an image; None where nobody knows."""


def pretrain_recipe(case: Case) -> tuple[str, str]:
    """Return the recipe to pre-train with where none is named, and for what it is made."""
    if case.side_px is not None and case.side_px <= SMALL_IMAGE_PX:
        if case.has_gpu and case.num_images >= SOME_PHOTOS:
            return "beit_small_patch4_32", "for small images and a GPU"
        return "beit_tiny_patch4_32", "for small images, minutes to an hour on a processor"
    if not case.has_gpu:
        if case.num_images <= FEW_PHOTOS:
            return "beit_mini_patch8_64", "for some hundred photos and a processor, in minutes"
        if case.num_images <= 2 * SOME_PHOTOS:
            return "beit_tiny_patch8_64", "for a few thousand photos and a processor"
        return "beit_mini_patch8_64", "minutes on a processor, whatever the number of photos"
    if case.num_images < SOME_PHOTOS:
        return "beit_tiny_patch8_64", "for a few thousand photos"
    if case.num_images < MANY_PHOTOS:
        return "beit_small_patch16_224", "for ten thousand photos and more, and a GPU"
    if case.num_images < MOST_PHOTOS:
        return "beit_base_patch16_224_1k", "the paper's, for about a million photos"
    return "beit_base_patch16_224_22k", "the paper's, for about 14 million photos"


def finetune_recipe(case: Case, *, patch_size: int) -> str:
    """Return the recipe to fine-tune with where none is named."""
    labels = case.num_labels or 0
    if labels >= MOST_LABELS:
        return "beit_base_patch16_224_1k"
    if labels >= MANY_LABELS:
        return "small_50k"
    return "cifar10_tiny" if patch_size == 4 and labels > SOME_LABELS else "small_500"


def store_settings(recipe: str) -> list[str]:
    """Return the settings of `beit tokenize` that a recipe's header names, as KEY=VALUE; none if it has none.

    The header of a recipe states the command that makes its store, and nothing else does.

    Args:
        recipe: Text of the TOML file.
    """
    found = _STORE_COMMAND.search(recipe)
    settings: list[str] = []
    words = shlex.split(found[1]) if found else []
    while words:
        option = words.pop(0)
        if option == "--materialize":
            settings.append("materialize=true")
        elif option.startswith("--") and words:
            value = words.pop(0)
            settings.append(value if option == "--set" else f"{option[2:].replace('-', '_')}={value}")
    return settings
