import pytest

from beit.common.errors import InputError
from beit.common.shards.schema import Geometry


@pytest.mark.parametrize(
    ("img_size", "patch_size", "downsampling", "grid_size", "token_img_size"),
    [(224, 16, 8, 14, 112), (32, 4, 8, 8, 64), (64, 8, 4, 8, 32), (384, 16, 8, 24, 192)],
)
def test_one_token_falls_on_each_patch(img_size, patch_size, downsampling, grid_size, token_img_size):
    geometry = Geometry(img_size, patch_size, downsampling)
    assert (geometry.grid_size, geometry.token_img_size) == (grid_size, token_img_size)
    assert geometry.num_patches == grid_size**2


def test_a_patch_that_does_not_tile_the_image_is_refused_with_the_nearest_sizes():
    with pytest.raises(InputError, match=r"img_size \(225\).*patch_size \(16\).*224 or 240"):
        Geometry(225, 16)
    with pytest.raises(InputError, match=r"img_size \(8\) must be at least patch_size \(16\)"):
        Geometry(8, 16)
