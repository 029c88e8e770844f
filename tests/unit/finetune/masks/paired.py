"""Images and masks for tests of paired containers, and what comes out of them."""

import io

import numpy as np
from PIL import Image

from beit.finetune.masks.types import MaskedSource


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, form, **options)
    return buffer.getvalue()


def photo(shade, size=(12, 8)):
    return encoded(Image.new("RGB", size, (shade, 0, 0)), "JPEG")


def mask(value, size=(12, 8)):
    ids = np.zeros(size[::-1], np.uint8)
    ids[:, size[0] // 2 :] = value
    return encoded(ids)


def pairs_of(source: MaskedSource) -> list[tuple[str, bytes, bytes]]:
    """Return the path, the image and the mask of every pair, read as a training reads them."""
    assert len(source.images.shards) == len(source.masks)
    found = []
    for images, masks in zip(source.images.shards, source.masks, strict=True):
        with images.open() as image_reader, masks.open() as mask_reader:
            for image, own in zip(images.refs(), masks.refs(), strict=True):
                assert image.label is None
                found.append((image.path, image_reader.read(image), mask_reader.read(own)))
    return found


def ids_of(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.mode == "L"
    return np.asarray(image)
