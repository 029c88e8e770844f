"""The global data order, as arithmetic: which sample stands at which position, for any rank and after any restart.

There is no iterator state to save. A position p on one endless axis names a sample: epoch p // N, place p % N in the
order of that epoch. Batch row i of step s sits at p = s * B + i. Ranks and micro-batches cut that axis, workers of
the reader cut it further, and none of them changes it. Reading the samples is `beit.common.reader`; what a shard
holds is `beit.common.dataset`.

With C lanes, the samples are divided once into C equal parts, and lane c feeds rows c * B/C to (c + 1) * B/C of every
batch from its part alone. A machine whose rows lie in one lane reads that lane's shards in every epoch and no others.
Each lane has an axis, and epochs, of its own.

N samples of one epoch, B global batch size, C lanes, W ranks, K stored views per sample.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError, require
from beit.common.lanes import Lane, check_lanes, cut_lanes
from beit.common.rng import CounterRng, stable_hash64

logger = logging.getLogger(__name__)

Int64Array = NDArray[np.int64]

STATE_VERSION = 1
_CACHED_WINDOWS = 2  # Per lane: a batch touches one window, or two where it crosses a border.
_CACHED_EPOCHS = 2
_DATA_FIELDS = {"views", "index_sha256", "lanes"}
"""Fields of `DataState` that say what is read, not how a position is counted."""
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
    repeats: Int64Array | None = None
    """Which of several views of the sample in this step; None where each sample shows one."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.positions)

    def slice(self, begin: int, end: int) -> Rows:
        """Return rows `begin` to `end`."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        part: dict[str, Any] = {name: None if column is None else column[begin:end] for name, column in columns.items()}
        return Rows(**part)


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
    Raises:
        InputError: there is no sample at all, or the lanes do not divide the batch or exceed the shards.
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
        """Show what the order depends on."""
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
            starts = np.concatenate([[0], np.cumsum(sizes[order])])
            _remember(self._epochs, key, (order, starts), _CACHED_EPOCHS * self.lanes)
        return self._epochs[key]

    def _window_at(self, lane: int, epoch: int, start: int) -> int:
        _, starts = self._epoch(lane, epoch)
        # side="right" steps over shards of size zero, which start where their successor starts.
        return (int(np.searchsorted(starts, start, side="right")) - 1) // self._lane_window

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
        owner = np.searchsorted(starts[first : last + 1], places, side="right") - 1
        parts, part = order[first + owner], self.lane(lane)
        return part.shard_ids[parts], part.first_ranks[parts] + places - starts[first + owner]

    def _rng(self, *labels: int | str, lane: int) -> CounterRng:
        # One lane draws as orders did before there were lanes.
        return CounterRng(self.seed, *labels, *(("lane", lane) if self.lanes > 1 else ()))


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any, limit: int) -> None:
    cache[key] = value
    while len(cache) > limit:
        cache.popitem(last=False)


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


def valid_world_sizes(global_batch_size: int, micro_batch_size: int) -> list[int]:
    """List the numbers of ranks that can share the global batch; none if the micro-batch does not divide it."""
    if global_batch_size % micro_batch_size:
        return []
    pieces = global_batch_size // micro_batch_size
    return [count for count in range(1, pieces + 1) if pieces % count == 0]


def grad_accum_steps_for(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Derive the micro-batches per rank and step from B = micro_batch_size x grad_accum_steps x world_size.

    Raises:
        InputError: B cannot be cut that way; the message lists the world sizes that can.
    """
    if global_batch_size % (micro_batch_size * world_size) == 0:
        return global_batch_size // (micro_batch_size * world_size)
    valid = valid_world_sizes(global_batch_size, micro_batch_size)
    if not valid:
        raise InputError(
            f"micro_batch_size ({micro_batch_size}) must divide global_batch_size ({global_batch_size}); "
            "lower one of them"
        )
    raise InputError(
        f"global_batch_size ({global_batch_size}) cannot be cut into micro-batches of {micro_batch_size} on "
        f"{world_size} ranks; start one of {', '.join(map(str, valid))} ranks or change micro_batch_size"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """Which rows of the order one rank reads, micro-batch by micro-batch."""

    order: Order
    """Of the whole data set; the same on every rank."""
    global_batch_size: int
    """Rows per optimizer step over all ranks, B."""
    micro_batch_size: int
    """Rows per forward pass of one rank."""
    grad_accum_steps: int
    """Micro-batches per rank and step."""
    world_size: int = 1
    """Ranks, W."""
    rank: int = 0
    """Of this process, in [0, W)."""
    repeats: int = 1
    """Views that each sample of a step shows, R. Row i of a step then shows view i // (B / R) of sample i % (B / R), so
    that neighbours, which mixup pairs, are different samples."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not multiply to the global batch."""
        require(
            self.repeats >= 1 and self.global_batch_size % self.repeats == 0,
            f"global_batch_size ({self.global_batch_size}) must be a multiple of repeats ({self.repeats})",
        )
        require(0 <= self.rank < self.world_size, f"rank ({self.rank}) must be in [0, {self.world_size})")
        require(self.micro_batch_size >= 1, f"micro_batch_size ({self.micro_batch_size}) must be at least 1")
        needed = grad_accum_steps_for(self.global_batch_size, self.micro_batch_size, self.world_size)
        require(
            needed == self.grad_accum_steps,
            f"global_batch_size ({self.global_batch_size}) must equal micro_batch_size ({self.micro_batch_size}) x "
            f"grad_accum_steps ({self.grad_accum_steps}) x ranks ({self.world_size}); set grad_accum_steps to {needed}",
        )
        assert self.order.lanes in (1, self._samples_per_step / self.order.lane_rows), (
            "the order has another batch size"
        )

    def micro_batch(self, index: int) -> Rows:
        """Return the rows of this rank's micro-batch `index`, counted from the start of the run.

        Micro-batch `a` of step `s` has index s * grad_accum_steps + a. A rank's rows of a step are contiguous, so
        the slices of all ranks, in rank order, are the batch that a single process would read.
        """
        step, micro_step = divmod(index, self.grad_accum_steps)
        begin = self._begin(step) + micro_step * self.micro_batch_size
        if self.repeats == 1:
            return self.order.rows(begin, self.micro_batch_size)
        return self._repeated(step, begin - step * self.global_batch_size)

    def _repeated(self, step: int, first: int) -> Rows:
        """Return a micro-batch that begins with row `first` of a step whose samples show several views."""
        per_step, pieces, row, end = self._samples_per_step, [], first, first + self.micro_batch_size
        while row < end:
            repeat, place = divmod(row, per_step)
            count = min(end - row, per_step - place)
            piece = self.order.rows(step * per_step + place, count)
            pieces.append(replace(piece, repeats=np.full(count, repeat, np.int64)))
            row += count
        columns = {
            field.name: np.concatenate([getattr(piece, field.name) for piece in pieces]) for field in fields(Rows)
        }
        positions = step * self.global_batch_size + np.arange(first, end, dtype=np.int64)
        return Rows(**columns | {"positions": positions})

    def shards_near(self, index: int) -> list[int]:
        """List the shards that this rank reads around micro-batch `index`, those needed first at the front."""
        step = index // self.grad_accum_steps
        if self.repeats > 1:
            return self.order.shards_near(step * self._samples_per_step, self._samples_per_step)
        return self.order.shards_near(self._begin(step), self.global_batch_size // self.world_size)

    @property
    def _samples_per_step(self) -> int:
        return self.global_batch_size // self.repeats

    def _begin(self, step: int) -> int:
        return step * self.global_batch_size + self.rank * (self.global_batch_size // self.world_size)

    def state(self, *, steps_completed: int, num_views: int, index_sha256: str) -> DataState:
        """Describe the position after `steps_completed` optimizer steps.

        Steps completed, not batches fetched: prefetching must not move the position.
        """
        return DataState(
            seed=self.order.seed,
            samples_consumed=steps_completed * self.global_batch_size,
            global_batch_size=self.global_batch_size,
            window_shards=self.order.window_shards,
            lanes=self.order.lanes,
            views=num_views,
            index_sha256=index_sha256,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataState:
    """All a checkpoint has to keep to continue the data order exactly."""

    version: int = STATE_VERSION
    """Of this record."""
    seed: int
    """Of the order."""
    samples_consumed: int
    """Rows of completed optimizer steps, over all ranks."""
    global_batch_size: int
    """B."""
    window_shards: int
    """Shards mixed with each other."""
    lanes: int = 1
    """Independent parts of the shard list, each feeding its own rows of a batch."""
    views: int
    """K, or 0 where no view is stored."""
    index_sha256: str
    """Identity of the data: of the shard table, or of the cached index and its subset."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain integers and strings."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, mapping: dict[str, Any]) -> DataState:
        """Rebuild the record.

        Raises:
            InputError: the version or the fields are not ours.
        """
        version = mapping.get("version")
        require(
            version == STATE_VERSION,
            f"data state version ({version}) must be {STATE_VERSION}; use the beit that wrote it",
        )
        names = {field.name for field in fields(cls)}
        require(set(mapping) == names, f"data state has fields {sorted(mapping)}, needs {sorted(names)}; it is damaged")
        return cls(**mapping)

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self.samples_consumed // self.global_batch_size


def check_resume(saved: DataState, current: DataState, *, allow_data_change: bool = False) -> None:
    """Refuse to continue another data order than the saved one.

    Args:
        saved: From the checkpoint.
        current: What the run would use now; its `samples_consumed` is not looked at.
        allow_data_change: Take other data, as long as the position means the same in them.
    Raises:
        InputError: something differs; every difference is named with both values.
    """
    names = [field.name for field in fields(DataState) if field.name not in ("samples_consumed", "version")]
    different = [name for name in names if getattr(saved, name) != getattr(current, name)]
    if not different:
        return
    listed = "; ".join(f"{name} was {getattr(saved, name)}, is {getattr(current, name)}" for name in different)
    if set(different) <= _DATA_FIELDS:
        if allow_data_change:
            logger.info("the data differ from those of the checkpoint (%s); going on with the new ones", listed)
            return
        way_out = "restore them, go on with the new ones with --set run.allow_data_change=true, or start a new run"
    else:
        way_out = "restore them or start a new run"
    raise InputError(f"the data differ from those of the checkpoint ({listed}); {way_out}")
