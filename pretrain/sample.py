"""A few samples of a data set, spread evenly over its shards and inside each, always the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from beit.common.reading.dataset import Dataset
from beit.common.reading.order import Rows
from beit.common.storage.samples import Record, locate, shard_starts, spread_evenly


class EvenSample:
    """At most `count` samples of a data set, the same ones for any number of ranks: a `Dataset`."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.dataset = dataset
        self.num_views, self.index_sha256 = dataset.num_views, dataset.index_sha256
        sizes = dataset.shard_sizes
        shard_ids, self._ranks = locate(shard_starts(sizes), spread_evenly(int(sizes.sum()), count))
        self.shard_sizes = np.bincount(shard_ids, minlength=len(sizes)).astype(np.int64)
        self._starts = shard_starts(self.shard_sizes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def default_lanes(self) -> int:
        """Return what the whole data set does."""
        return self.dataset.default_lanes

    def expect_shards(self, shard_ids: Sequence[int]) -> None:
        """Pass on to the whole data set."""
        self.dataset.expect_shards(shard_ids)

    def expect_rows(self, rows: Rows) -> None:
        """Pass on to the whole data set, as its rows."""
        self.dataset.expect_rows(replace(rows, ranks=self._ranks[self._starts[rows.shard_ids] + rows.ranks]))

    def window_shards(self, wanted: int) -> int:
        """Return what the whole data set does."""
        return self.dataset.window_shards(wanted)

    def places(self) -> NDArray[np.int64]:
        """Return shard and rank, in the whole data set, of every sample, (len, 2)."""
        shard_ids = np.repeat(np.arange(len(self.shard_sizes)), self.shard_sizes)
        return np.stack([shard_ids, self._ranks], axis=1)

    def sample_id(self, shard_id: int, rank: int) -> str:
        """Name a sample without reading its image."""
        return self.dataset.sample_id(shard_id, self._rank(shard_id, rank))

    def fetch(self, shard_id: int, rank: int, epoch: int) -> Record:
        """Read one sample; raises as the data set does."""
        return self.dataset.fetch(shard_id, self._rank(shard_id, rank), epoch)

    def _rank(self, shard_id: int, rank: int) -> int:
        return int(self._ranks[self._starts[shard_id] + rank])
