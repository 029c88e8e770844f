import math

import numpy as np

from beit.tokenize.fitness.tokens import measure_context


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
