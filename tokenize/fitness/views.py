"""The views a tokenizer is measured on: a random sample of a source's images, one view each, equal for all tokenizers.

Every tokenizer has them rendered at the side it needs, from the same crop of the decoded image. They are drawn and
rendered as `beit tokenize` does (its default crops, flips and colours, Lanczos), because those are the pictures whose
tokens pre-training will see. Nothing is kept but positions, so any number of views fits into memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample, InputError, require
from beit.common.images.channels import in_colour
from beit.common.processes.cores import available_cores
from beit.common.reading.bad_samples import BadSampleLog, BadSampleReport
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.rng import CounterRng
from beit.common.storage.samples import Record
from beit.common.views import AugmentConfig, draw_view
from beit.tokenize.parallel import Workers
from beit.tokenize.shards.encode import render_token_view

Item = TypeVar("Item")
Made = TypeVar("Made")
MIN_VIEWS = 2
"""The context model is fitted on one half of the views and measured on the other."""
_ALL_BUT_ONE = 1.0 - 1e-9
"""Budget of unusable images: a report tells of them instead of stopping, as `beit predict` does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewBatch:
    """Some views in the order of the source."""

    pixels: NDArray[np.uint8]
    """(B, view_size, view_size, 3)."""
    positions: list[int]
    """Of their images in the source."""
    labels: NDArray[np.int64]
    """Their classes, (B,); -1 where there is none."""


class ViewSample:
    """A sample of at most `num_images` of a source's images, each seen through one view.

    Another seed draws other images and other views.

    """

    def __init__(self, dataset: LabelledDataset, *, num_images: int, seed: int) -> None:
        self.num_in_source = int(dataset.shard_sizes.sum())
        require(
            self.num_in_source >= MIN_VIEWS,
            f"{dataset.index.info.root} has {self.num_in_source} image(s), a report needs at least {MIN_VIEWS}; "
            "give more images",
        )
        self._dataset, self._seed = dataset, seed
        self._positions = draw_positions(self.num_in_source, num_images, seed)
        self._bad: dict[int, BadSampleReport] = {}
        self._log = BadSampleLog(len(self._positions), _ALL_BUT_ONE)

    def __len__(self) -> int:
        """Return the number of images drawn, bad ones included."""
        return len(self._positions)

    @property
    def bad_samples(self) -> list[BadSampleReport]:
        """Images met so far that cannot be used, in the order of the source."""
        return [self._bad[position] for position in sorted(self._bad)]

    @property
    def bad_counts(self) -> Counter[str]:
        """The same by reason."""
        return self._log.counts

    def name(self, position: int) -> str:
        """Name an image as its user knows it: by path, or inside containers by shard and key."""
        if self._dataset.index.info.kind == "files":
            return str(self._dataset.index.ref_at(position).path)
        return self._dataset.sample_id(*self._dataset.index.locate(position))

    def batches(self, size: int, *, view_size: int) -> Iterator[ViewBatch]:
        """Yield all usable views of `view_size` px, `size` at a time; other images are logged once and passed over."""
        all_labels = self._dataset.index.labels

        def batch() -> ViewBatch:
            return ViewBatch(pixels=np.stack(pixels), positions=positions, labels=all_labels[positions])

        pixels: list[NDArray[np.uint8]] = []
        positions: list[int] = []
        count = 0
        with Workers(available_cores()) as workers:
            for position, view in workers.map(partial(self._render_or_report, view_size), self._records()):
                if isinstance(view, BadSampleReport):
                    self._log.add([view])
                    self._bad[position] = view
                    continue
                pixels.append(view)
                positions.append(position)
                count += 1
                if len(pixels) == size:
                    yield batch()
                    pixels, positions = [], []
        if pixels:
            yield batch()
        if count < MIN_VIEWS:
            reasons = ", ".join(f"{number} {reason}" for reason, number in self.bad_counts.most_common())
            raise InputError(
                f"{count} of {len(self)} images drawn from {self._dataset.index.info.root} can be read ({reasons}), a "
                f"report needs at least {MIN_VIEWS}; repair the images, or draw more with --images"
            )

    def views_at(self, positions: list[int], *, view_size: int) -> NDArray[np.uint8]:
        """Render the views of some usable images again, (B, view_size, view_size, 3)."""
        with Workers(available_cores()) as workers:
            records = (self._fetch(position) for position in positions)
            return np.stack(list(workers.map(partial(self._render, view_size), records)))

    def _records(self) -> Iterator[tuple[int, Record | BadSampleReport]]:
        """Read in the calling thread: open containers are not shared. Threads decode."""
        for position in self._positions:
            known = position in self._bad
            yield position, self._bad[position] if known else self._attempt(position, self._fetch, position)

    def _render_or_report(
        self, view_size: int, item: tuple[int, Record | BadSampleReport]
    ) -> tuple[int, NDArray[np.uint8] | BadSampleReport]:
        position, record = item
        if isinstance(record, BadSampleReport):
            return position, record
        return position, self._attempt(position, partial(self._render, view_size), record)

    def _attempt(self, position: int, work: Callable[[Item], Made], item: Item) -> Made | BadSampleReport:
        try:
            return work(item)
        except BadSample as error:
            return BadSampleReport(self.name(position), error.reason, error.detail)

    def _fetch(self, position: int) -> Record:
        return self._dataset.fetch(*self._dataset.index.locate(position), 0)

    def _render(self, view_size: int, record: Record) -> NDArray[np.uint8]:
        augment = AugmentConfig()
        image = record.decode_image()
        rng = CounterRng(self._seed, "tokenizer report view", record.sample_id)
        view = draw_view(rng, image.width, image.height, augment)
        return in_colour(render_token_view(image, view, view_size, augment.jitter_scope))


def draw_positions(total: int, count: int, seed: int) -> list[int]:
    """Draw `count` different positions below `total`, ascending; all of them if there are no more.

    The first swaps of a Fisher-Yates shuffle, kept as a dictionary: memory grows with `count`, not with `total`.
    """
    if count >= total:
        return list(range(total))
    rng = CounterRng(seed, "tokenizer report images")
    moved: dict[int, int] = {}
    drawn = []
    for place in range(count):
        other = rng.integers(place, total - 1)
        drawn.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return sorted(drawn)
