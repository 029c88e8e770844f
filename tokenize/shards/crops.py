"""Materialised crops: the views of an image rendered and encoded once, stored instead of the image.

A crop has the side the ViT sees, and is flipped and coloured already, so training only decodes it. What the tokenizer
sees is resized from the *decoded* crop, never from the image: otherwise tokens and pixels would disagree by what the
JPEG encoder changed. The stored view of a crop is the whole of it, unchanged, so that `render_view` replays it like any
other and its checksum covers every pixel.

In the tar, view k of a sample is the member `<key>.<k>.jpg`; `<key>.json` says what each was cut from.

K views per image.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from beit.common.errors import InputError
from beit.common.images.channels import image_of
from beit.common.images.decode import decode_image
from beit.common.images.decoding import MAX_SIDE_PX, USUAL, Decoding
from beit.common.jitter import FACTOR_ONE
from beit.common.shards.schema import StoreInfo
from beit.common.sources.tars import TarCopy, TarReader, TarShard
from beit.common.sources.types import SampleRef, ShardReader
from beit.common.storage.place import place_of
from beit.common.storage.tar_walk import TarIndex, TarMember, group_samples, walk_tar
from beit.common.views import VIEW_DTYPE, render_view
from beit.tokenize.shards.encode import PreparedImage, ViewMaker, empty_image

_DRAWN_FIELDS = ("left", "top", "w", "h", "flip", "jitter_order", "bright", "contrast", "sat")


def cut_crops(
    data: bytes, key: str, maker: ViewMaker, *, img_size: int, jpeg_quality: int
) -> tuple[list[bytes], dict[str, Any]]:
    """Render and encode all views of an image.

    Args:
        data: The encoded image.
        key: Of the sample; decides on the views, as without materialising.
        maker: Draws them.
        img_size: Side of a crop in pixels.
        jpeg_quality: Pillow's scale.
    Returns:
        K JPEG files; size of the image, and the view each crop shows, as plain JSON values.
    Raises:
        BadSample: the image cannot be decoded.
    """
    return crops_of(decode_image(data, maker.decoding), key, maker, img_size=img_size, jpeg_quality=jpeg_quality)


def crops_of(
    image: Image.Image, key: str, maker: ViewMaker, *, img_size: int, jpeg_quality: int
) -> tuple[list[bytes], dict[str, Any]]:
    """Render and encode all views of a decoded image, see `cut_crops`."""
    encoded, drawn = [], []
    for k in range(maker.num_views):
        view = maker.draw(key, k, image)
        pixels = render_view(image, view, img_size=img_size, jitter_scope=maker.augment.jitter_scope)
        buffer = io.BytesIO()
        image_of(pixels).save(buffer, "JPEG", quality=jpeg_quality)
        encoded.append(buffer.getvalue())
        drawn.append({name: int(view[name]) for name in _DRAWN_FIELDS})
    return encoded, {"size": list(image.size), "views": drawn}


def whole_view(side: int) -> np.void:
    """Return the `VIEW_DTYPE` record that shows all of a square image as it is; its two checks are 0."""
    neutral = (FACTOR_ONE, FACTOR_ONE, FACTOR_ONE)
    record: np.void = np.array([(0, 0, side, side, 0, 0, *neutral, 0, np.zeros(16, np.uint8))], dtype=VIEW_DTYPE)[0]
    return record


def crop_suffix(view_k: int) -> str:
    """Return what follows the key in the name of a crop."""
    return f"{view_k}.jpg"


@dataclass(frozen=True, slots=True)
class CropsRef(SampleRef):
    """A sample whose views lie in a tar as crops; offset and length are those of the first."""

    crops: tuple[SampleRef, ...]
    """Where each view lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropMaker:
    """Renders the crops of a sample for the tokenizer: the `ImageMaker` of materialised stores."""

    img_size: int
    token_img_size: int
    decoding: Decoding = USUAL
    """Of the crops."""

    @classmethod
    def of_store(cls, info: StoreInfo) -> CropMaker:
        """Return the maker of the views of a materialised store."""
        return cls(img_size=info.img_size, token_img_size=info.token_img_size, decoding=info.decoding)

    def read(self, ref: CropsRef, reader: ShardReader) -> list[bytes]:
        """Return the encoded crops."""
        return [reader.read(crop) for crop in ref.crops]

    def make(self, ref: CropsRef, data: list[bytes]) -> PreparedImage:
        """Decode the crops and render each."""
        prepared, whole = empty_image(ref, len(data), self.token_img_size), whole_view(self.img_size)
        for k, crop in enumerate(data):
            prepared.fill(k, decode_image(crop, self.decoding), whole, jitter_scope="crop")  # nothing is left to jitter
        return prepared


@dataclass(frozen=True, slots=True)
class CropTar:
    """An image tar of a materialised store, packed by us."""

    location: str
    num_views: int
    copy: TarCopy | None = field(default=None, compare=False, repr=False)
    """As of a `TarShard`."""

    def refs(self) -> list[CropsRef]:
        """List the samples."""
        return self.scan()[0]

    def scan(self) -> tuple[list[CropsRef], TarIndex]:
        """Walk the tar once and return its samples together with the walk's result."""
        with self.open() as reader:
            index = walk_tar(reader.file, label=self.location)
            samples = group_samples(index.members, label=self.location)
            return [self._ref(key, sample, reader) for key, sample in samples.items()], index

    def open(self) -> AbstractContextManager[TarReader]:
        """Open the tar for reading crops."""
        return TarShard("", self.location, copy=self.copy).open()

    def origin(self, key: str) -> tuple[tuple[int, int], np.ndarray[Any, np.dtype[np.void]]]:
        """Return what the crops of a sample were cut from: width and height of the image, and the drawn views (K,)."""
        with place_of(self.location).open() as file:
            sample = group_samples(walk_tar(file, label=self.location).members, label=self.location).get(key, {})
            content = self._json(key, sample, TarReader(file, self.location))
        views = np.zeros(self.num_views, dtype=VIEW_DTYPE)
        try:
            width, height = map(int, content["size"])
            for k in range(self.num_views):
                for name in _DRAWN_FIELDS:
                    views[name][k] = content["views"][k][name]
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            raise InputError(f"{self.location} does not say in {key}.json what the crops were cut from") from None
        inside = (views["left"] + views["w"].astype(int) <= width) & (views["top"] + views["h"].astype(int) <= height)
        if max(width, height) > MAX_SIDE_PX or not (inside & (views["w"] > 0) & (views["h"] > 0)).all():
            raise InputError(f"{self.location} has boxes in {key}.json that lie outside its image")
        return (width, height), views

    def _ref(self, key: str, sample: dict[str, TarMember], reader: TarReader) -> CropsRef:
        members, content = list(self._members(key, sample)), self._json(key, sample, reader)
        label, path = content.get("label"), str(content.get("path"))
        crops = tuple(SampleRef(key, member.offset, member.size, label, member.name) for member in members)
        return CropsRef(key, crops[0].offset, crops[0].length, label, path, crops)

    def _json(self, key: str, sample: dict[str, TarMember], reader: TarReader) -> dict[str, Any]:
        member = sample.get("json")
        try:
            content = json.loads(reader.read_range(member.offset, member.size)) if member else None
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise InputError(f"{self.location} has no usable {key}.json")
        return content

    def _members(self, key: str, sample: dict[str, TarMember]) -> Iterator[TarMember]:
        for k in range(self.num_views):
            member = sample.get(crop_suffix(k))
            if member is None:
                raise InputError(f"{self.location} has no crop {key}.{crop_suffix(k)}")
            yield member
