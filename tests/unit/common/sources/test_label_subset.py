import numpy as np
import pytest

from beit.common.sources.labels import apportion, draw_subset, repetitions


@pytest.mark.parametrize("counts", [[5000] * 10, [1, 1, 1000], [7, 0, 13, 100], [3], [10, 20, 30, 1]])
def test_parts_sum_to_the_total_within_the_counts(counts):
    counts = np.array(counts)
    for total in {1, 2, counts.sum() // 2, counts.sum() - 1, counts.sum()} - {0}:
        parts = apportion(counts, int(total))
        assert parts.sum() == total
        assert (parts >= 0).all()
        assert (parts <= counts).all()


def test_proportions_are_those_of_the_whole():
    assert apportion(np.array([5000] * 10), 500).tolist() == [50] * 10
    assert apportion(np.array([100, 300, 600]), 10).tolist() == [1, 3, 6]


def test_rare_classes_keep_one_sample_where_possible():
    assert apportion(np.array([1, 1, 998]), 10).tolist() == [1, 1, 8]
    assert apportion(np.array([1, 1, 998]), 2).sum() == 2


def test_choice_is_stable_sorted_and_depends_on_the_seed():
    labels = np.repeat(np.arange(4), 25)
    chosen = draw_subset(labels, 12, seed=0)
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(labels[chosen]).tolist() == [3] * 4
    assert np.array_equal(chosen, draw_subset(labels, 12, seed=0))
    assert not np.array_equal(chosen, draw_subset(labels, 12, seed=1))


def test_larger_subsets_contain_smaller_ones():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 20))
    assert set(draw_subset(labels, 10, seed=0)) < set(draw_subset(labels, 50, seed=0))


def test_unlabelled_samples_are_one_more_class():
    chosen = draw_subset(np.array([-1] * 50 + [0] * 50), 10, seed=0)
    assert (chosen < 50).sum() == 5


def test_repetitions_make_classes_equally_frequent_and_list_all():
    labels = np.repeat([0, 1, 2, 3], [10, 3, 10, 1])
    times = repetitions(labels, seed=0)
    assert np.bincount(labels, weights=times).tolist() == [10, 10, 10, 10]
    assert sorted(times[labels == 1]) == [3, 3, 4] and set(times[labels == 0]) == {1}
    assert (times == repetitions(labels, seed=0)).all()
    assert any((times != repetitions(labels, seed=seed)).any() for seed in range(1, 6))
