"""Making the tiles of a cut: decoded window by window, measured for being of one colour, and encoded without loss.

An image that is no larger than a tile, and the only page of its file, stays as it came where whoever reads the store
decodes it to the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from beit.common.errors import BadSample
from beit.common.images.decode import decode_image
from beit.common.images.decoding import MAX_IMAGE_BYTES, Decoding
from beit.common.images.formats import suffix_to_store, without_private
from beit.common.images.large.tiles import Box, Tile, Tiling
from beit.common.images.large.windows import Pixels, open_pixels
from beit.common.shards.schema import StoreInfo
from beit.common.sources.types import SampleRef
from beit.common.storage.place import FilePart
from beit.tokenize.cutting.cuts import CutRef
from beit.tokenize.packing.members import encoded, is_kept, metadata_of
from beit.tokenize.shards.crops import crop_suffix, crops_of
from beit.tokenize.shards.encode import ViewMaker

FLAT_STD = 1.0
"""Below this standard deviation of brightness, of 255, a tile is next to one colour: what sensor noise stays above."""


class Piece(NamedTuple):
    """One sample of a cut."""

    ref: SampleRef
    members: dict[str, bytes] | BadSample | None
    """Its content by what follows the key in the name, why there is none, or None where it is left out as of one
    colour."""
    is_flat: bool = False
    """Whether it is next to one colour."""
    share: float = 1.0
    """Of the image: what is lost of it where there is no content."""


def pieces_of(cut: CutRef, place: FilePart, info: StoreInfo) -> list[Piece]:
    """Make the samples of a cut; what is wrong with one of them is told in its place.

    Raises:
        BadSample: nothing of the image can be decoded.
    """
    packing, decoding = info.packing, info.source.decoding
    assert packing is not None
    decoding = replace(decoding, frame=cut.page if cut.page is not None else _usual_frame(decoding))
    if packing.tile and cut.size is not None and max(cut.size) > packing.tile:
        with place.open() as file, open_pixels(file, decoding) as pixels:
            if pixels.size != cut.size:
                raise BadSample("changed", f"{pixels.size} px, {cut.size} by its header")
            tiling = Tiling(packing.tile, packing.overlap)
            tiles = list(tiling.tiles(cut.size, cut.first, cut.count))
            return [_piece(cut, tile, image, info) for tile, image in _images(pixels, tiles)]
    with place.open() as file:
        data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise BadSample("too-large", f"more than {MAX_IMAGE_BYTES} bytes")
    return [_whole(cut, data, decoding, info)]


def _usual_frame(decoding: Decoding) -> str | int:
    return "first" if decoding.frame == "each" else decoding.frame


def _images(pixels: Pixels, tiles: list[Tile]) -> Iterator[tuple[Tile, Image.Image | BadSample]]:
    """Yield the pixels of tiles, or why they cannot be had; what neighbours share is decoded once."""
    around = Box(
        min(tile.box.left for tile in tiles),
        min(tile.box.top for tile in tiles),
        max(tile.box.right for tile in tiles),
        max(tile.box.bottom for tile in tiles),
    )
    shared: Image.Image | None = None
    if pixels.has_windows and len(tiles) > 1:
        try:
            shared = pixels.read(around)
        except BadSample:
            shared = None  # some of them may be whole
    for tile in tiles:
        left, top, right, bottom = tile.box
        try:
            if shared is None:
                yield tile, pixels.read(tile.box)
            else:
                x, y = around.left, around.top
                yield tile, shared.crop((left - x, top - y, right - x, bottom - y))
        except BadSample as error:
            yield tile, error


def _piece(cut: CutRef, tile: Tile, image: Image.Image | BadSample, info: StoreInfo) -> Piece:
    separator = "~" if cut.page is None else ""
    key = f"{cut.own_key}{separator}{tile.name}"
    ref = SampleRef(key, cut.offset, cut.length, cut.label, cut.path)
    if isinstance(image, BadSample):
        return Piece(ref, image)
    origin = {"tile": {"box": list(tile.box), "size": list(cut.size or ())} | _page_of(cut)}
    return _encoded_piece(ref, image, origin, info)


def _whole(cut: CutRef, data: bytes, decoding: Decoding, info: StoreInfo) -> Piece:
    """Make the one sample of an image, or of a page, that is not cut."""
    packing = info.packing
    assert packing is not None
    ref = SampleRef(cut.own_key, cut.offset, cut.length, cut.label, cut.path)
    is_small = not packing.short_side or (cut.size is not None and min(cut.size) <= packing.short_side)
    if cut.page is None and is_small and not packing.materialize and is_kept(data, decoding):
        return Piece(ref, {suffix_to_store(data): without_private(data), "json": metadata_of(ref, {})})
    image = decode_image(data, decoding)
    origin = {"tile": {"box": [0, 0, *image.size], "size": list(image.size)} | _page_of(cut)} if _page_of(cut) else {}
    return _encoded_piece(ref, image, origin, info, may_be_left_out=bool(packing.tile))


def _page_of(cut: CutRef) -> dict[str, int]:
    return {} if cut.page is None else {"page": cut.page}


def _encoded_piece(
    ref: SampleRef, image: Image.Image, origin: dict[str, Any], info: StoreInfo, *, may_be_left_out: bool = True
) -> Piece:
    packing = info.packing
    assert packing is not None
    spread = brightness_std(image)
    is_flat = spread < FLAT_STD
    if may_be_left_out and spread < packing.tile_min_std:
        return Piece(ref, None, is_flat)
    quality = packing.jpeg_quality or 0
    if packing.materialize:
        crops, drawn = crops_of(image, ref.key, ViewMaker.of_store(info), img_size=info.img_size, jpeg_quality=quality)
        members = {crop_suffix(k): crop for k, crop in enumerate(crops)}
        return Piece(ref, members | {"json": metadata_of(ref, origin | drawn)}, is_flat)
    data = encoded(image, short_side=packing.short_side, jpeg_quality=quality)
    return Piece(ref, {suffix_to_store(data): data, "json": metadata_of(ref, origin)}, is_flat)


def brightness_std(image: Image.Image) -> float:
    """Return the standard deviation of the brightness of an image, of 8 bits (Rec. 601 luma)."""
    counts = np.array(image.convert("L").histogram(), np.float64)
    levels = np.arange(256)
    mean = (counts * levels).sum() / counts.sum()
    return float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))
