"""Labelled data as the reader sees it: any indexed images, read at their offsets or from row groups kept in memory."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError
from beit.common.reading.order import Rows
from beit.common.sources.index import LabelledIndex
from beit.common.sources.types import ShardReader
from beit.common.storage.samples import Record

logger = logging.getLogger(__name__)

_MAX_OPEN_SHARDS = 128
"""Open files; four sampling windows of 32 shards, far below the usual limit of 1024."""
_MAX_MIXED_FILE_SHARDS = 1024
"""Shards of loose files mixed with each other: a million files, 8 MB for their permutation."""
_FAIR_SHARE = 0.25
"""A window that covers this share of the shards mixes well whatever their order; arbitrary."""


class LabelledDataset:
    """The samples in use of an index.

    Args:
        index: Of any images, with or without labels.
        cache_bytes: Memory for Parquet row groups. The one in use stays, even if it is larger.
    """

    def __init__(self, index: LabelledIndex, *, cache_bytes: int = 512 * 2**20) -> None:
        self.index = index
        self.shard_sizes: NDArray[np.int64] = index.shard_sizes
        self.num_views = 0
        self.index_sha256 = index.index_sha256
        self.location = index.location
        self._cache_bytes = cache_bytes
        self._open: OrderedDict[int, tuple[ShardReader, ExitStack]] = OrderedDict()
        self._open_bytes = 0

    def __repr__(self) -> str:
        return f"LabelledDataset({self.index!r}, open={len(self._open)}, cached_bytes={self._open_bytes})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files and cached row groups behind."""
        return {**self.__dict__, "_open": OrderedDict(), "_open_bytes": 0}

    @property
    def default_lanes(self) -> int:
        """Return 1: few labels are read by few machines."""
        return 1

    def window_shards(self, wanted: int) -> int:
        """Return how many shards to mix.

        Row groups of a window must fit into memory together, else every sample would read its row group anew. Loose
        files cost nothing extra, so as many are mixed as possible: a folder lists them class by class.
        """
        num_shards = len(self.shard_sizes)
        if self.index.info.kind == "files":
            return max(wanted, min(num_shards, _MAX_MIXED_FILE_SHARDS))
        window = wanted
        if self.index.info.shard_bytes:
            window = max(1, min(wanted, self._cache_bytes // self.index.info.shard_bytes))
        self._warn_if_sorted(window, wanted)
        return window

    def expect_shards(self, shard_ids: Sequence[int]) -> None:
        """Do nothing: readers stay open, and row groups in memory, as far as the limits allow."""

    def expect_rows(self, rows: Rows) -> None:
        """Do nothing: samples are read one by one."""

    def sample_id(self, shard_id: int, rank: int) -> str:
        """Return shard/key of a sample."""
        return f"{self.index.info.shard_names[shard_id]}/{self.index.ref(shard_id, rank).key}"

    def fetch(self, shard_id: int, rank: int, epoch: int) -> Record:
        """Read one sample.

        Raises:
            BadSample: the image is missing or cut.
            InputError: the container cannot be read.
        """
        ref = self.index.ref(shard_id, rank)
        assert not isinstance(ref.label, str)  # an index counts its classes
        return Record(
            key=ref.key,
            shard=self.index.info.shard_names[shard_id],
            epoch=epoch,
            view_index=epoch,
            repeat=self.index.repeat(shard_id, rank),
            image_bytes=self._reader(shard_id).read(ref),
            label=ref.label,
            decoding=self.index.decoding,
        )

    def image_bytes(self, shard_id: int, rank: int) -> bytes:
        """Read the encoded image of one sample, as `fetch` does."""
        return self._reader(shard_id).read(self.index.ref(shard_id, rank))

    def close(self) -> None:
        """Close all files and free all row groups."""
        while self._open:
            self._drop_oldest()

    def _reader(self, shard_id: int) -> ShardReader:
        if shard_id in self._open:
            self._open.move_to_end(shard_id)
            return self._open[shard_id][0]
        # Room is made before reading, so that memory stays within the limit also while a row group is loaded.
        while self._open and not self._fits(self.index.info.shard_bytes):
            self._drop_oldest()
        stack = ExitStack()
        try:
            reader = stack.enter_context(self.index.shards[shard_id].open())
        except OSError as error:
            raise InputError(f"{self.index.shards[shard_id].location} cannot be read ({error})") from None
        self._open[shard_id] = reader, stack
        self._open_bytes += reader.nbytes
        return reader

    def _fits(self, extra_bytes: int) -> bool:
        return len(self._open) < _MAX_OPEN_SHARDS and self._open_bytes + extra_bytes <= self._cache_bytes

    def _drop_oldest(self) -> None:
        _, (reader, stack) = self._open.popitem(last=False)
        self._open_bytes -= reader.nbytes
        stack.close()

    def _warn_if_sorted(self, window: int, wanted: int) -> None:
        """Say so where shards hold few classes each and a window mixes few shards: batches would be one-sided."""
        num_shards, num_classes = len(self.shard_sizes), self.index.num_classes
        if num_classes < 2 or window >= _FAIR_SHARE * num_shards:
            return
        owners = np.repeat(np.arange(num_shards), self.shard_sizes)
        pairs = np.unique(owners * (num_classes + 1) + self.index.labels + 1)
        possible = np.minimum(self.shard_sizes, num_classes)[self.shard_sizes > 0]
        if len(pairs) < _FAIR_SHARE * possible.sum():
            reason = "" if window == wanted else f" (limited from {wanted} by reader.parquet_cache_bytes)"
            logger.warning(
                "%s is sorted by class, and only %d of %d shards%s are mixed at a time: batches will hold few classes; "
                "raise reader.window_shards, or shuffle the data",
                self.index.name,
                window,
                num_shards,
                reason,
            )
