"""A token store as the reader sees it: its training samples, or those it holds out, each under one stored view.

Training samples change views from epoch to epoch; what is held out is always seen under its first one.

Opening stores and reading their bytes is `beit.common.store`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError, require
from beit.common.reading.order import Rows
from beit.common.rng import stable_hash64
from beit.common.shards.token_store import TokenStore
from beit.common.storage.samples import Record

_REMOTE_LANES = 8
_CACHED_SHARDS = 128
"""Row lists kept in memory, 8 kB each; four sampling windows of 32 shards."""


class StoreDataset:
    """The samples of a token store that one purpose may use.

    Args:
        store: Opened and checked; workers receive a copy.
        seed: Of the run; decides which view a sample shows first.
        held_out: True for the samples kept from training, False for all others.
    """

    def __init__(self, store: TokenStore, *, seed: int, held_out: bool = False) -> None:
        self.store = store
        self.num_views = store.info.views
        self.index_sha256 = store.index_sha256
        self.location = store.location
        self._seed = seed
        self._held_out = held_out
        self._rows: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._max_shards = _CACHED_SHARDS
        self.shard_sizes = store.shard_sizes(held_out=held_out)
        kind = "held-out" if held_out else "training"
        require(
            bool(self.shard_sizes.sum()),
            f"{store.location} has no {kind} samples ({len(store)} in all); tokenise more images",
        )

    def __repr__(self) -> str:
        samples = int(self.shard_sizes.sum())
        return f"StoreDataset({self.store.location!r}, samples={samples}, held_out={self._held_out})"

    @property
    def default_lanes(self) -> int:
        """Return 8 for remote stores: up to as many machines then read, and cache, different shards."""
        return _REMOTE_LANES if self.store.is_remote else 1

    def window_shards(self, wanted: int) -> int:
        """Return `wanted`: samples are read at their offsets, so a window costs open files only."""
        return wanted

    def expect_shards(self, shard_ids: Sequence[int]) -> None:
        """Have the store fetch, or keep at hand, the shards that are read now and next."""
        self._max_shards = max(_CACHED_SHARDS, len(shard_ids))
        self.store.expect_shards(shard_ids)

    def expect_rows(self, rows: Rows) -> None:
        """Fetch what is remote of these samples in one go."""
        if not self.store.is_remote:
            return
        self.store.load_tables(np.unique(rows.shard_ids).tolist())
        places = zip(rows.epochs.tolist(), rows.shard_ids.tolist(), rows.ranks.tolist(), strict=True)
        self.store.read_ahead([self._place(shard_id, rank, epoch) for epoch, shard_id, rank in places])

    def expect_token_ids(self, places: Iterable[tuple[int, int]], views: int) -> None:
        """Fetch what is remote of the tokens of the first `views` views of some samples, (shard, rank), in one go."""
        if not self.store.is_remote:
            return
        rows = [(shard_id, rank) for shard_id, rank in places]
        self.store.load_tables(sorted({shard_id for shard_id, _ in rows}))
        self.store.read_ahead(
            ((shard_id, self._row(shard_id, rank), view_k) for shard_id, rank in rows for view_k in range(views)),
            tokens_only=True,
        )

    def sample_id(self, shard_id: int, rank: int) -> str:
        """Return stem/key of a sample."""
        return "/".join(self.store.name(shard_id, self._row(shard_id, rank)))

    def fetch(self, shard_id: int, rank: int, epoch: int) -> Record:
        """Read one sample under the view of this epoch.

        Raises:
            BadSample: its tokens are damaged.
            InputError: a file of the shard is missing or became shorter.
        """
        _, row, shown = self._place(shard_id, rank, epoch)
        stored = self.store.read_record(shard_id, row, shown if self.num_views else 0)
        return replace(stored, epoch=epoch, view_index=shown)

    def _place(self, shard_id: int, rank: int, epoch: int) -> tuple[int, int, int]:
        """Return shard, row of its sample table, and the view that the sample shows in this epoch."""
        row = self._row(shard_id, rank)
        if self._held_out:  # always the first, so that runs on different numbers of views measure the same thing
            return shard_id, row, 0
        return shard_id, row, view_index(self._seed, epoch, *self.store.name(shard_id, row), self.num_views)

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
            if len(self._rows) > self._max_shards:
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


def view_index(seed: int, epoch: int, shard: str, key: str, num_views: int) -> int:
    """Choose the stored view that a sample shows in an epoch; all views come once in `num_views` epochs.

    Args:
        seed: Of the run.
        epoch: Counted from 0.
        shard: Stem of the shard; with `key` it makes the sample id.
        key: Of the sample.
        num_views: K. With 0, no view is stored: each epoch is a view of its own, and its number is returned.
    """
    if num_views == 0:
        return epoch
    return (epoch + stable_hash64(seed, "view", shard, key)) % num_views
