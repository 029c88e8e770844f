"""A token store as the reader sees it: its training samples, or those it holds out, each under one stored view.

Opening stores and reading their bytes is `beit.common.store`.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from beit.common.dataset import Record
from beit.common.errors import InputError, require
from beit.common.sampler import view_index
from beit.common.store import TokenStore

_CACHED_SHARDS = 128
"""Row lists kept in memory, 8 kB each; four sampling windows of 32 shards."""


class StoreDataset:
    """The samples of a token store that one purpose may use.

    Args:
        store: Opened and checked; workers receive a copy.
        seed: Of the run; decides which view a sample shows first.
        held_out: True for the samples kept from training, False for all others.
    Raises:
        InputError: there is no such sample.
    """

    def __init__(self, store: TokenStore, *, seed: int, held_out: bool = False) -> None:
        self.store = store
        self.num_views = store.info.views
        self.index_sha256 = store.index_sha256
        self._seed = seed
        self._held_out = held_out
        self._rows: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        held = np.array([row.num_held_out for row in store.shards], dtype=np.int64)
        usable = np.array([row.num_samples for row in store.shards], dtype=np.int64)
        self.shard_sizes = held if held_out else usable - held
        kind = "held-out" if held_out else "training"
        require(
            bool(self.shard_sizes.sum()),
            f"{store.location} has no {kind} samples ({len(store)} in all); tokenise more images",
        )

    def __repr__(self) -> str:
        """Show what is read from where."""
        samples = int(self.shard_sizes.sum())
        return f"StoreDataset({self.store.location!r}, samples={samples}, held_out={self._held_out})"

    def window_shards(self, wanted: int) -> int:
        """Return `wanted`: samples are read at their offsets, so a window costs open files only."""
        return wanted

    def sample_id(self, shard_id: int, rank: int) -> str:
        """Return stem/key of a sample."""
        row = self._row(shard_id, rank)
        return f"{self.store.shards[shard_id].stem}/{self.store.samples(shard_id).key[row]}"

    def fetch(self, shard_id: int, rank: int, epoch: int) -> Record:
        """Read one sample under the view of this epoch.

        Raises:
            BadSample: its tokens are damaged.
            InputError: a file of the shard is missing or became shorter.
        """
        row = self._row(shard_id, rank)
        stem = self.store.shards[shard_id].stem
        key = self.store.samples(shard_id).key[row]
        shown = view_index(self._seed, epoch, stem, key, self.num_views)
        stored = self.store.read_record(shard_id, row, shown if self.num_views else 0)
        return Record(
            key=key,
            shard=stem,
            epoch=epoch,
            view_index=shown,
            image_bytes=stored.image_bytes,
            label=stored.label,
            view=stored.view,
            token_ids=stored.token_ids,
        )

    def token_ids(self, shard_id: int, rank: int, view_k: int = 0) -> NDArray[np.uint16]:
        """Read the visual token ids of one view of a sample, (grid_size, grid_size), and nothing of its image.

        Raises:
            BadSample: they are damaged.
            InputError: a file of the shard is missing or became shorter.
        """
        return self.store.read_token_ids(shard_id, self._row(shard_id, rank), view_k)

    def _row(self, shard_id: int, rank: int) -> int:
        """Translate a rank among the samples of this purpose to a row of the shard's sample table."""
        if shard_id not in self._rows:
            self._rows[shard_id] = self._select(shard_id)
            if len(self._rows) > _CACHED_SHARDS:
                self._rows.popitem(last=False)
        return int(self._rows[shard_id][rank])

    def _select(self, shard_id: int) -> NDArray[np.int64]:
        held = self.store.samples(shard_id).held_out(self.store.info.held_out.threshold)
        rows = np.flatnonzero(held if self._held_out else ~held)
        if len(rows) != self.shard_sizes[shard_id]:
            raise InputError(
                f"shard {self.store.shards[shard_id].stem} of {self.store.location} has {len(rows)} such samples, its "
                f"index says {self.shard_sizes[shard_id]}; run beit tokenize again to mend it"
            )
        return rows
