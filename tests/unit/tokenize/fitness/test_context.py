import math

import numpy as np

from beit.tokenize.fitness.tokens import discounted, measure_context


def test_probabilities_sum_to_one_whatever_was_seen() -> None:
    rng = np.random.default_rng(0)
    contexts, words = rng.integers(0, 3, 40), rng.integers(0, 5, 40)
    every_word = np.arange(7)
    for context in (0, 1, 2, 99):  # 99 was never seen
        chances = discounted(contexts, words, np.full(7, context), every_word, 1 / 7)
        assert math.isclose(chances.sum(), 1.0)
        assert (chances > 0).all()


def test_discounts_follow_the_published_formula() -> None:
    contexts, words = np.zeros(6, np.int64), np.array([0, 0, 0, 1, 1, 2])  # three once: n1 = 1, n2 = 1
    discount = (1 + 1.0) / ((1 + 1.0) + 2 * (1 + 0.5))
    chances = discounted(contexts, words, np.zeros(4, np.int64), np.arange(4), 0.25)
    expected = [(count - discount) / 6 + discount * 3 / 6 * 0.25 for count in (3, 2, 1)] + [discount * 3 / 6 * 0.25]
    assert np.allclose(chances, expected)


def test_unseen_context_gives_the_coarser_estimate() -> None:
    backoff = np.array([0.3, 0.1])
    zeros = np.zeros(4, np.int64)
    assert np.array_equal(discounted(zeros, zeros, np.array([5, 6]), np.array([0, 1]), backoff), backoff)


def test_independent_tokens_gain_nothing() -> None:
    ids = np.random.default_rng(0).integers(0, 1024, (128, 14, 14))
    found = measure_context(ids, 1024)
    assert -0.1 < found.gain_bits < 0.01
    assert 9.9 < found.unigram_bits < 10.2


def test_gain_of_a_markov_source_is_its_known_mutual_information() -> None:
    """Each row is a chain that keeps its word with probability 3/4 and else draws one of four anew."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, (400, 12, 12))
    keep = rng.random(ids.shape) < 0.75
    for column in range(1, 12):
        ids[:, :, column] = np.where(keep[:, :, column], ids[:, :, column - 1], ids[:, :, column])
    same, other = 0.75 + 0.25 / 4, 0.25 / 4
    conditional_bits = -(same * math.log2(same) + 3 * other * math.log2(other))
    found = measure_context(ids, 4)
    assert abs(found.unigram_bits - 2.0) < 0.01
    assert abs(found.context_bits - conditional_bits) < 0.02


def test_constant_tokens_need_no_bits() -> None:
    found = measure_context(np.full((4, 6, 6), 3), 16)
    assert found.unigram_bits < 0.2 and abs(found.gain_bits) < 0.2
    assert found.num_fit_tokens == found.num_test_tokens == 2 * 25


def test_large_vocabularies_do_not_overflow() -> None:
    ids = np.full((2, 3, 3), 65535)
    assert math.isfinite(measure_context(ids, 65536).context_bits)
