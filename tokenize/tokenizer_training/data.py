"""From SOURCE to pieces of images for tokenizer training, and the source `synthetic:N`, which needs no pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample, require
from beit.common.reading.config import ReaderConfig
from beit.common.reading.dataset import Dataset
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.rng import CounterRng
from beit.common.shards.held_out import choose_held_out, held_out_hash
from beit.common.shards.schema import HeldOut
from beit.common.sources.config import SourceConfig
from beit.common.storage.samples import Record, image_key, locate, shard_starts
from beit.common.views import TOKEN_RESAMPLE, AugmentConfig, draw_view, render_view
from beit.tokenize.images import open_images
from beit.tokenize.tokenizer_training.config import TokenizerDataConfig

logger = logging.getLogger(__name__)
Made = TypeVar("Made")
MIN_IMAGES = 5
"""One in five is the most that is held out for the sake of `data.num_eval_images`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropTransform:
    """Turn a record into pieces of one random view of its image. Instances are sent to the reader's workers.

    View and pieces are keyed by the run's seed, epoch and sample.
    """

    data: TokenizerDataConfig
    augment: AugmentConfig
    seed: int

    def __call__(self, record: Record) -> dict[str, NDArray[np.uint8]]:
        """Render a view and cut it.

        Returns:
            images: (crops_per_image, C, crop_size, crop_size) uint8, C 3, or 1 of grey images.
        Raises:
            BadSample: the image does not decode.
        """
        rng = CounterRng(self.seed, "tokenizer-training", record.epoch, record.sample_id)
        view = self.render(record, rng)
        size, last = self.data.crop_size, self.data.view_size - self.data.crop_size
        corners = [(rng.integers(0, last), rng.integers(0, last)) for _ in range(self.data.crops_per_image)]
        pieces = [view[top : top + size, left : left + size] for top, left in corners]
        return {"images": np.ascontiguousarray(np.stack(pieces).transpose(0, 3, 1, 2))}

    def render(self, record: Record, rng: CounterRng) -> NDArray[np.uint8]:
        """Render one random view, (view_size, view_size, C) uint8.

        Raises:
            BadSample: the image does not decode.
        """
        image = record.decode_image()
        view = draw_view(rng, image.width, image.height, self.augment)
        return render_view(
            image, view, img_size=self.data.view_size, resample=TOKEN_RESAMPLE, jitter_scope=self.augment.jitter_scope
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """What a tokenizer is trained on and what it is measured on; no image is in both."""

    train: LabelledDataset
    """Training images."""
    held_out: LabelledDataset
    """All others."""


def introduction(made: str, *, num_words: int, side: int, images: Images, view: int | None = None) -> str:
    """Say what is about to be made of what, the same of every kind of tokenizer.

    Args:
        made: Kind and size of it.
        num_words: In its vocabulary.
        side: Of the square that becomes one word, in pixels.
        images: Training and held-out images.
        view: Side of the only images it takes, in pixels.
    """
    train, held_out = (int(part.shard_sizes.sum()) for part in (images.train, images.held_out))
    where = "" if view is None else f" of {view}"
    return (
        f"{made}: {num_words} words, one per {side} x {side} px{where}; {train} training and {held_out} held-out images"
    )


class HoldsOut(Protocol):
    """The settings that say how many images are held out."""

    @property
    def held_out(self) -> float:
        """Share of the images."""

    @property
    def num_eval_images(self) -> int:
        """Images that are held out even where the share holds fewer, up to a fifth of all."""


class OpensImages(Protocol):
    """What the settings of every kind of tokenizer say of images."""

    @property
    def data(self) -> HoldsOut:
        """How many are held out."""

    @property
    def source(self) -> SourceConfig:
        """Which are read."""

    @property
    def reader(self) -> ReaderConfig:
        """How."""


def open_split(source: str, config: OpensImages, *, img_size: int) -> Images:
    """Open the images that a user named, for views of this side, and part those that are measured on."""
    cache = config.reader.parquet_cache_bytes
    opened = open_images(source, img_size=img_size, cache_bytes=cache, settings=config.source)
    return split_images(opened, config.data, cache_bytes=cache)


def split_images(images: LabelledDataset, data: HoldsOut, *, cache_bytes: int) -> Images:
    """Hold some images out, the same ones on every machine and in every run.

    As in a token store, those with the smallest hashes of their keys; so an image that is held out stays so when
    others join it, unless it leaves the share. Tiles and pages of one image go together. `cache_bytes` is memory for
    Parquet row groups.
    """
    index = images.index
    require(
        len(index) >= MIN_IMAGES,
        f"{index.info.root} holds {len(index)} images, too few to train a tokenizer on some and measure it on others; "
        f"give at least {MIN_IMAGES}, better thousands",
    )
    hashes = np.fromiter(map(held_out_hash, index.keys()), np.uint64, len(index))
    choice = choose_held_out(hashes, HeldOut(fraction=data.held_out, minimum=data.num_eval_images))
    if choice.warning:
        logger.warning("%s", choice.warning)
    by = " by image" if any(image_key(key) != key for key in index.keys()) else ""
    chosen, others = index.split(hashes < np.uint64(choice.threshold), change=f"held out {choice.num_samples}{by}")
    return Images(
        train=LabelledDataset(others, cache_bytes=cache_bytes),
        held_out=LabelledDataset(chosen, cache_bytes=cache_bytes),
    )


def read_samples(dataset: Dataset, rows: Sequence[int], use: Callable[[Record], Made]) -> Iterator[Made]:
    """Yield what `use` makes of the samples at some positions of a data set; unreadable ones are passed over."""
    starts = shard_starts(dataset.shard_sizes)
    for row in rows:
        shard, rank = locate(starts, row)
        try:
            yield use(dataset.fetch(shard, rank, 0))
        except BadSample as error:
            logger.warning("%s passed over (%s)", dataset.sample_id(shard, rank), error)
