import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beit.common.processes.distributed import World
from beit.common.rng import CounterRng
from beit.tokenize.clustering import centres as module
from beit.tokenize.clustering.centres import Centres, assign, revive, start, statistics, update


class Ranks:
    """Threads in the place of ranks."""

    def __init__(self, count: int) -> None:
        self.count, self._barrier, self._box = count, threading.Barrier(count), [None] * count

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._box[rank] = value
        self._barrier.wait()
        values = list(self._box)
        self._barrier.wait()
        return values


class FakeWorld(World):
    """A rank among threads."""

    __slots__ = ("ranks",)

    def gather(self, value: Any) -> list[Any]:
        return self.ranks.exchange(self.rank, value)


def on_ranks(count: int, work: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run `work(rank, world)` on threads and return what each gave."""
    ranks, results = Ranks(count), [None] * count

    def reduce(values: Tensor, world: Any) -> Tensor:
        return torch.stack([part.clone() for part in ranks.exchange(world.rank, values)]).sum(0)

    monkeypatch.setattr(module, "_reduce", reduce)

    def run(rank: int) -> None:
        world = FakeWorld(rank=rank, local_rank=rank, world_size=count, device=torch.device("cpu"))
        object.__setattr__(world, "ranks", ranks)
        results[rank] = work(rank, world)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return results


ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


def unit_vectors(count: int, *, seed: int = 0, dim: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_centres_start_as_different_vectors_of_the_batch() -> None:
    vectors = unit_vectors(40)
    found = start(vectors, 16, CounterRng(0, "start"), ALONE)
    places = (found.directions @ vectors.t()).argmax(1)
    assert len(set(places.tolist())) == 16
    assert torch.allclose(found.directions, vectors[places], atol=1e-6)


def test_a_centre_becomes_the_direction_of_what_it_won_and_forgets() -> None:
    vectors = unit_vectors(40)
    state = start(vectors, 4, CounterRng(0, "start"), ALONE)
    found = assign([vectors], state.directions)
    assert torch.equal(found.words, (vectors @ state.directions.t()).argmax(1))
    update(state, vectors, found, keep=0.0, world=ALONE)
    for word in range(4):
        won = vectors[found.words == word]
        assert torch.allclose(state.directions[word], F.normalize(won.sum(0), dim=0), atol=1e-6)
        assert state.counts[word] == len(won)
    more = unit_vectors(30, seed=1)
    again = assign([more], state.directions)
    before = state.sums.clone()
    update(state, more, again, keep=0.75, world=ALONE)
    sums = torch.zeros(4, 5, dtype=torch.float64).index_add_(0, again.words, more.double())
    assert torch.allclose(state.sums, 0.75 * before + sums, atol=1e-6)


def test_a_word_that_won_nothing_stays_where_it_was() -> None:
    vectors = unit_vectors(10)
    state = Centres(
        directions=torch.cat([vectors[:1], -vectors.mean(0, keepdim=True)]),
        sums=torch.zeros(2, 5, dtype=torch.float64),
        counts=torch.zeros(2, dtype=torch.float64),
    )
    found = assign([vectors[:1]], state.directions)
    before = state.directions[1].clone()
    update(state, vectors[:1], found, keep=0.0, world=ALONE)
    assert torch.equal(state.directions[1], before)


def test_unused_words_move_onto_vectors_that_are_badly_represented() -> None:
    near = F.normalize(unit_vectors(1) + 0.01 * torch.randn(50, 5, generator=torch.Generator().manual_seed(2)), dim=1)
    vectors = torch.cat([near, -near[:1]])
    state = Centres(
        directions=torch.cat([near[:2], near[2:3]]),
        sums=torch.ones(3, 5, dtype=torch.float64),
        counts=torch.tensor([30.0, 21.0, 0.0], dtype=torch.float64),
    )
    found = assign([vectors], state.directions)
    assert revive(state, vectors, found, threshold=0.1, rng=CounterRng(0, "revive"), world=ALONE) == 1
    assert torch.equal(state.directions[2], -near[0])
    assert state.counts[2] == 17.0  # its fair share


def test_numbers_are_measured_and_one_that_never_changes_is_not_blown_up() -> None:
    vectors = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.0]) + 2.0
    mean, deviation = statistics([vectors[:70], vectors[70:]], ALONE)
    assert torch.allclose(mean, vectors.mean(0), atol=1e-5)
    assert torch.allclose(deviation[:2], vectors[:, :2].std(0, correction=0), atol=1e-5)
    assert 1e-4 < deviation[2] < 1e-2


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_ranks_finds_the_same_centres_to_the_bit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [unit_vectors(48, seed=seed) for seed in range(4)]

    def work(rank: int, world: World) -> Centres:
        size = 48 // world.world_size
        state = None
        for number, batch in enumerate(batches):
            own = batch[rank * size : (rank + 1) * size]
            parts = list(torch.split(own, 8))
            mean, _ = statistics(parts, world)
            state = state or start(own - 0 * mean, 12, CounterRng(0, "start"), world)
            found = assign(parts, state.directions)
            update(state, own, found, keep=0.5 * (number > 0), world=world)
            revive(state, own, found, threshold=0.5, rng=CounterRng(0, "revive", number), world=world)
        assert state is not None
        return state

    alone = work(0, ALONE)
    for state in on_ranks(count, work, monkeypatch):
        assert torch.equal(state.directions, alone.directions)
        assert torch.equal(state.sums, alone.sums) and torch.equal(state.counts, alone.counts)


def test_clusters_that_are_there_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = F.normalize(torch.randn(16, 6, generator=generator), dim=1)
    owner = torch.randint(16, (4000,), generator=generator)
    vectors = F.normalize(middles[owner] + 0.15 * torch.randn(4000, 6, generator=generator), dim=1)
    state = start(vectors[:400], 16, CounterRng(0, "start"), ALONE)
    for number, batch in enumerate(torch.split(vectors, 400)):
        found = assign([batch], state.directions)
        update(state, batch, found, keep=1 - 1 / min(number + 1, 5), world=ALONE)
        revive(state, batch, found, threshold=0.1, rng=CounterRng(0, "revive", number), world=ALONE)
    closeness = assign([vectors], state.directions).closeness.mean()
    of_truth = assign([vectors], middles).closeness.mean()
    assert closeness > of_truth - 0.03
