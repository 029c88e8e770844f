import math

import numpy as np
import pytest

from beit.tokenize.fitness import tokens
from beit.tokenize.fitness.tokens import (
    CURVE_POINTS,
    TokenTally,
    collision_probability,
    entropy_bits,
    position_entropy,
    word_usage,
)


def test_equal_counts_have_the_largest_entropy() -> None:
    usage = word_usage(np.full(16, 10))
    assert usage.words_used == 16 and usage.num_tokens == 160
    assert math.isclose(usage.entropy_bits, 4.0) and usage.max_entropy_bits == 4.0
    assert math.isclose(usage.perplexity, 16.0)
    assert usage.commonest_share == 1 / 16 and usage.unseen_probability == 0.0
    assert usage.curve == [1.0] * CURVE_POINTS


def test_a_single_word_has_no_entropy() -> None:
    usage = word_usage(np.array([0, 50, 0, 0]))
    assert (usage.entropy_bits, usage.perplexity, usage.words_used, usage.commonest_share) == (0.0, 1.0, 1, 1.0)
    assert usage.curve[0] == 4.0 and usage.curve[-1] == 0.0


def test_expected_words_are_those_of_evenly_likely_words() -> None:
    usage = word_usage(np.array([3, 0, 0, 0]))
    assert math.isclose(usage.expected_words_used, 4 * (1 - (3 / 4) ** 3))
    rng = np.random.default_rng(0)
    drawn = [len(np.unique(rng.integers(0, 100, 150))) for _ in range(300)]
    counts = np.bincount(rng.integers(0, 100, 150), minlength=100)
    assert abs(word_usage(counts).expected_words_used - np.mean(drawn)) < 1.0


def test_chance_of_a_new_word_is_the_share_of_words_seen_once() -> None:
    assert word_usage(np.array([1, 1, 2, 4, 0])).unseen_probability == 2 / 8


def test_entropy_of_a_hand_computed_case() -> None:
    assert math.isclose(entropy_bits(np.array([2, 1, 1, 0])), 1.5)


def test_equal_pairs_leave_out_a_token_with_itself() -> None:
    assert collision_probability(np.array([2, 2])) == pytest.approx(4 / 12)
    assert collision_probability(np.array([1, 1, 1])) == 0.0


def test_position_entropy_tells_border_from_inside() -> None:
    ids = np.zeros((8, 4, 4), dtype=np.int64)
    ids[:, 1:-1, 1:-1] = np.arange(8)[:, None, None]  # three bits inside, none at the border
    found = position_entropy(ids, 16)
    assert (found.border_bits, found.inner_bits, found.ceiling_bits) == (0.0, 3.0, 3.0)
    assert found.bits[0] == [0.0] * 4 and found.bits[1] == [0.0, 3.0, 3.0, 0.0]


def test_tally_counts_copies_of_neighbours() -> None:
    tally = TokenTally(4, num_views=2, tokens_per_view=9)
    rows = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    tally.add(np.stack([rows, rows]))
    found = tally.statistics()
    assert (found.neighbours.left_share, found.neighbours.up_share) == (0.0, 1.0)
    assert found.neighbours.chance == pytest.approx(3 * 6 * 5 / (18 * 17))


def test_tally_does_not_depend_on_batches_and_keeps_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_KEPT_TOKENS", 20 * 16)
    ids = np.random.default_rng(0).integers(0, 8, (64, 4, 4))
    found = []
    for size in (64, 7):
        tally = TokenTally(8, num_views=64, tokens_per_view=16)
        for start in range(0, 64, size):
            tally.add(ids[start : start + size])
        found.append(tally.statistics())
    assert found[0] == found[1]
    assert found[0].words.num_tokens == 64 * 16  # all count, 16 are kept
    assert found[0].positions.num_views == 16


def test_tally_refuses_ids_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"0 to 8.*\[0, 8\)"):
        TokenTally(8, num_views=2, tokens_per_view=4).add(np.array([[[0, 8], [1, 2]]]))
