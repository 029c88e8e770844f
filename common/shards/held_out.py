"""Which samples are held out: those with the smallest hashes, decided for each image as a whole.

Tiles and pages of one image are samples of their own (`tokenize/cutting/cuts.py`), and neighbours look alike: with some
of an image held out and the rest trained on, what is measured would be too good. So the upper half of a sample's hash
is that of its image, and the threshold lies between two images. Only where so few images make up a source that none
can be spared it lies within one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.common.rng import stable_hash64
from beit.common.shards.schema import MAX_HELD_OUT_SHARE, HeldOut
from beit.common.storage.samples import image_key

HeldOutBy = Literal["sample", "image"]
"""What is on one side as a whole: a sample alone, as in stores of before, or all that was cut from an image."""

_IMAGE_BITS = np.uint64(32)
"""The lower half of a hash is that of the sample alone."""


class HeldOutChoice(NamedTuple):
    """What is held out of the samples of a store."""

    threshold: int
    """Of the hashes of those that are, all are below it."""
    num_samples: int
    """Held out."""
    total: int
    """Of all samples."""
    num_images: int
    """That the samples were cut from, held out or not."""
    splits_image: bool
    """Whether one image has samples on both sides, for want of images."""

    @property
    def warning(self) -> str:
        """What to know of a choice that splits an image; empty of others."""
        if not self.splits_image:
            return ""
        of = "a single image"
        if self.num_images > 1:
            of = f"{self.num_images} images, each too large a part to be held out as a whole (a fifth at most)"
        return (
            f"all {self.total} samples were cut from {of}: {self.num_samples} samples are held out whose neighbours in "
            "the same image are trained on, so held-out measures say little of other images; give more images for that"
        )


def held_out_hash(key: str, by: HeldOutBy = "image") -> int:
    """Return the unsigned 64-bit hash of a sample key that decides whether it is held out."""
    own = stable_hash64("held-out", key)
    image = image_key(key)
    if by == "sample" or image == key:
        return own
    return stable_hash64("held-out", image) >> 32 << 32 | own >> 32


def held_out_count(num_samples: int, held_out: HeldOut) -> int:
    """Return how many of `num_samples` to hold out: the share or the minimum, but never more than 20 %."""
    wanted = max(held_out.fraction * num_samples, held_out.minimum)
    return int(min(wanted, MAX_HELD_OUT_SHARE * num_samples))


def choose_held_out(hashes: NDArray[np.uint64], held_out: HeldOut, by: HeldOutBy = "image") -> HeldOutChoice:
    """Choose the samples with the smallest hashes: as many as are wanted, and what else belongs to the last image.

    Where that would be more than a fifth of all, the last image is trained on, unless next to nothing is held out then.

    Args:
        hashes: `held_out_hash` of all keys, at least one, in any order.
        held_out: How many are wanted.
        by: As the hashes are.
    """
    ordered = np.sort(hashes)
    total, wanted = len(ordered), held_out_count(len(ordered), held_out)
    images = ordered >> _IMAGE_BITS
    num_images = 1 + int(np.count_nonzero(np.diff(images))) if by == "image" else total
    count, splits = wanted, False
    if by == "image" and wanted and images[wanted - 1] == images[wanted]:
        first, end = (int(np.searchsorted(images, images[wanted], side=side)) for side in ("left", "right"))  # type: ignore[call-overload]
        enough = max(1, wanted // 2)
        count = end if end <= MAX_HELD_OUT_SHARE * total else first if first >= enough else wanted
        splits = count == wanted
    return HeldOutChoice(int(ordered[count]), count, total, num_images, splits)
