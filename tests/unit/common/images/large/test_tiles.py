"""Where tiles lie and which pixels each answers for, over a grid of sizes."""

import itertools

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.images.large.tiles import Box, Tiling, shares

LENGTHS, TILES = (
    (1, 2, 31, 32, 33, 63, 64, 65, 100, 1000),
    ((32, 0), (32, 1), (32, 8), (32, 16), (32, 31), (1, 0), (7, 5)),
)


@pytest.mark.parametrize(("length", "tiling"), list(itertools.product(LENGTHS, TILES)))
def test_tiles_cover_the_image_and_end_with_it(length, tiling):
    tile, overlap = tiling
    starts = Tiling(tile, overlap).starts(length)
    ends = [min(start + tile, length) for start in starts]
    assert starts[0] == 0 and ends[-1] == length
    assert all(after <= before for after, before in zip(starts[1:], ends, strict=False))
    assert all(end - start == min(tile, length) for start, end in zip(starts, ends, strict=True))
    regular = [after - before for before, after in zip(starts, starts[1:-1], strict=False)]
    assert set(regular) <= {tile - overlap}


@pytest.mark.parametrize(("length", "tiling"), list(itertools.product(LENGTHS, TILES)))
def test_shares_of_a_pixel_sum_to_one_and_are_of_two_tiles_at_most(length, tiling):
    tile, overlap = tiling
    total, counts = np.zeros(length), np.zeros(length, int)
    for share in shares(length, Tiling(tile, overlap)):
        assert share.start <= share.begin < share.end <= min(share.start + tile, length)
        total[share.begin : share.end] += share.weights
        counts[share.begin : share.end] += 1
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert counts.max() <= 2
    assert overlap or counts.max() == 1


def test_tiles_are_numbered_row_by_row():
    tiling = Tiling(10, 2)
    tiles = list(tiling.tiles((25, 12)))
    assert tiling.grid((25, 12)) == (2, 3) and tiling.count((25, 12)) == 6
    assert [tile.name for tile in tiles] == [f"y{y:04d}x{x:04d}" for y in range(2) for x in range(3)]
    assert tiles[4].box == Box(8, 2, 18, 12) and tiles[5].box == Box(15, 2, 25, 12)
    assert list(tiling.tiles((25, 12), 4, 2)) == tiles[4:]


def test_a_small_image_is_one_tile():
    assert [tile.box for tile in Tiling(10).tiles((4, 7))] == [Box(0, 0, 4, 7)]


@pytest.mark.parametrize("overlap", [-1, 10, 11])
def test_an_overlap_as_large_as_the_tile_is_refused(overlap):
    with pytest.raises(InputError, match=rf"overlap \({overlap}\) must be at least 0 px and smaller than tile \(10\)"):
        Tiling(10, overlap)
