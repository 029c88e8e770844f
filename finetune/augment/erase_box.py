"""Which rectangle of a training image random erasing replaces; torch-free. Replacing it is `erasing.py`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from beit.common.rng import CounterRng

BOX_FIELDS = 6
"""top, left, height, width, and two 32-bit keys of the noise; a height of 0 erases nothing."""

_ATTEMPTS = 10
_AREA = (0.02, 1 / 3)
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_LARGEST_KEY = 0xFFFFFFFF


def draw_erase_box(rng: CounterRng, img_size: int, probability: float) -> NDArray[np.int64]:
    """Draw what is erased of one image.

    Args:
        rng: Owns all randomness; same state, same box.
        img_size: Side of the image in pixels.
        probability: Of erasing anything.
    Returns:
        (6,) int64, see `BOX_FIELDS`; zeros if nothing is erased.
    Source: Random Erasing (Zhong et al. 2017) as in `timm/data/random_erasing.py`, count 1. Differs: nothing.
    """
    if rng.uniform() >= probability:
        return np.zeros(BOX_FIELDS, np.int64)
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*_AREA) * img_size**2
        aspect = math.exp(rng.uniform(*_LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < img_size and 0 < width < img_size:
            top, left = rng.integers(0, img_size - height), rng.integers(0, img_size - width)
            keys = (rng.integers(0, _LARGEST_KEY), rng.integers(0, _LARGEST_KEY))
            return np.array([top, left, height, width, *keys], np.int64)
    return np.zeros(BOX_FIELDS, np.int64)
