"""A grey image is seen as the same grey in three channels would be, and drawn from the same random numbers."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from beit.common.images.channels import pixels_of
from beit.common.jitter import FACTOR_ONE, JITTER_ORDERS, jitter_image
from beit.common.rng import CounterRng
from beit.common.views import AugmentConfig, crop_crc, draw_view, mean_luma, render_view
from beit.finetune.augment.augment import fill_pixel
from beit.finetune.augment.rand_augment import OPERATIONS, Canvas
from beit.finetune.segmentation.crops import distort


def grey_photo(width=90, height=70):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def each_channel_is(grey, colour):
    assert grey.shape == (*colour.shape[:-1], 1) and grey.dtype == colour.dtype == np.uint8
    return all(np.array_equal(grey[..., 0], colour[..., channel]) for channel in range(3))


@pytest.mark.parametrize("order", range(len(JITTER_ORDERS)))
def test_jitter_does_to_grey_what_it_does_to_the_same_grey_in_colour(order):
    photo = grey_photo()
    factors = {"bright": 20_000, "contrast": 9_000, "sat": 30_000}
    found = jitter_image(photo, factors, order)
    assert found.mode == "L" and np.array_equal(
        found, pixels_of(jitter_image(photo.convert("RGB"), factors, order))[..., 0]
    )


def test_saturation_does_nothing_to_grey():
    photo = grey_photo()
    assert jitter_image(photo, {"bright": FACTOR_ONE, "contrast": FACTOR_ONE, "sat": 0}, 0).tobytes() == photo.tobytes()


@pytest.mark.parametrize(
    ("resample", "scope"), [*product(("bicubic", "lanczos", "bilinear"), ("crop", "image")), ("bicubic-torch", "crop")]
)
def test_a_view_of_grey_is_that_of_the_same_grey_in_colour(resample, scope):
    photo = grey_photo()
    for number in range(6):
        view = draw_view(CounterRng(0, number), photo.width, photo.height, AugmentConfig())
        settings = {"img_size": 32, "resample": resample, "jitter_scope": scope}
        grey = render_view(photo, view, **settings)
        assert each_channel_is(grey, render_view(photo.convert("RGB"), view, **settings))
        assert grey.flags.writeable and np.array_equal(mean_luma(grey), mean_luma(np.repeat(grey, 3, axis=2)))


def test_the_checksum_of_a_grey_crop_is_that_of_its_own_bytes():
    photo = grey_photo()
    view = draw_view(CounterRng(0), photo.width, photo.height, AugmentConfig())
    view["crc_crop"] = crop_crc(photo, view)
    assert view["crc_crop"] != crop_crc(photo.convert("RGB"), view)
    assert render_view(photo, view, img_size=32, check_crop=True).shape == (32, 32, 1)


@pytest.mark.parametrize("mode", ["LA", "I;16", "RGBA", "F"])
def test_other_modes_are_refused(mode):
    view = draw_view(CounterRng(0), 90, 70, AugmentConfig())
    with pytest.raises(ValueError, match="must be RGB or L"):
        render_view(Image.new(mode, (90, 70)), view)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_operation_of_rand_augment_does_to_grey_what_it_does_to_the_same_grey_in_colour(name, sign):
    photo = grey_photo(40, 40)
    for share in (0.3, 0.9, 1.0):
        grey = OPERATIONS[name](photo, share, sign, Canvas((77,), Image.Resampling.BICUBIC))
        colour = OPERATIONS[name](photo.convert("RGB"), share, sign, Canvas((77,) * 3, Image.Resampling.BICUBIC))
        assert grey.mode == "L" and each_channel_is(pixels_of(grey), pixels_of(colour))


def test_colour_does_nothing_to_grey():
    photo = grey_photo(40, 40)
    assert OPERATIONS["color"](photo, 0.9, 1.0, Canvas((0,), Image.Resampling.BICUBIC)).tobytes() == photo.tobytes()


def test_photometric_distortion_of_scenes_takes_grey():
    photo = grey_photo()
    for number in range(12):
        grey, colour = (distort(image, CounterRng(number)) for image in (photo, photo.convert("RGB")))
        assert grey.mode == "L" and each_channel_is(pixels_of(grey), pixels_of(colour))


def test_a_fill_colour_has_the_channels_of_the_image():
    assert fill_pixel((0.485, 0.456, 0.406), 3) == (124, 116, 104)
    assert fill_pixel((0.485, 0.456, 0.406), 1) == (117,)
    assert fill_pixel((0.5,), 3) == (128,) * 3 and fill_pixel((0.5,), 1) == (128,)
