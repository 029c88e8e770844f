"""What the reader asks of a data set: shard sizes to order, and one record per (shard, rank).

Implementations: `beit.pretrain.store_dataset` (token stores) and `beit.common.reading.labelled_dataset` (any images,
with or without labels). Both give the same records, so one order, one reader and one resume serve every training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from beit.common.reading.order import Order, Rows, valid_lanes
from beit.common.storage.samples import Record


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
        """Take note of the few samples that are read next; a data set may fetch them in one go, or do nothing."""

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
    """Build the shuffled order over a data set, with its default number of lanes where `lanes` is None.

    Another number than 1 needs the batch size.
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
