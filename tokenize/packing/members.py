"""What stands for an image in a packed tar: its bytes as they came, shrunk, or the crops of its views; and its JSON."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

from PIL import Image

from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.formats import suffix_to_store, without_private
from beit.common.images.jpeg import is_jpeg
from beit.common.images.large.reduced import decode_reduced, reduced
from beit.common.images.large.windows import open_pixels
from beit.common.shards.schema import StoreInfo
from beit.common.sources.labels import stored_label
from beit.common.sources.types import SampleRef
from beit.common.storage.place import FilePart
from beit.tokenize.shards.crops import crop_suffix, cut_crops
from beit.tokenize.shards.encode import ViewMaker

_COMPRESS_LEVEL = 1
"""Of tiles: an eighth larger than at Pillow's 6, in less than half the time (0.10 s for 1024 x 1024 px, 2026-11-30)."""


def members_of(ref: SampleRef, data: bytes | FilePart, info: StoreInfo) -> dict[str, bytes]:
    """Return the members that stand for one image, by what follows the key in their names.

    Args:
        ref: Its key, path and label.
        data: The encoded image, or where it lies if it is too large to be read as a whole.
        info: Settings of the store.
    Raises:
        BadSample: the image cannot be decoded.
    """
    packing = info.packing
    assert packing is not None
    quality = packing.jpeg_quality or 0  # given wherever something is encoded
    if isinstance(data, FilePart):
        with data.open() as file, open_pixels(file, info.source.decoding) as pixels:
            image = reduced(pixels, packing.short_side, most=info.source.decoding.max_pixels)
        data = encoded(image, short_side=packing.short_side, jpeg_quality=quality)
        return {suffix_to_store(data): data, "json": metadata_of(ref, {})}
    if packing.materialize:
        maker = replace(ViewMaker.of_store(info), decoding=info.source.decoding)
        crops, origin = cut_crops(data, ref.key, maker, img_size=info.img_size, jpeg_quality=quality)
        images = {crop_suffix(k): crop for k, crop in enumerate(crops)}
        return images | {"json": metadata_of(ref, origin)}
    if packing.short_side:
        data = shrink(data, packing.short_side, jpeg_quality=quality, decoding=info.source.decoding)
    return {suffix_to_store(data): without_private(data), "json": metadata_of(ref, {})}


def shrink(data: bytes, short_side: int, *, jpeg_quality: int, decoding: Decoding = USUAL) -> bytes:
    """Return the image with its short side reduced to `short_side` px as a JPEG, or as it is if it is not larger.

    The pixels are turned as EXIF asks, so the result carries no EXIF. Who reads it decodes it as usual, so an image
    that is not larger stays as it is only where that shows the same.

    Raises:
        BadSample: the image cannot be decoded.
    """
    image = decode_reduced(data, decoding, short_side)
    if short_side >= min(image.size) and is_kept(data, decoding):
        return data
    return encoded(image, short_side=short_side, jpeg_quality=jpeg_quality)


def is_kept(data: bytes, decoding: Decoding) -> bool:
    """Tell whether an image that is to be decoded so shows the same when stored as it came and read as usual."""
    return decoding.is_usual or (decoding.leaves_jpeg and is_jpeg(data))


def encoded(image: Image.Image, *, short_side: int = 0, jpeg_quality: int) -> bytes:
    """Return an image as a JPEG, or without loss, as PNG, where the quality is 0.

    Args:
        image: Mode "RGB" or "L".
        short_side: That it is reduced to in px if it is larger; 0 leaves its size.
        jpeg_quality: Pillow's scale.
    """
    scale = short_side / min(image.size) if short_side else 1.0
    if scale < 1:
        size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if jpeg_quality:
        image.save(buffer, "JPEG", quality=jpeg_quality)
    else:
        image.save(buffer, "PNG", compress_level=_COMPRESS_LEVEL)
    return buffer.getvalue()


def metadata_of(ref: SampleRef, origin: dict[str, Any]) -> bytes:
    """Return the JSON member of an image.

    Args:
        ref: Its path and label.
        origin: What it was cut from.
    """
    label = stored_label(ref.label)
    metadata = {"path": ref.path} | ({"label": label} if label is not None else {}) | origin
    return json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode()
