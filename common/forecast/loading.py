"""What a data worker needs for a sample: read, decode, crop, resize, jitter, mask. Measured, docs/results.md."""

from __future__ import annotations

_FIXED_SECONDS = 0.25e-3
_DECODING, _RENDERING = 9.5e-3, 20e-3
"""Seconds per megapixel: of the JPEG, and of the view that is cropped, resized and jittered."""
PHOTO_MEGAPIXELS = 0.19
"""Of an image of which nothing else is known: 500 x 375, as ImageNet's are."""


def sample_seconds(
    img_size: int, *, stored_megapixels: float = PHOTO_MEGAPIXELS, is_materialized: bool = False
) -> float:
    """Return the seconds of one core for one view of `img_size` pixels.

    Args:
        img_size: Side of the view.
        stored_megapixels: Of the stored image.
        is_materialized: Whether crops are stored that need no work but decoding.
    """
    view = img_size**2 / 1e6
    if is_materialized:
        return _FIXED_SECONDS + _DECODING * view
    return _FIXED_SECONDS + _DECODING * stored_megapixels + _RENDERING * view
