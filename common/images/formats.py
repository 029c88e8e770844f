"""Which files are images, by what they are called."""

from __future__ import annotations

import os

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "jfif", "jpe", "mpo", "apng", "tif", "tiff")
"""File endings and tar suffixes that mean "an image", in order of preference where a sample has several."""


def is_image_path(path: str) -> bool:
    """Tell by its ending whether a path names an image."""
    return os.path.splitext(path)[1].lower().lstrip(".") in IMAGE_SUFFIXES
