"""Prepared images to token ids: fixed-size batches through the tokenizer, one batch in flight.

The bits of a convolution depend on the batch size, so batches never cross a shard and the last one is padded: a shard's
tokens are the same whichever rank computes it, and whatever was computed before.

B views per batch, K views per image, s side of a view in pixels, g tokens per side.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from beit.common.errors import InputError
from beit.common.shards.schema import Execution, TokenizerInfo
from beit.tokenize.shards.prepare import PreparedImage


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

    Raises:
        InputError: the tokenizer, perhaps of somebody else, returned an id outside its vocabulary.
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
