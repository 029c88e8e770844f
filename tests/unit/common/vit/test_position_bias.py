"""Relative index, bias look-up, and the geometric spline that resizes tables."""

import numpy as np
import pytest
import torch
from scipy import interpolate

from beit.common.errors import InputError
from beit.common.vit.position_bias import (
    gather_bias,
    geometric_spacing,
    near_first,
    num_table_rows,
    relative_position_index,
    resize_table,
    spline_matrix,
)


def random_table(grid_size, heads=2, dtype=torch.float64):
    return torch.randn(num_table_rows(grid_size), heads, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("side", "rows"), [(14, 732), (24, 2212), (32, 3972), (40, 6244)])
def test_table_rows(side, rows):
    assert num_table_rows((side, side)) == rows


def test_index_at_14x14():
    index = relative_position_index((14, 14)).long()
    places = {(1, 1): 364, (1, 2): 363, (2, 1): 365, (1, 15): 337, (196, 1): 728, (1, 196): 0}
    places |= {(0, 5): 729, (5, 0): 730, (0, 0): 731}
    assert {place: index[place].item() for place in places} == places
    assert index.sum().item() == 14_270_119


@pytest.mark.parametrize("grid_size", [(1, 1), (1, 4), (3, 5), (6, 2)])
def test_index_depends_on_the_offset_only_and_uses_every_row(grid_size):
    index = relative_position_index(grid_size)
    height, width = grid_size
    cells = [(y, x) for y in range(height) for x in range(width)]
    rows_of_offset = {}
    for i, (yi, xi) in enumerate(cells):
        for j, (yj, xj) in enumerate(cells):
            rows_of_offset.setdefault((yi - yj, xi - xj), set()).add(index[1 + i, 1 + j].item())
    assert all(len(rows) == 1 for rows in rows_of_offset.values())
    assert len(set.union(*rows_of_offset.values())) == len(rows_of_offset)
    wanted = set(range(num_table_rows(grid_size))) if len(cells) > 1 else set(index.flatten().tolist())
    assert set(index.flatten().tolist()) == wanted


def test_bias_reads_the_table_and_sends_gradients_back():
    table = random_table((3, 3)).requires_grad_()
    index = relative_position_index((3, 3))
    bias = gather_bias(table, index)
    assert bias.shape == (1, 2, 10, 10)
    assert torch.equal(bias[0].permute(1, 2, 0), table[index.long()])
    bias.sum().backward()
    assert torch.equal(table.grad[:, 0].long(), torch.bincount(index.flatten(), minlength=len(table)))


@pytest.mark.parametrize(("target", "ratio"), [(24, 1.090307), (28, 1.114428), (32, 1.134918), (40, 1.168504)])
def test_spacing_from_14(target, ratio):
    assert geometric_spacing(27, 2 * target - 1) == pytest.approx(ratio, abs=1e-6)


def test_spacing_of_a_smaller_grid_is_the_lower_limit():
    assert geometric_spacing(27, 15) == pytest.approx(1.010001, abs=1e-6)


@pytest.mark.parametrize("target", [7, 24, 28, 32, 40])
def test_resize_is_the_released_spline(target):
    table = random_table((14, 14))
    resized = resize_table(table, (14, 14), (target, target))
    ratio = geometric_spacing(27, 2 * target - 1)
    half = np.cumsum([ratio**k for k in range(13)])
    knots = np.concatenate([-half[::-1], [0], half])
    offsets = np.arange(1 - target, target)
    for head in range(2):
        values = table[:-3, head].reshape(27, 27).numpy()
        wanted = interpolate.RectBivariateSpline(knots, knots, values, kx=3, ky=3, s=0)(offsets, offsets)
        np.testing.assert_allclose(resized[:-3, head].reshape(wanted.shape).numpy(), wanted, atol=1e-12)
    assert torch.equal(resized[-3:], table[-3:])


def test_resize_reaches_the_target_range():
    for target, last in ((24, 22.99993), (28, 26.99994), (32, 31.00018), (40, 39.00008)):
        ratio = geometric_spacing(27, 2 * target - 1)
        assert sum(ratio**k for k in range(13)) == pytest.approx(last, abs=1e-5)


def test_resize_in_float32_is_close_to_float64():
    table = random_table((14, 14))
    exact = resize_table(table, (14, 14), (24, 24))
    single = resize_table(table.float(), (14, 14), (24, 24))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, atol=1e-6, rtol=1e-6)


def test_equal_grids_change_nothing():
    table = random_table((5, 5))
    assert resize_table(table, (5, 5), (5, 5)) is table


@pytest.mark.parametrize(("source", "target"), [((4, 6), (8, 9)), ((4, 6), (4, 9)), ((2, 3), (5, 5)), ((1, 4), (3, 4))])
def test_rectangles_resize_each_axis_by_itself(source, target):
    table = random_table(source)
    resized = resize_table(table, source, target)
    assert resized.shape == (num_table_rows(target), 2)
    flat = torch.full_like(table, 0.5)
    torch.testing.assert_close(resize_table(flat, source, target)[:-3], torch.full_like(resized[:-3], 0.5))


def test_spline_keeps_cubics_inside_its_range():
    # Not-a-knot splines reproduce every cubic; only then is the matrix the interpolation it claims to be.
    matrix = spline_matrix(27, 47)
    ratio = geometric_spacing(27, 47)
    half = torch.tensor([ratio**k for k in range(13)], dtype=torch.float64).cumsum(0)
    knots = torch.cat([-half.flip(0), torch.zeros(1, dtype=torch.float64), half]) / 20
    points = torch.arange(-22, 23, dtype=torch.float64) / 20
    torch.testing.assert_close((matrix @ (knots**3 - knots**2 + 2))[1:-1], points**3 - points**2 + 2)


def test_wrong_number_of_rows_is_refused():
    with pytest.raises(InputError, match="732.*28"):
        resize_table(random_table((14, 14)), (3, 3), (5, 5))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 1), (1, 4), (4, 1)])
def test_bias_without_gradients_is_the_same_by_a_faster_way(grid):
    table, index = torch.randn(num_table_rows(grid), 3), relative_position_index(grid)
    with torch.no_grad():
        assert torch.equal(gather_bias(table, index, grid), gather_bias(table, index))


def test_a_table_that_prefers_near_patches_falls_with_the_distance_from_head_to_head_faster():
    table = near_first((4, 6), 3)
    assert table.shape == (num_table_rows((4, 6)), 3)
    index = relative_position_index((4, 6))
    bias = gather_bias(table, index)[0]  # (H, S, S)
    assert torch.equal(bias[:, 0], torch.zeros(3, 25))  # CLS looks at all alike
    assert torch.equal(bias[:, :, 0], torch.zeros(3, 25))
    here, beside, below, corner = 1 + 8, 1 + 9, 1 + 14, 1 + 23
    assert torch.equal(bias[:, here, here], torch.zeros(3))
    assert torch.equal(bias[:, here, beside], bias[:, here, below])
    slopes = -bias[:, here, beside]
    assert slopes[0].item() == pytest.approx(0.3) and slopes[2].item() == pytest.approx(1.6)
    assert (slopes[1] / slopes[0]).item() == pytest.approx((slopes[2] / slopes[1]).item())
    assert torch.allclose(bias[:, here, corner], -slopes * 13**0.5)  # two rows, three columns
    assert near_first((4, 4), 1).shape[1] == 1
