"""One image's bytes to its K views, as stored records and as pixels for the tokenizer.

Here: which random numbers belong to which view, and what is computed from the pixels while they are at hand. Not here:
the geometry itself (`beit.common.views`) and the tokenizer's forward pass (`encode.py`).

K views per image, s side of the view the tokenizer sees in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample
from beit.common.images import decode_image
from beit.common.shards.schema import StoreInfo
from beit.common.sources.types import SampleRef, ShardReader
from beit.common.views import (
    TOKEN_RESAMPLE,
    VIEW_DTYPE,
    AugmentConfig,
    JitterScope,
    crop_crc,
    draw_stored_view,
    mean_luma,
    render_view,
)


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image on its way to the tokenizer."""

    ref: SampleRef
    views: np.ndarray[Any, np.dtype[np.void]]
    """(K,) of `VIEW_DTYPE`."""
    token_views: NDArray[np.uint8]
    """Pixels (K, s, s, 3)."""

    def fill(self, view_k: int, image: Image.Image, view: np.void, jitter_scope: JitterScope) -> None:
        """Render view k for the tokenizer, and note its record together with the two checks of its pixels."""
        self.token_views[view_k] = render_token_view(image, view, self.token_views.shape[1], jitter_scope)
        self.views[view_k] = view
        self.views[view_k]["crc_crop"] = crop_crc(image, view)
        self.views[view_k]["luma"] = mean_luma(self.token_views[view_k])


@dataclass(frozen=True, slots=True)
class RejectedImage:
    """An image that cannot be used."""

    ref: SampleRef
    error: BadSample


class ImageMaker(Protocol):
    """Makes the views of a sample, in two parts: one needs the open container, the other a processor."""

    def read(self, ref: Any, reader: ShardReader) -> Any:
        """Return what is stored of the sample.

        Raises:
            BadSample: it is missing, cut or too large.
        """

    def make(self, ref: Any, data: Any) -> PreparedImage:
        """Decode what was read and render its views.

        Raises:
            BadSample: it cannot be decoded.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewMaker:
    """Draws and renders the views of an image; a pure function of settings, key and image bytes."""

    seed: int
    num_views: int
    token_img_size: int
    augment: AugmentConfig

    @classmethod
    def of_store(cls, info: StoreInfo) -> ViewMaker:
        """Return the maker of the views of a store."""
        return cls(seed=info.seed, num_views=info.views, token_img_size=info.token_img_size, augment=info.augment)

    def draw(self, key: str, view_k: int, image: Image.Image) -> np.void:
        """Draw view k of an image; `crc_crop` and `luma` are 0."""
        return draw_stored_view(self.seed, key, view_k, width=image.width, height=image.height, augment=self.augment)

    def read(self, ref: SampleRef, reader: ShardReader) -> bytes:
        """Return the encoded image.

        Raises:
            BadSample: it is missing, cut or too large.
        """
        return reader.read(ref)

    def make(self, ref: SampleRef, data: bytes) -> PreparedImage:
        """Decode an image and make all its views.

        Raises:
            BadSample: it cannot be decoded.
        """
        image = decode_image(data)
        prepared = empty_image(ref, self.num_views, self.token_img_size)
        for k in range(self.num_views):
            prepared.fill(k, image, self.draw(ref.key, k, image), self.augment.jitter_scope)
        return prepared


def empty_image(ref: SampleRef, num_views: int, side: int) -> PreparedImage:
    """Return room for the views of an image; `side` is that of the tokenizer's view in pixels."""
    return PreparedImage(
        ref, np.zeros(num_views, dtype=VIEW_DTYPE), np.empty((num_views, side, side, 3), dtype=np.uint8)
    )


def render_token_view(image: Image.Image, view: np.void, side: int, jitter_scope: JitterScope) -> NDArray[np.uint8]:
    """Render a view as the tokenizer sees it, (side, side, 3) uint8."""
    return render_view(image, view, img_size=side, resample=TOKEN_RESAMPLE, jitter_scope=jitter_scope)
