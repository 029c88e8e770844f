"""Absolute discounting, against the formula written out; more in the tests of the fitness report, which uses it too."""

import numpy as np
import pytest

from beit.common.tokenizers.discounting import DiscountedCounts


def test_estimate_is_the_discounted_count_plus_the_share_of_the_coarser_one():
    contexts, words = np.array([0, 0, 0, 0, 1]), np.array([2, 2, 2, 1, 0])
    counts = DiscountedCounts.fit(contexts, words, 3)
    discount = (2 + 1) / (2 + 1 + 2 * 0.5)  # pairs (0, 1) and (1, 0) occur once, none twice
    assert counts.discount == pytest.approx(discount)
    asked = counts.probability(np.array([0, 0, 1, 2]), np.array([2, 0, 0, 1]), np.array([0.5, 0.2, 0.3, 0.1]))
    wanted = [(3 - discount + discount * 2 * 0.5) / 4, discount * 2 * 0.2 / 4, 1 - discount + discount * 0.3, 0.1]
    assert asked.tolist() == pytest.approx(wanted)


def test_without_counts_the_coarser_estimate_stands():
    nothing = np.empty(0, np.int64)
    counts = DiscountedCounts.fit(nothing, nothing, 3)
    assert counts.probability(np.array([1]), np.array([2]), 0.25).tolist() == [0.25]
