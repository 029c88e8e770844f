"""How far a share is known that was measured on so many images. How it is written is `numbers.py`."""

from __future__ import annotations

import math

_NORMAL_QUANTILE = 1.959964
"""Of a 95 % interval."""


def share_interval(share: float, num_images: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of so many images, in [0, 1]: what it may be on all images of their kind.

    Source: Wilson 1927, score interval. Differs: nothing.
    """
    spread = _NORMAL_QUANTILE**2 / num_images
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
