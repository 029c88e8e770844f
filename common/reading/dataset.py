"""What the reader asks of a data set: shard sizes to order, and one record per (shard, rank).

Implementations: `beit.pretrain.store_dataset` (token stores) and `beit.common.reading.labelled_dataset` (any images,
with or without labels). Both give the same records, so one order, one reader and one resume serve every training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from beit.common.reading.order import Order, Rows, valid_lanes


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One sample as stored: nothing decoded, nothing augmented."""

    key: str
    """Unique in its shard."""
    shard: str
    """Stem of the shard."""
    epoch: int
    """Epoch it is read for; with the sample id it keys all random numbers of the transform."""
    view_index: int
    """Stored view to show; the epoch itself where no views are stored."""
    repeat: int = 0
    """Which of several views that the sample shows in this epoch; keys random numbers beside the epoch."""
    image_bytes: bytes
    """Encoded image."""
    label: int | None = None
    """Class id, if known."""
    view: np.void | None = None
    """Crop, flip and jitter of the stored view (`beit.common.views.VIEW_DTYPE`)."""
    token_ids: NDArray[np.uint16] | None = None
    """Visual token ids of that view, uint16 (grid_size, grid_size)."""

    @property
    def sample_id(self) -> str:
        """Name of the sample, unique in the data set and equal on every rank."""
        return f"{self.shard}/{self.key}"


def spread_evenly(total: int, count: int) -> NDArray[np.int64]:
    """Return places of at most `count` of `total` samples, as far apart from each other as can be; always the same."""
    count = min(total, count)
    return np.arange(count, dtype=np.int64) * total // max(1, count)


class Dataset(Protocol):
    """Random access by (shard, rank in shard). Instances are sent to workers, so they must pickle."""

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Usable samples per shard, shape (S,)."""

    @property
    def index_sha256(self) -> str:
        """Identity of the samples and their numbering."""

    @property
    def num_views(self) -> int:
        """Stored views per sample, K; 0 where there are none."""

    @property
    def default_lanes(self) -> int:
        """Lanes of the order where `reader.lanes` is left out, as far as batch and shards allow."""

    def window_shards(self, wanted: int) -> int:
        """Return how many shards to mix at a time, given the configured number and what one read costs."""

    def expect_shards(self, shard_ids: Sequence[int]) -> None:
        """Take note of the shards that are read now and next, the most urgent first; none when reading ends.

        Never needed for a correct result: a data set may fetch them in advance, or do nothing.
        """

    def expect_rows(self, rows: Rows) -> None:
        """Take note of the few samples that are read next; a data set may fetch them in one go, or do nothing.

        Raises:
            InputError: as `fetch`.
        """

    def sample_id(self, shard_id: int, rank: int) -> str:
        """Name a sample without reading its image."""

    def fetch(self, shard_id: int, rank: int, epoch: int) -> Record:
        """Read one sample.

        Raises:
            BadSample: this sample cannot be read, others may.
            InputError: the whole shard cannot be read.
        """


def build_order(
    dataset: Dataset, *, seed: int, window_shards: int, lanes: int | None = 1, global_batch_size: int | None = None
) -> Order:
    """Build the shuffled order over a data set.

    Args:
        dataset: With its shard sizes.
        seed: Of the run.
        window_shards: As configured.
        lanes: As configured, or None for the data set's default; another number than 1 needs the batch size.
        global_batch_size: Rows per step over all ranks.
    Raises:
        InputError: no sample, or lanes that do not fit.
    """
    if lanes is None:
        valid = valid_lanes(dataset.shard_sizes, global_batch_size or 1)
        lanes = max((count for count in valid if count <= dataset.default_lanes), default=1)
    return Order(
        seed,
        dataset.shard_sizes,
        window_shards=dataset.window_shards(window_shards),
        lanes=lanes,
        global_batch_size=global_batch_size,
    )
