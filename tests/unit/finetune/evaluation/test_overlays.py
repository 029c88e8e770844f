"""What pictures of masks show: classes in their colours, errors in a colour of their own, ignored pixels as neither."""

import numpy as np
import pytest
from PIL import Image

from beit.finetune.evaluation.overlays import UNTOLD, WRONG, edges, enlarged_pixels, error_map, legend, overlay, shrunk
from beit.finetune.masks.classes import IGNORED, MaskClasses, voc_colours

CLASSES = MaskClasses(names=("sky", "road", "飛行機"), colours=((10, 20, 30), (200, 0, 0), (0, 0, 220)))


def photo(height=24, width=32):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def halves(height=24, width=32):
    """Class 0 on the left, class 1 on the right, and a corner that is ignored."""
    ids = np.zeros((height, width), np.uint8)
    ids[:, width // 2 :] = 1
    ids[:6, :6] = IGNORED
    return ids


def test_classes_are_mixed_with_the_image_and_ignored_pixels_are_not():
    image, ids = photo(), halves()
    drawn = np.asarray(overlay(image, ids, CLASSES, 0.5)).astype(int)
    pixels = np.asarray(image).astype(int)
    assert (drawn[:6, :6] == pixels[:6, :6]).all()
    inside = drawn[10:, 20:], pixels[10:, 20:]
    assert abs(inside[0] - (inside[1] + CLASSES.colours[1]) / 2).max() <= 1
    assert (drawn[10:, 15:16] == CLASSES.colours[0]).all() and (drawn[10:, 16:17] == CLASSES.colours[1]).all()
    assert (np.asarray(overlay(image, ids, CLASSES, 1.0))[10:, 20:] == CLASSES.colours[1]).all()


def test_grey_and_see_through_images_are_drawn_on_as_well():
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert overlay(photo().convert(mode), halves(), CLASSES).mode == "RGB"
        assert error_map(photo().convert(mode), halves(), halves()).mode == "RGB"


def test_only_what_is_wrong_is_bright():
    truth = halves()
    said = truth.copy()
    said[:, :10] = 2  # over ignored pixels, too, which are not wrong
    wrong = (said != truth) & (truth != IGNORED)
    drawn = np.asarray(error_map(photo(), truth, said)).astype(float)
    shares = drawn[wrong][:, :2] / WRONG[:2]
    assert 0.69 < shares.min() < shares.max() <= 1 and (drawn[wrong][:, 2] == 0).all()
    others = drawn[~wrong & (truth != IGNORED)]
    assert others.max() < 120 and (others == others[:, :1]).all()
    assert (drawn[:6, :6] == UNTOLD).all(-1).any()
    by_class = np.asarray(error_map(Image.new("RGB", truth.shape[::-1], "white"), truth, said, CLASSES))
    assert (by_class[wrong] == CLASSES.colours[2]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (900, 1200)])
def test_any_size(size):
    ids = np.arange(size[0] * size[1], dtype=np.int64).reshape(size) % 3
    ids = ids.astype(np.uint8)
    image = photo(*size)
    assert overlay(image, ids, CLASSES).size == error_map(image, ids, ids).size == image.size
    assert edges(ids).shape == size
    assert not edges(np.zeros(size, np.uint8)).any()


def test_a_mask_shrinks_with_its_image_and_gains_no_class():
    image, (ids,) = shrunk(photo(300, 400), [halves(300, 400) * 1], most_px=100)
    assert image.size == (100, 75) and ids.shape == (75, 100)
    assert set(np.unique(ids)) == {0, 1, IGNORED}
    assert shrunk(photo(), [halves()], most_px=32)[0].size == (32, 24)
    assert shrunk(photo(1, 300), [np.zeros((1, 300), np.uint8)], most_px=100)[1][0].shape == (1, 100)


def test_pixels_of_a_small_image_become_squares():
    image, (ids,) = enlarged_pixels(photo(9, 16), [halves(9, 16)], most_px=100)
    assert image.size == (96, 54) and np.array_equal(ids, np.kron(halves(9, 16), np.ones((6, 6), np.uint8)))
    assert np.array_equal(np.asarray(image)[3::6, 3::6], np.asarray(photo(9, 16)))
    assert enlarged_pixels(photo(60, 70), [], most_px=100)[0].size == (70, 60)


@pytest.mark.parametrize("count", [2, 11, 150])
def test_a_legend_has_every_class_within_its_width(count):
    names = tuple(f"class number {number}" for number in range(count))
    classes = MaskClasses(names=names, colours=voc_colours(count))
    drawn = legend(classes, [*range(count), IGNORED], width_px=700)
    assert drawn.width == 700
    found = {tuple(pixel) for pixel in np.asarray(drawn).reshape(-1, 3).tolist()}
    assert set(classes.colours) <= found and UNTOLD in found


def test_a_legend_of_a_mask_shows_what_is_in_it():
    assert legend(CLASSES, halves()).height == legend(CLASSES, [0, 1, IGNORED]).height
    found = {tuple(pixel) for pixel in np.asarray(legend(CLASSES, halves())).reshape(-1, 3).tolist()}
    assert CLASSES.colours[2] not in found and CLASSES.colours[1] in found
