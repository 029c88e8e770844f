"""The lines that a learning signal is read against, on token grids small enough to count by hand."""

import math

import numpy as np
import pytest

from beit.pretrain.signal.baselines import fit_baselines, neighbour_pairs


def test_unigram_is_the_smoothed_cross_entropy_of_the_histogram():
    ids = np.array([[0, 0, 0, 0], [0, 0, 1, 1]])
    lines = fit_baselines(ids, np.zeros((2, 4), bool), grid_size=(2, 2), vocab_size=3)
    assert lines.unigram.tolist() == pytest.approx([7 / 11, 3 / 11, 1 / 11])
    assert lines.unigram_nats(np.array([0, 2])) == pytest.approx(-math.log(7 / 11) - math.log(1 / 11))
    assert lines.commonest == 0
    assert lines.neighbours is None


def test_every_masked_token_is_paired_with_its_nearest_visible_one():
    ids = np.arange(12).reshape(1, 12)  # 3 x 4
    mask = np.ones((1, 12), bool)
    mask[0, [0, 7]] = False  # top left, and the right end of the middle row
    contexts, words = neighbour_pairs(ids, mask, (3, 4))
    assert words.tolist() == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert contexts.tolist() == [0, 7, 7, 0, 0, 7, 0, 0, 7, 7]  # patch 9 is equally near to both


def test_of_equally_near_patches_the_first_counts():
    mask = np.array([[False, True, False]])
    assert neighbour_pairs(np.array([[5, 6, 7]]), mask, (1, 3))[0].tolist() == [5]


def test_images_without_a_visible_or_a_masked_patch_have_no_pairs():
    masks = np.array([[True] * 4, [False] * 4])
    contexts, words = neighbour_pairs(np.zeros((2, 4), int), masks, (2, 2))
    assert len(contexts) == len(words) == 0


def test_neighbour_line_knows_what_copying_tells():
    rng = np.random.default_rng(0)
    ids = np.repeat(rng.integers(0, 8, (400, 1)), 16, axis=1)  # every image has one word only
    masks = np.zeros((400, 16), bool)
    masks[:, 5:9] = True
    lines = fit_baselines(ids[:200], masks[:200], grid_size=(4, 4), vocab_size=8)
    contexts, words = neighbour_pairs(ids[200:], masks[200:], (4, 4))
    assert lines.unigram_nats(words) / len(words) == pytest.approx(math.log(8), abs=0.1)
    assert lines.neighbour_nats(contexts, words) / len(words) < 0.05


def test_neighbour_probabilities_sum_to_one_over_the_vocabulary():
    rng = np.random.default_rng(0)
    ids, masks = rng.integers(0, 6, (50, 9)), rng.random((50, 9)) < 0.4
    lines = fit_baselines(ids, masks, grid_size=(3, 3), vocab_size=7)
    for context in range(7):  # the last one was never seen
        words = np.arange(7)
        chances = lines.neighbours.probability(np.full(7, context), words, lines.unigram)
        assert chances.sum() == pytest.approx(1.0)
        assert chances.min() > 0
