"""Masks: the released algorithm's statistics, scaling with the grid, and what holds for every draw."""

import math

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.rng import CounterRng
from beit.pretrain.masking import MaskConfig, draw_mask, max_num_masked, target_min_block, target_num_masked

GRID = (14, 14)


def draws(count, grid_size=GRID, **settings):
    config = MaskConfig(**settings)
    return np.stack([draw_mask(CounterRng("test", i), grid_size, config) for i in range(count)])


@pytest.fixture(scope="module")
def blockwise():
    return draws(20_000)


def test_blockwise_counts_match_the_released_code(blockwise):
    counts = blockwise.sum((1, 2))
    assert counts.max() == 75
    assert 60 <= counts.min() <= 68
    assert 74.4 <= counts.mean() <= 74.6
    assert 0.65 <= (counts == 75).mean() <= 0.68
    assert 0.22 <= (counts == 74).mean() <= 0.245
    assert np.percentile(counts, 5) == 72


def test_blockwise_masks_favour_the_centre(blockwise):
    chance = blockwise.mean(0)
    corners = chance[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.allclose(corners, 0.042, atol=0.008)
    assert chance[6:8, 6:8].mean() == pytest.approx(0.72, abs=0.02)


def test_first_block_has_12_to_75_cells_and_never_spans_the_grid(monkeypatch):
    from beit.pretrain import masking

    for i in range(2000):
        block = masking._find_block(CounterRng(i), GRID, MaskConfig(), bits=0, min_block=16, room=75)
        cells = np.array([block >> cell & 1 for cell in range(196)]).reshape(GRID)
        height, width = cells.any(1).sum(), cells.any(0).sum()
        assert cells.sum() == height * width
        assert 12 <= cells.sum() <= 75
        assert 1 <= height <= 13
        assert 1 <= width <= 13


def reference_mask(rng, *, target=75, min_block=16, side=14):
    """The released algorithm, step by step as it is specified, on an array."""
    mask = np.zeros((side, side), dtype=bool)
    count = 0
    while count < target:
        cap, delta = target - count, 0
        for _ in range(10):
            area = rng.uniform(min_block, cap)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if width < side and height < side:
                top, left = rng.integers(0, side - height), rng.integers(0, side - width)
                window = mask[top : top + height, left : left + width]
                if 0 < height * width - window.sum() <= cap:
                    delta = height * width - window.sum()
                    window[:] = True
                    break
        if delta == 0:
            break
        count += delta
    return mask


def test_blockwise_equals_the_stepwise_algorithm_under_one_random_stream():
    for i in range(300):
        np.testing.assert_array_equal(draw_mask(CounterRng(7, i), GRID), reference_mask(CounterRng(7, i)))


def test_algorithm1_masks_more_than_40_percent():
    counts = draws(5_000, mode="algorithm1").sum((1, 2))
    assert counts.min() >= 79
    assert 82.2 <= counts.mean() <= 82.9
    assert counts.max() <= max_num_masked(MaskConfig(mode="algorithm1"), GRID) == 99


def test_random_masks_are_exact_and_uniform():
    masks = draws(4_000, mode="random")
    assert set(masks.sum((1, 2))) == {75}
    assert np.abs(masks.mean(0) - 75 / 196).max() < 0.04


def test_exact_masks_have_exactly_the_target():
    masks = draws(2_000, exact=True)
    assert set(masks.sum((1, 2))) == {75}


def test_exact_only_adds_to_a_short_mask():
    for i in range(200):
        short, full = draw_mask(CounterRng(i), GRID), draw_mask(CounterRng(i), GRID, MaskConfig(exact=True))
        assert (full | short == full).all()


@pytest.mark.parametrize(("side", "target", "minimum"), [(14, 75, 16), (8, 24, 5), (24, 220, 47), (4, 6, 1), (1, 1, 1)])
def test_counts_scale_with_the_grid(side, target, minimum):
    assert target_num_masked(MaskConfig(), (side, side)) == target
    assert target_min_block(MaskConfig(), (side, side)) == minimum
    assert max_num_masked(MaskConfig(), (side, side)) == target


@pytest.mark.parametrize("mode", ["blockwise", "algorithm1", "random"])
@pytest.mark.parametrize("grid_size", [(1, 1), (1, 7), (2, 2), (3, 2), (4, 4), (5, 9), (8, 8), (24, 24), (40, 40)])
def test_masks_are_never_empty_and_never_exceed_the_bound(mode, grid_size):
    masks = draws(100, grid_size, mode=mode)
    assert masks.shape == (100, *grid_size)
    assert masks.dtype == np.bool_
    counts = masks.sum((1, 2))
    assert counts.min() >= 1
    assert counts.max() <= max_num_masked(MaskConfig(mode=mode), grid_size) <= grid_size[0] * grid_size[1]


def test_mode_none_masks_nothing():
    config = MaskConfig(mode="none")
    assert not draw_mask(CounterRng(0), GRID, config).any()
    assert max_num_masked(config, GRID) == 0


def test_same_key_same_mask():
    first, again, other = (draw_mask(CounterRng(0, "shard/key", epoch), GRID) for epoch in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_explicit_counts_are_respected():
    config = MaskConfig(num_masked=30, min_block=4, exact=True)
    assert draw_mask(CounterRng(0), GRID, config).sum() == 30
    everything = MaskConfig(mode="random", num_masked=196)
    assert draw_mask(CounterRng(0), GRID, everything).all()


@pytest.mark.parametrize("settings", [{"num_masked": 200}, {"min_block": 200}])
def test_counts_beyond_the_grid_are_refused(settings):
    with pytest.raises(InputError, match=r"200.*196"):
        draw_mask(CounterRng(0), GRID, MaskConfig(**settings))


@pytest.mark.parametrize(
    "settings", [{"mode": "blocks"}, {"num_masked": -1}, {"min_block": -1}, {"min_aspect": 0.0}, {"max_attempts": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match=str(next(iter(settings.values())))):
        MaskConfig(**settings)
