"""From one image's bytes to the token ids of its K views.

An `ImageMaker` makes the views of an image: as records to be stored, and as pixels for the tokenizer. `encode_images`
pushes them through it in batches of a fixed size, one in flight. The bits of a convolution depend on the batch size, so
batches never cross a shard and the last one is padded: a shard's tokens are the same whichever rank computes it, and
whatever was computed before. Not here: the geometry of views (`beit.common.views`), the tokenizer itself.

B views per batch, K views per image, s side of the view the tokenizer sees in pixels, g tokens per side.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import InputError
from beit.common.images.decode import decode_image
from beit.common.images.decoding import USUAL, Decoding
from beit.common.shards.schema import Execution, StoreInfo, TokenizerInfo
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
    decoding: Decoding = USUAL
    """Of the images."""

    @classmethod
    def of_store(cls, info: StoreInfo) -> ViewMaker:
        """Return the maker of the views of a store."""
        return cls(
            seed=info.seed,
            num_views=info.views,
            token_img_size=info.token_img_size,
            augment=info.augment,
            decoding=info.decoding,
        )

    def draw(self, key: str, view_k: int, image: Image.Image) -> np.void:
        """Draw view k of an image; `crc_crop` and `luma` are 0."""
        return draw_stored_view(self.seed, key, view_k, width=image.width, height=image.height, augment=self.augment)

    def read(self, ref: SampleRef, reader: ShardReader) -> bytes:
        """Return the encoded image."""
        return reader.read(ref)

    def make(self, ref: SampleRef, data: bytes) -> PreparedImage:
        """Decode an image and make all its views."""
        image = decode_image(data, self.decoding)
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
    """Render a view as the tokenizer sees it, (side, side, 3) uint8, or of a grey image (side, side, 1)."""
    return render_view(image, view, img_size=side, resample=TOKEN_RESAMPLE, jitter_scope=jitter_scope)


class ViewEncoder(Protocol):
    """What is needed of a tokenizer; `beit.common.tokenizer.Tokenizer` has it."""

    vocab_size: int
    """Token ids lie in [0, vocab_size)."""
    downsampling: int
    """Pixels per token and side."""
    fingerprint: str
    """sha256 over its weights and configuration."""

    def encode(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Map pixels (B, s, s, 3) to token ids (B, g, g) int64, on any device."""


@dataclass(frozen=True, slots=True)
class RankTokenizer:
    """The tokenizer of one rank and what manifests say of it; empty, but for versions, where a store gets no tokens."""

    versions: tuple[str, ...]
    """Of the libraries."""
    tokenizer: ViewEncoder | None = None
    info: TokenizerInfo | None = None
    execution: Execution = Execution()
    """Its fingerprint."""


@dataclass(slots=True)
class Stopwatch:
    """Where the time of a rank went; tells which resource limits the whole."""

    encoding_seconds: float = 0.0
    """In the tokenizer."""
    waiting_seconds: float = 0.0
    """Waiting for decoded images."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image with its tokens."""

    image: PreparedImage
    token_ids: NDArray[np.uint16]
    """(K, g, g)."""


def encode_images(
    images: Iterable[PreparedImage], tokenizer: ViewEncoder, *, micro_batch_size: int, watch: Stopwatch
) -> Iterator[EncodedImage]:
    """Yield every image with its token ids, in order.

    The result of a batch is fetched after the next one was handed over, so that a GPU does not wait for this loop.
    """
    waiting: deque[PreparedImage] = deque()
    batches = _batches(images, waiting, micro_batch_size, watch)
    rows: NDArray[np.uint16] | None = None  # ids of views whose image is not complete yet, (views, g, g)
    in_flight: tuple[torch.Tensor, int] | None = None
    for batch, count in batches:
        started = time.perf_counter()
        following = (tokenizer.encode(batch), count)
        if in_flight is not None:
            rows = _append(rows, _fetch(*in_flight, tokenizer.vocab_size))
        in_flight = following
        watch.encoding_seconds += time.perf_counter() - started
        if rows is not None:
            rows = yield from _complete(waiting, rows)
    if in_flight is not None:
        rows = yield from _complete(waiting, _append(rows, _fetch(*in_flight, tokenizer.vocab_size)))


def _batches(
    images: Iterable[PreparedImage], waiting: deque[PreparedImage], micro_batch_size: int, watch: Stopwatch
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Yield pixels (B, s, s, 3) and how many of the B are real; notes the images that went in."""
    batch: NDArray[np.uint8] | None = None
    count = 0
    for image in _timed(images, watch):
        waiting.append(image)
        start = 0
        while start < len(image.token_views):
            if batch is None:
                batch = np.zeros((micro_batch_size, *image.token_views.shape[1:]), dtype=np.uint8)
            taken = min(micro_batch_size - count, len(image.token_views) - start)
            batch[count : count + taken] = image.token_views[start : start + taken]
            start, count = start + taken, count + taken
            if count == micro_batch_size:
                yield batch, count
                batch, count = None, 0
    if batch is not None:
        yield batch, count


def _timed(images: Iterable[PreparedImage], watch: Stopwatch) -> Iterator[PreparedImage]:
    iterator = iter(images)
    while True:
        started = time.perf_counter()
        image = next(iterator, None)
        watch.waiting_seconds += time.perf_counter() - started
        if image is None:
            return
        yield image


def _fetch(token_ids: torch.Tensor, count: int, vocab_size: int) -> NDArray[np.uint16]:
    ids = token_ids[:count].cpu().numpy()
    if ids.size and not (0 <= ids.min() and ids.max() < vocab_size):
        raise InputError(
            f"the tokenizer returned ids {ids.min()} to {ids.max()}, must lie in [0, {vocab_size}), its vocabulary"
        )
    return ids.astype(np.uint16)


def _append(rows: NDArray[np.uint16] | None, more: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return more if rows is None or not len(rows) else np.concatenate([rows, more])


def _complete(
    waiting: deque[PreparedImage], rows: NDArray[np.uint16]
) -> Generator[EncodedImage, None, NDArray[np.uint16]]:
    """Yield the images whose K views all have tokens; return the rows that are left."""
    while waiting and len(rows) >= len(waiting[0].views):
        image = waiting.popleft()
        num_views = len(image.views)
        yield EncodedImage(image, rows[:num_views])
        rows = rows[num_views:]
    return rows
