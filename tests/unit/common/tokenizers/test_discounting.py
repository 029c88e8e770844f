"""Absolute discounting, against the formula written out."""

import math

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


def test_probabilities_sum_to_one_whatever_was_seen():
    rng = np.random.default_rng(0)
    counts = DiscountedCounts.fit(rng.integers(0, 3, 40), rng.integers(0, 5, 40), 7)
    for context in (0, 1, 2, 99):  # 99 was never seen
        chances = counts.probability(np.full(7, context), np.arange(7), 1 / 7)
        assert math.isclose(chances.sum(), 1.0)
        assert (chances > 0).all()


def test_discounts_follow_the_published_formula():
    words = np.array([0, 0, 0, 1, 1, 2])  # three once: n1 = 1, n2 = 1
    discount = (1 + 1.0) / ((1 + 1.0) + 2 * (1 + 0.5))
    counts = DiscountedCounts.fit(np.zeros(6, np.int64), words, 4)
    chances = counts.probability(np.zeros(4, np.int64), np.arange(4), 0.25)
    expected = [(count - discount) / 6 + discount * 3 / 6 * 0.25 for count in (3, 2, 1)] + [discount * 3 / 6 * 0.25]
    assert np.allclose(chances, expected)


def test_unseen_context_gives_the_coarser_estimate():
    backoff = np.array([0.3, 0.1])
    counts = DiscountedCounts.fit(np.zeros(4, np.int64), np.zeros(4, np.int64), 2)
    assert np.array_equal(counts.probability(np.array([5, 6]), np.array([0, 1]), backoff), backoff)
