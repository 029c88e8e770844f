"""Folders of tiny images and masks, in whatever layout a test needs."""

import io

import numpy as np
from PIL import Image

SIZE = (12, 8)


def ids(*values, size=SIZE, dtype=np.uint8):
    """Return a mask (H, W) of vertical stripes of some values."""
    columns = np.array_split(np.arange(size[0]), len(values))
    mask = np.zeros(size[::-1], dtype)
    for value, stripe in zip(values, columns, strict=True):
        mask[:, stripe] = value
    return mask


def colours(*values, size=SIZE):
    """Return a mask (H, W, 3) of vertical stripes of some colours."""
    columns = np.array_split(np.arange(size[0]), len(values))
    mask = np.zeros((*size[::-1], 3), np.uint8)
    for value, stripe in zip(values, columns, strict=True):
        mask[:, stripe] = value
    return mask


def encoded(mask, form="PNG", **options):
    buffer = io.BytesIO()
    (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(buffer, form, **options)
    return buffer.getvalue()


def palette_image(mask, palette):
    """Return a palette image whose indices are the ids of a mask."""
    image = Image.fromarray(mask).copy()
    image.putpalette([channel for colour in palette for channel in colour])
    return image


def photo(number=0, size=SIZE, orientation=None):
    """Return a JPEG, different for every number; with an EXIF orientation if one is given."""
    image = Image.new("RGB", size, (number * 37 % 256, number * 11 % 256, 90))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    return encoded(image, "JPEG", exif=exif)


def write(root, files):
    """Write files: bytes, text, or masks as arrays; an image for None."""
    for number, (name, content) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            is_png = name.lower().endswith(".png")
            content = encoded(Image.new("RGB", SIZE, (number % 256, 0, 0))) if is_png else photo(number)
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return root


def write_set(root, count=3, *, values=(0, 1, 255), images="images", masks="annotations"):
    """Write `count` pairs whose masks hold some values."""
    return write(
        root,
        {f"{images}/{number}.jpg": None for number in range(count)}
        | {f"{masks}/{number}.png": ids(*values) for number in range(count)},
    )
