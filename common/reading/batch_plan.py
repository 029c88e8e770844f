"""How a global batch is split over ranks and micro-batches, and what a resume must agree on.

Not here: the order of samples (`order.py`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from typing import Any

from beit.common.errors import InputError, require
from beit.common.reading.order import Order, Rows

logger = logging.getLogger(__name__)
STATE_VERSION = 1
_DATA_FIELDS = {"views", "index_sha256", "lanes"}
"""Fields of `DataState` that say what is read, not how a position is counted."""


def valid_world_sizes(global_batch_size: int, micro_batch_size: int) -> list[int]:
    """List the numbers of ranks that can share the global batch; none if the micro-batch does not divide it."""
    if global_batch_size % micro_batch_size:
        return []
    pieces = global_batch_size // micro_batch_size
    return [count for count in range(1, pieces + 1) if pieces % count == 0]


def grad_accum_steps_for(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Derive the micro-batches per rank and step from B = micro_batch_size x grad_accum_steps x world_size."""
    if global_batch_size % (micro_batch_size * world_size) == 0:
        return global_batch_size // (micro_batch_size * world_size)
    valid = valid_world_sizes(global_batch_size, micro_batch_size)
    if not valid:
        raise InputError(
            f"micro_batch_size ({micro_batch_size}) must divide global_batch_size ({global_batch_size}); "
            "lower one of them"
        )
    share = global_batch_size // world_size
    fitting = [size for size in range(1, min(share, micro_batch_size) + 1) if share % size == 0]
    smaller = (
        f", or set train.micro_batch_size={fitting[-1]}" if fitting and global_batch_size % world_size == 0 else ""
    )
    raise InputError(
        f"global_batch_size ({global_batch_size}) cannot be cut into micro-batches of {micro_batch_size} on "
        f"{world_size} ranks; start one of {', '.join(map(str, valid))} ranks{smaller}"
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
    world_size: int = 1
    """Ranks, W."""
    rank: int = 0
    """Of this process, in [0, W)."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not multiply to the global batch."""
        require(0 <= self.rank < self.world_size, f"rank ({self.rank}) must be in [0, {self.world_size})")
        require(self.micro_batch_size >= 1, f"micro_batch_size ({self.micro_batch_size}) must be at least 1")
        grad_accum_steps_for(self.global_batch_size, self.micro_batch_size, self.world_size)
        assert self.order.lanes in (1, self.global_batch_size / self.order.lane_rows), (
            "the order has another batch size"
        )

    @property
    def grad_accum_steps(self) -> int:
        """Micro-batches per rank and step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def micro_batch(self, index: int) -> Rows:
        """Return the rows of this rank's micro-batch `index`, counted from the start of the run.

        Micro-batch `a` of step `s` has index s * grad_accum_steps + a. A rank's rows of a step are contiguous, so
        the slices of all ranks, in rank order, are the batch that a single process would read.
        """
        step, micro_step = divmod(index, self.grad_accum_steps)
        return self.order.rows(self._begin(step) + micro_step * self.micro_batch_size, self.micro_batch_size)

    def shards_near(self, index: int) -> list[int]:
        """List the shards that this rank reads around micro-batch `index`, those needed first at the front."""
        step = index // self.grad_accum_steps
        return self.order.shards_near(self._begin(step), self.global_batch_size // self.world_size)

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

    @classmethod
    def from_json(cls, mapping: dict[str, Any]) -> DataState:
        """Rebuild the record from its fields."""
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


def check_resume(
    saved: DataState,
    current: DataState,
    *,
    allow_data_change: bool = False,
    locations: tuple[str | None, str | None] = (None, None),
) -> None:
    """Refuse to continue another data order than the saved one, whatever `samples_consumed` is.

    With `allow_data_change` other data are taken, as long as the position means the same in them. `locations` are those
    of the data then and now, as far as they are known, for messages.
    """
    names = [field.name for field in fields(DataState) if field.name not in ("samples_consumed", "version")]
    different = [name for name in names if getattr(saved, name) != getattr(current, name)]
    if not different:
        return
    listed = "; ".join(
        f"{name} was {getattr(saved, name)}, is {getattr(current, name)}"
        if name != "index_sha256"
        else f"data was {_named(saved, locations[0])}, is {_named(current, locations[1])}"
        for name in different
    )
    if set(different) <= _DATA_FIELDS:
        if allow_data_change:
            logger.info("the data differ from those of the checkpoint (%s); going on with the new ones", listed)
            return
        way_out = "restore them, go on with the new ones with --set run.allow_data_change=true, or start a new run"
    else:
        way_out = "restore them or start a new run"
    raise InputError(f"the data differ from those of the checkpoint ({listed}); {way_out}")


def _named(state: DataState, location: str | None) -> str:
    """Return what a person knows the data by, and enough of their identity to tell two states of one place apart."""
    index = f"index {state.index_sha256[:12]}"
    return index if location is None else f"{location} ({index})"
