import numpy as np
import pytest

from beit.common.rng import CounterRng, stable_hash64


def test_draws_are_a_pure_function_of_the_labels():
    first = [CounterRng(7, "key", 3).uniform() for _ in range(2)]
    assert first[0] == first[1] != CounterRng(7, "key", 4).uniform()


def test_labels_of_other_type_or_split_give_other_streams():
    values = {stable_hash64("1", 2), stable_hash64(1, "2"), stable_hash64("12"), stable_hash64(12), stable_hash64(1, 2)}
    assert len(values) == 5


def test_stream_is_frozen():
    """Stored views, masks and data order depend on these numbers: they may never change."""
    rng = CounterRng(0, "frozen")
    assert [rng.integers(0, 999) for _ in range(4)] == FROZEN_INTEGERS
    assert CounterRng(0, "frozen").permutation(6).tolist() == FROZEN_PERMUTATION


FROZEN_INTEGERS = [710, 268, 47, 107]
FROZEN_PERMUTATION = [2, 3, 1, 4, 0, 5]


def test_uniform_fills_the_range_evenly():
    rng = CounterRng(1)
    draws = np.array([rng.uniform(2.0, 4.0) for _ in range(20_000)])
    assert draws.min() >= 2.0
    assert draws.max() < 4.0
    assert draws.mean() == pytest.approx(3.0, abs=0.02)


def test_integers_reach_both_ends_evenly():
    rng = CounterRng(2)
    counts = np.bincount([rng.integers(0, 4) for _ in range(20_000)], minlength=5)
    assert counts.size == 5
    assert np.abs(counts - 4000).max() < 300


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_permutation_holds_every_index_once(count):
    assert sorted(CounterRng(3, count).permutation(count)) == list(range(count))
