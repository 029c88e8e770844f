"""Lanes: the samples divided once into equal parts, each of which feeds its own rows of every batch.

The order of the samples inside a lane is `beit.common.sampler`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import require
from beit.common.rng import CounterRng

Int64Array = NDArray[np.int64]


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
    """Refuse a number of lanes that does not divide the batch, or leaves a lane without a shard.

    Raises:
        InputError: names the numbers that fit.
    """
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
