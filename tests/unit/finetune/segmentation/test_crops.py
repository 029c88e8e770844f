"""Training crops: what is drawn, and that masks follow their images to the pixel."""

import pickle

import numpy as np
import pytest
from PIL import Image

from beit.common.rng import CounterRng
from beit.finetune.masks.classes import IGNORED
from beit.finetune.segmentation.config import SceneAugmentConfig
from beit.finetune.segmentation.crops import SceneTransform, distort, nearest_positions, resize_part
from beit.tests.unit.finetune.segmentation.scenes import Ids, record, scene

PLAIN = {"scale": (1.0, 1.0), "flip": 0.0, "photometric": False, "max_class_share": 1.0}


def transform(side=24, seed=0, **augment):
    settings = SceneAugmentConfig(**augment)
    return SceneTransform(img_size=side, augment=settings, decoder=Ids(), seed=seed)


def coded(width=50, height=37):
    """Return an image whose colours say where each pixel is, with a mask that says the same, roughly."""
    rows, columns = np.indices((height, width))
    pixels = np.stack([4 * columns, 5 * rows, np.full_like(rows, 90)], -1).astype(np.uint8)
    return pixels, (rows // 4).astype(np.uint8)


def test_a_crop_is_a_part_of_image_and_mask():
    pixels, ids = coded()
    found = transform(**PLAIN)(record(pixels, ids))
    left, top = found["images"][0, 0, 0] // 4, found["images"][1, 0, 0] // 5
    assert np.array_equal(found["images"].transpose(1, 2, 0), pixels[top : top + 24, left : left + 24])
    assert np.array_equal(found["masks"], ids[top : top + 24, left : left + 24])
    assert (found["images"].dtype, found["masks"].dtype) == (np.uint8, np.uint8)


def test_a_flip_turns_both():
    pixels, ids = scene(1)
    ids = np.tile(np.arange(40, dtype=np.uint8) // 4, (32, 1))
    (as_it_is, turned) = (transform(32, **PLAIN | {"flip": flip})(record(pixels, ids)) for flip in (0.0, 1.0))
    assert np.array_equal(turned["images"], as_it_is["images"][..., ::-1])
    assert np.array_equal(turned["masks"], as_it_is["masks"][..., ::-1])


def test_what_is_smaller_than_the_crop_is_laid_into_the_mean_colour():
    pixels, ids = coded(20, 10)
    found = transform(**PLAIN)(record(pixels, ids))
    assert np.array_equal(found["images"][:, :10, :20], pixels.transpose(2, 0, 1))
    assert np.array_equal(found["masks"][:10, :20], ids)
    assert set(np.unique(found["images"][:, 10:])) == {128} == set(np.unique(found["images"][:, :, 20:]))
    assert set(np.unique(found["masks"][10:])) == {IGNORED} == set(np.unique(found["masks"][:, 20:]))


@pytest.mark.parametrize(("short_side", "factor"), [(None, 1.5), (60, 2.0), (20, 0.5)])
def test_the_short_side_is_resized_to_what_is_asked_times_the_factor(short_side, factor):
    pixels, ids = coded(48, 30)
    found = transform(200, **PLAIN | {"scale": (factor, factor), "short_side": short_side})(record(pixels, ids))
    labelled = found["masks"] != IGNORED
    height = round((short_side or 30) * factor)
    assert (labelled.any(1).sum(), labelled.any(0).sum()) == (height, round(height * 48 / 30))


def test_masks_are_resized_by_nearest_exact_as_pillow_has_it():
    rng = np.random.default_rng(0)
    for old, new in ((37, 50), (50, 37), (64, 128), (1, 9), (9, 1), (360, 719), (1000, 333)):
        line = rng.integers(0, 255, (1, old), dtype=np.uint8)
        whole = np.asarray(Image.fromarray(line).resize((new, 1), Image.Resampling.NEAREST))
        assert np.array_equal(whole[0], line[0][nearest_positions(old, new)])
        upright = np.asarray(Image.fromarray(line.T.copy()).resize((1, new), Image.Resampling.NEAREST))
        assert np.array_equal(upright[:, 0], line[0][nearest_positions(old, new)])


def test_a_crop_of_the_resized_image_is_that_of_the_whole_but_for_rounding():
    rng = np.random.default_rng(0)
    for _ in range(60):
        width, height, new_width, new_height = (int(side) for side in rng.integers(1, 90, 4))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        left, top = int(rng.integers(0, new_width)), int(rng.integers(0, new_height))
        box = (left, top, int(rng.integers(left + 1, new_width + 1)), int(rng.integers(top + 1, new_height + 1)))
        whole = np.asarray(image.resize((new_width, new_height), Image.Resampling.BILINEAR).crop(box)).astype(int)
        part = np.asarray(resize_part(image, (new_width, new_height), box)).astype(int)
        assert np.abs(whole - part).max() <= 2


def test_the_same_sample_is_the_same_in_its_epoch_wherever_it_is_drawn():
    crops = transform()
    again = pickle.loads(pickle.dumps(crops))
    first, second = (one(record(*scene(3), key="x", epoch=4)) for one in (crops, again))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    for other in (record(*scene(3), key="y", epoch=4), record(*scene(3), key="x", epoch=5)):
        assert not np.array_equal(first["images"], crops(other)["images"])
    assert not np.array_equal(first["images"], transform(seed=1)(record(*scene(3), key="x", epoch=4))["images"])


def test_switching_one_change_off_leaves_the_others_as_they_were():
    all_on, plain = transform(flip=0.5), transform(flip=0.5, photometric=False)
    for key in "abcdef":
        found = [one(record(*scene(3), key=key))["masks"] for one in (all_on, plain)]
        assert np.array_equal(*found)


def test_crops_of_nearly_one_class_are_drawn_again():
    ids = np.zeros((30, 200), np.uint8)
    ids[:, 160:] = 1
    pixels = np.zeros((30, 200, 3), np.uint8)

    def shares(limit):
        crops = transform(30, **PLAIN | {"max_class_share": limit})
        return [(crops(record(pixels, ids, key=str(key)))["masks"] == 0).mean() for key in range(80)]

    free, limited = shares(1.0), shares(0.75)
    assert sum(share < 0.75 for share in limited) > 2 * sum(share < 0.75 for share in free)
    # The last of the draws is taken as it is, and where a whole image is of one class nothing can help.
    ids[:] = 3
    assert (transform(30, **PLAIN | {"max_class_share": 0.5})(record(pixels, ids))["masks"] == 3).all()


def test_ignored_pixels_do_not_count_for_the_share():
    ids = np.full((20, 20), IGNORED, np.uint8)
    ids[0, :4], ids[1, :4] = 0, 1
    crops = transform(20, **PLAIN | {"max_class_share": 0.75})
    assert crops._is_varied(ids)
    ids[1, :4] = 0
    assert not crops._is_varied(ids)
    ids[1, 0] = 1
    assert not crops._is_varied(ids)  # 7 of 8
    assert not crops._is_varied(np.full((4, 4), IGNORED, np.uint8))
    ids[:] = IGNORED
    ids[0, :4] = (0, 0, 0, 1)
    assert not crops._is_varied(ids)  # as much as the limit is too much


def test_colours_change_within_the_published_ranges():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    red = Image.new("RGB", (4, 4), (200, 40, 40))
    greys, hues, same = [], [], 0
    for number in range(300):
        greys.append(distort(grey, CounterRng(0, number)).getpixel((0, 0)))
        found = distort(red, CounterRng(0, number))
        hue, _, _ = found.convert("HSV").getpixel((0, 0))
        hues.append((hue + 128) % 256 - 128)
        same += found.getpixel((0, 0)) == (200, 40, 40)
    assert all(len(set(colour)) == 1 for colour in greys)  # neither saturation nor hue of grey
    values = [colour[0] for colour in greys]
    assert 34 <= min(values) < 60
    assert 180 < max(values) <= 198
    assert values.count(100) == pytest.approx(75, abs=25)  # a quarter has neither brightness nor contrast changed
    assert -27 <= min(hues) < -20
    assert 20 < max(hues) <= 27
    assert same == pytest.approx(300 / 16, abs=12)


def test_a_contrast_comes_before_or_after_the_colours():
    """mmsegmentation's two orders give two results, and both occur."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    seen = {np.asarray(distort(image, CounterRng(1, number))).tobytes() for number in range(40)}
    assert len(seen) > 25
