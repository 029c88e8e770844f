"""How the EXIF data of an image ask to turn and mirror it."""

from __future__ import annotations

from PIL import Image

_EXIF_ORIENTATION = 0x0112

_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def transpose_of(image: Image.Image) -> Image.Transpose | None:
    """Return how an image is to be turned, None where it stands upright or does not say."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block, and cameras write many, says nothing about the pixels
        orientation = 1
    return _TRANSPOSE_OF_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
