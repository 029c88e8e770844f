"""Spherical k-means, batch by batch, the same to the bit on any number of ranks.

Centres are directions of running sums of the unit vectors they won. Every rank adds up its own vectors as whole
numbers, in units of 2**-24, so that the sum over ranks does not depend on who adds what first; everything after that is
computed from equal numbers on all ranks.

n vectors of this rank, D numbers each, V words.

Source: D. Sculley, "Web-scale k-means clustering" (2010), for batches; I. Dhillon and D. Modha, "Concept decompositions
for large sparse text data using clustering" (2001), for directions. Differs: old batches are forgotten; words that
nobody uses are moved onto vectors drawn by how badly they are represented, which is how k-means++ (D. Arthur and S.
Vassilvitskii, 2007) draws its centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from beit.common.processes.distributed import World
from beit.common.rng import CounterRng

_UNIT = float(1 << 24)
"""Of the whole numbers that vectors are added up in: 2**39 of length 1 fit."""
_CHUNK = 8192
"""Vectors compared at a time, to bound memory at chunk x V."""


@dataclass(kw_only=True, slots=True)
class Centres:
    """The centres while they are being found; equal on all ranks."""

    directions: Tensor
    """Float32 (V, D), length 1, on the device."""
    sums: Tensor
    """Float64 (V, D), on the CPU: of the vectors of the batches that are remembered."""
    counts: Tensor
    """Float64 (V,): how many these were."""

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Words of this rank's vectors of one batch."""

    words: Tensor
    """Int64 (n,)."""
    closeness: Tensor
    """Float32 (n,): cosine to the centre."""


def start(vectors: Tensor, vocab_size: int, rng: CounterRng, world: World) -> Centres:
    """Take V different vectors of the first batch, over all ranks, as the first centres; n, D as above."""
    own, first, total = len(vectors), *_place(len(vectors), world)
    assert total >= vocab_size, "the settings were checked"
    chosen = torch.from_numpy(np.asarray(rng.permutation(total)[:vocab_size]) - first)
    is_own = (chosen >= 0) & (chosen < own)
    words, rows = is_own.nonzero().flatten(), chosen[is_own]
    sums = torch.zeros(vocab_size, vectors.shape[1], dtype=torch.int64)
    sums[words] = _whole(vectors[rows.to(vectors.device)].cpu())
    summed = _reduce(sums, world).double() / _UNIT
    directions = F.normalize(summed, dim=1).float().to(vectors.device)
    return Centres(directions=directions, sums=summed, counts=torch.zeros(vocab_size, dtype=torch.float64))


def assign(parts: Sequence[Tensor], directions: Tensor) -> Assignment:
    """Find the nearest centre of the unit vectors, float32 (m, D), of each micro-batch.

    One by one, because the last bits of a product depend on the number of its rows.
    """
    words, closeness = [], []
    for chunk in (chunk for part in parts for chunk in torch.split(part, _CHUNK)):
        best = (chunk @ directions.t()).max(dim=1)
        words.append(best.indices)
        closeness.append(best.values)
    return Assignment(words=torch.cat(words), closeness=torch.cat(closeness))


def update(centres: Centres, vectors: Tensor, found: Assignment, *, keep: float, world: World) -> None:
    """Move every centre to what it won lately; `keep` is what is left of earlier batches, 0 at the first."""
    shape = (centres.vocab_size, vectors.shape[1])
    sums = torch.zeros(shape, dtype=torch.int64)
    sums.index_add_(0, found.words.cpu(), _whole(vectors.cpu()))
    counts = torch.bincount(found.words.cpu(), minlength=centres.vocab_size)
    joined = _reduce(torch.cat([sums, counts[:, None]], dim=1), world)
    centres.sums.mul_(keep).add_(joined[:, :-1].double() / _UNIT)
    centres.counts.mul_(keep).add_(joined[:, -1].double())
    has_direction = centres.sums.norm(dim=1, keepdim=True) > 1e-9
    moved = F.normalize(centres.sums, dim=1).float().to(centres.directions.device)
    centres.directions = torch.where(has_direction.to(moved.device), moved, centres.directions)


def revive(
    centres: Centres, vectors: Tensor, found: Assignment, *, threshold: float, rng: CounterRng, world: World
) -> int:
    """Move words below a share of their fair use onto vectors that no word is near, and return how many.

    Vectors are drawn without replacement, by their distance from the nearest centre: each has an exponential time to
    come, and the first ones win, whichever rank they are on.
    """
    fair = float(centres.counts.sum()) / centres.vocab_size
    unused = (centres.counts < threshold * fair).nonzero().flatten()
    first, total = _place(len(vectors), world)
    unused = unused[:total]
    if not len(unused):
        return 0
    times = -np.log1p(-rng.raw(total)[first : first + len(vectors)].astype(np.float64) / 2.0**64)
    badness = (1.0 - found.closeness.double()).clamp_min(1e-9).cpu()
    order = torch.argsort(torch.from_numpy(times) / badness, stable=True)[: len(unused)]
    coming = (torch.from_numpy(times) / badness)[order]
    offers = world.gather((coming.tolist(), (order + first).tolist(), vectors[order.to(vectors.device)].cpu()))
    best = sorted(
        (when, place, rank, row)
        for rank, (whens, places, _) in enumerate(offers)
        for row, (when, place) in enumerate(zip(whens, places, strict=True))
    )[: len(unused)]
    new = torch.stack([offers[rank][2][row] for _, _, rank, row in best])
    unused = unused[: len(new)]
    centres.directions[unused.to(centres.directions.device)] = new.to(centres.directions.device)
    centres.sums[unused] = new.double() * fair
    centres.counts[unused] = fair
    return len(unused)


def statistics(parts: Sequence[Tensor], world: World) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of every number over all ranks, float32 (D,) each, on the vectors' device.

    Micro-batches, float32 (m, D), are added up one by one in their order over all ranks, so that it does not matter how
    many these are.
    """
    double = [part.double().cpu() for part in parts]
    own = [(len(part), part.sum(0), part.square().sum(0)) for part in double]
    every = [entry for entries in world.gather(own) for entry in entries]
    count = sum(entry[0] for entry in every)
    mean = torch.stack([entry[1] for entry in every]).sum(0) / count
    square = torch.stack([entry[2] for entry in every]).sum(0) / count
    deviation = (square - mean.square()).clamp_min(0.0).sqrt()
    # A number that never changes says nothing; divided by its own noise it would say that loudly.
    floor = 1e-3 * float(deviation.mean()) + 1e-12
    device = parts[0].device
    return mean.float().to(device), deviation.clamp_min(floor).float().to(device)


def reduce_counts(counts: Tensor, world: World) -> Tensor:
    """Add up whole numbers over all ranks, int64 of any shape, on the CPU."""
    return _reduce(counts, world)


def _place(own: int, world: World) -> tuple[int, int]:
    """Return how many vectors the ranks before this one have, and all of them together."""
    sizes = world.gather(own)
    return sum(sizes[: world.rank]), sum(sizes)


def _whole(vectors: Tensor) -> Tensor:
    return (vectors.double() * _UNIT).round().long()


def _reduce(values: Tensor, world: World) -> Tensor:
    if world.world_size > 1:
        dist.all_reduce(values)  # over gloo: between host memories
    return values
