import numpy as np

from beit.common.pages.words import _cut


def test_a_patch_stands_in_the_middle_of_its_cell():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:8, 8:12] = 200
    cell = np.asarray(_cut(pixels, 1, 2, 4))
    assert cell[36, 36].tolist() == [200] * 3 and cell[5, 5].tolist() == [0] * 3
