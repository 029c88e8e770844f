"""The global data order, as arithmetic: which sample stands at which position, for any rank and after any restart.

There is no iterator state to save. A position p on one endless axis names a sample: epoch p // N, place p % N in the
order of that epoch. Batch row i of step s sits at p = s * B + i. Ranks and micro-batches cut that axis, workers of
the reader cut it further, and none of them changes it. Reading the samples is `beit.common.reading.reader`; what a
shard holds is `beit.common.reading.dataset`.

With C lanes, the samples are divided once into C equal parts, and lane c feeds rows c * B/C to (c + 1) * B/C of every
batch from its part alone. A machine whose rows lie in one lane reads that lane's shards in every epoch and no others.
Each lane has an axis, and epochs, of its own.

N samples of one epoch, B global batch size, C lanes, W ranks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import require
from beit.common.rng import CounterRng
from beit.common.storage.samples import locate, shard_starts

Int64Array = NDArray[np.int64]
_CACHED_WINDOWS = 2  # Per lane: a batch touches one window, or two where it crosses a border.
_CACHED_EPOCHS = 2
_CACHES = ("_lanes", "_near", "_epochs", "_windows")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Consecutive rows of the data axis; every array has shape (count,)."""

    positions: Int64Array
    """Place on the endless axis."""
    epochs: Int64Array
    """How often all samples of the row's lane were passed before this row; position // N with one lane."""
    shard_ids: Int64Array
    """Index into the shard table."""
    ranks: Int64Array
    """Index among the usable samples of that shard."""

    def __len__(self) -> int:
        return len(self.positions)

    def slice(self, begin: int, end: int) -> Rows:
        """Return rows `begin` to `end`."""
        return Rows(**{field.name: getattr(self, field.name)[begin:end] for field in fields(self)})


class _Run(NamedTuple):
    """Rows that follow each other in one epoch of one lane."""

    lane: int
    epoch: int
    start: int
    """Place in that epoch."""
    length: int


class Order:
    """The shuffled order of every epoch: a pure function of (seed, epoch, position).

    Shards are permuted, the permuted list is cut into windows of `window_shards`, and all samples of a window are
    permuted together. Thus only one window of shards is in use at a time, and finding a position costs one window,
    not one epoch. With several lanes each has its own, smaller window; together they are as large.

    Args:
        seed: Of the whole run.
        shard_sizes: Usable samples per shard, shape (S,).
        window_shards: Shards that are mixed with each other, over all lanes.
        lanes: C, parts of the samples that feed their own rows of a batch.
        global_batch_size: B; matters with several lanes only.
    """

    def __init__(
        self,
        seed: int,
        shard_sizes: NDArray[np.integer[Any]],
        *,
        window_shards: int = 32,
        lanes: int = 1,
        global_batch_size: int | None = None,
    ) -> None:
        require(window_shards >= 1, f"window_shards ({window_shards}) must be at least 1")
        self.seed = seed
        self.window_shards = window_shards
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.num_samples = int(self.shard_sizes.sum())
        require(self.num_samples > 0, "the data set has no usable sample; check what was given as SOURCE or STORE")
        self.lanes = lanes
        self.lane_rows = (global_batch_size or lanes) // lanes
        """Rows of every batch that one lane feeds; B / C."""
        if lanes != 1:
            check_lanes(lanes, self.shard_sizes, global_batch_size or lanes)
        self._forget()

    def __repr__(self) -> str:
        size = f"{self.num_samples} samples in {len(self.shard_sizes)} shards"
        return f"Order(seed={self.seed}, {size}, window_shards={self.window_shards}, lanes={self.lanes})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the caches behind when sent to a worker; they are recomputed there."""
        return {name: value for name, value in self.__dict__.items() if name not in _CACHES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with empty caches."""
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._lanes: list[Lane] = []
        self._near: tuple[tuple[tuple[int, int, int], ...], list[int]] = (), []
        self._epochs: OrderedDict[tuple[int, int], tuple[Int64Array, Int64Array]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], Int64Array] = OrderedDict()

    def locate(self, epoch: int, start: int, count: int, *, lane: int = 0) -> tuple[Int64Array, Int64Array]:
        """Find the samples at places start to start + count of one epoch of a lane.

        Args:
            epoch: Counted from 0.
            start: First place, in [0, N); with several lanes, in [0, samples of the lane).
            count: Places wanted; start + count must not exceed the samples.
            lane: In [0, C).
        Returns:
            Shard ids and ranks inside the shards, int64 (count,) each.
        Raises:
            ValueError: the range leaves the epoch.
        """
        num_samples = self.lane(lane).num_samples
        if not 0 <= start <= start + count <= num_samples:
            raise ValueError(f"places {start} to {start + count} are outside an epoch of {num_samples} samples")
        pieces = []
        while count > 0:
            piece = self._locate_in_window(lane, epoch, start, count)
            pieces.append(piece)
            start, count = start + len(piece[0]), count - len(piece[0])
        if not pieces:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])

    def rows(self, position: int, count: int) -> Rows:
        """Return `count` rows of the endless axis from `position` on, crossing as many epoch ends as needed."""
        epochs = np.empty(count, np.int64)
        shard_ids = np.empty(count, np.int64)
        ranks = np.empty(count, np.int64)
        done = 0
        for run in self._runs(position, count):
            piece = slice(done, done + run.length)
            epochs[piece] = run.epoch
            shard_ids[piece], ranks[piece] = self.locate(run.epoch, run.start, run.length, lane=run.lane)
            done += run.length
        positions = position + np.arange(count, dtype=np.int64)
        return Rows(positions=positions, epochs=epochs, shard_ids=shard_ids, ranks=ranks)

    def shards_near(self, position: int, count: int) -> list[int]:
        """List the shards of the windows that `count` rows from `position` on are read from, then those of the next.

        Which is the order to fetch them in, for a reader that fetches whole shards.
        """
        present: dict[tuple[int, int, int], None] = {}
        following: dict[tuple[int, int, int], None] = {}
        for run in self._runs(position, count):
            first = self._window_at(run.lane, run.epoch, run.start)
            last = self._window_at(run.lane, run.epoch, run.start + run.length - 1)
            present.update(((run.lane, run.epoch, window), None) for window in range(first, last + 1))
            is_last = (last + 1) * self._lane_window >= len(self.lane(run.lane).shard_ids)
            following[(run.lane, run.epoch + 1, 0) if is_last else (run.lane, run.epoch, last + 1)] = None
        windows = (*present, *following)
        if windows == self._near[0]:
            return self._near[1]
        shards: dict[int, None] = {}
        for lane, epoch, window in windows:
            order, _ = self._epoch(lane, epoch)
            parts = order[window * self._lane_window : (window + 1) * self._lane_window]
            shards.update(dict.fromkeys(self.lane(lane).shard_ids[parts].tolist()))
        self._near = windows, list(shards)
        return self._near[1]

    def lane(self, number: int) -> Lane:
        """Return one part of the samples; the same in every epoch, so that a machine meets the same shards again."""
        if not self._lanes:
            self._lanes = cut_lanes(self.seed, self.shard_sizes, self.lanes)
        return self._lanes[number]

    @property
    def _lane_window(self) -> int:
        return max(1, self.window_shards // self.lanes)

    def _runs(self, position: int, count: int) -> Iterator[_Run]:
        """Cut rows of the endless axis where the lane or its epoch changes."""
        while count > 0:
            lane, place, length = 0, position, count
            if self.lanes > 1:
                step, row = divmod(position, self.lanes * self.lane_rows)
                lane, offset = divmod(row, self.lane_rows)
                place, length = step * self.lane_rows + offset, min(count, self.lane_rows - offset)
            num_samples = self.lane(lane).num_samples
            epoch, start = divmod(place, num_samples)
            length = min(length, num_samples - start)
            yield _Run(lane, epoch, start, length)
            position, count = position + length, count - length

    def _epoch(self, lane: int, epoch: int) -> tuple[Int64Array, Int64Array]:
        """Return the order of a lane's shards in `epoch` (S,), and where each starts in it (S + 1,)."""
        key = (lane, epoch)
        if key not in self._epochs:
            sizes = self.lane(lane).sizes
            order = self._rng("shards", epoch, lane=lane).permutation(len(sizes))
            starts = shard_starts(sizes[order])
            _remember(self._epochs, key, (order, starts), _CACHED_EPOCHS * self.lanes)
        return self._epochs[key]

    def _window_at(self, lane: int, epoch: int, start: int) -> int:
        _, starts = self._epoch(lane, epoch)
        return locate(starts, start)[0] // self._lane_window

    def _locate_in_window(self, lane: int, epoch: int, start: int, count: int) -> tuple[Int64Array, Int64Array]:
        """Resolve as much of the range as lies in the window that holds place `start`."""
        order, starts = self._epoch(lane, epoch)
        window = self._window_at(lane, epoch, start)
        first = window * self._lane_window
        last = min(first + self._lane_window, len(order))
        begin, end = int(starts[first]), int(starts[last])
        key = (lane, epoch, window)
        if key not in self._windows:
            mixed = self._rng("window", epoch, window, lane=lane).permutation(end - begin)
            _remember(self._windows, key, mixed, _CACHED_WINDOWS * self.lanes)
        places = begin + self._windows[key][start - begin : start - begin + count]
        owner, ranks = locate(starts[first : last + 1], places)
        parts, part = order[first + owner], self.lane(lane)
        return part.shard_ids[parts], part.first_ranks[parts] + ranks

    def _rng(self, *labels: int | str, lane: int) -> CounterRng:
        # One lane draws as orders did before there were lanes.
        return CounterRng(self.seed, *labels, *(("lane", lane) if self.lanes > 1 else ()))


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any, limit: int) -> None:
    cache[key] = value
    while len(cache) > limit:
        cache.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Lane:
    """A fixed part of the samples; every array has one entry per shard that has some in it."""

    shard_ids: Int64Array
    first_ranks: Int64Array
    """Above 0 for a shard whose beginning is in the lane before."""
    sizes: Int64Array
    """Samples of the shard in this lane."""
    num_samples: int


def cut_lanes(seed: int, shard_sizes: Int64Array, lanes: int) -> list[Lane]:
    """Divide the samples, in an order of the shards that is drawn once, into parts that differ by one at most.

    A border may fall inside a shard, whose samples then belong to two lanes; were lanes cut between shards, samples
    of small lanes would be seen more often than others.
    """
    num_samples = int(shard_sizes.sum())
    if lanes == 1:
        shards = np.arange(len(shard_sizes), dtype=np.int64)
        return [Lane(shards, np.zeros_like(shards), shard_sizes, num_samples)]
    shards = CounterRng(seed, "lanes").permutation(len(shard_sizes))
    shards = shards[shard_sizes[shards] > 0]
    ends = np.cumsum(shard_sizes[shards])
    starts = ends - shard_sizes[shards]
    parts = []
    for lane in range(lanes):
        begin, end = lane * num_samples // lanes, (lane + 1) * num_samples // lanes
        piece = slice(int(np.searchsorted(ends, begin, side="right")), int(np.searchsorted(starts, end, side="left")))
        first_ranks = np.maximum(begin - starts[piece], 0)
        sizes = np.minimum(ends[piece], end) - starts[piece] - first_ranks
        parts.append(Lane(shards[piece], first_ranks, sizes, end - begin))
    return parts


def check_lanes(lanes: int, shard_sizes: Int64Array, global_batch_size: int) -> None:
    """Refuse a number of lanes that does not divide the batch, or leaves a lane without a shard."""
    num_shards = int((shard_sizes > 0).sum())
    require(
        1 <= lanes <= num_shards and global_batch_size % lanes == 0,
        f"reader.lanes ({lanes}) must divide train.global_batch_size ({global_batch_size}) and not exceed the "
        f"{num_shards} shards; valid here: {', '.join(map(str, valid_lanes(shard_sizes, global_batch_size)))}",
    )


def valid_lanes(shard_sizes: NDArray[np.integer[Any]], global_batch_size: int) -> list[int]:
    """List the numbers of lanes that divide the global batch and leave each lane a shard."""
    num_shards = int((np.asarray(shard_sizes) > 0).sum())
    return [lanes for lanes in range(1, min(num_shards, global_batch_size) + 1) if global_batch_size % lanes == 0]
