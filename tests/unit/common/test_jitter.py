import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from beit.common.jitter import FACTOR_ONE, JITTER_ORDERS, MAX_FACTOR, jitter_image

ENHANCERS = {"bright": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "sat": ImageEnhance.Color}


def noise(seed: int, height: int = 40, width: int = 56) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def enhance(image: Image.Image, factors: dict[str, int], order: int) -> Image.Image:
    for name in JITTER_ORDERS[order]:
        if factors[name] != FACTOR_ONE:
            image = ENHANCERS[name](image).enhance(factors[name] / FACTOR_ONE)
    return image


def test_all_six_orders_in_lexicographic_order() -> None:
    assert JITTER_ORDERS == tuple(itertools.permutations(["bright", "contrast", "sat"]))


@pytest.mark.parametrize("order", range(6))
def test_equals_pillow_enhancers_bit_for_bit(order: int) -> None:
    rng = np.random.default_rng(order)
    for trial in range(20):
        factors = {name: int(rng.integers(0, MAX_FACTOR + 1)) for name in ENHANCERS}
        image = noise(trial)
        expected = np.asarray(enhance(image, factors, order))
        assert np.array_equal(np.asarray(jitter_image(image, factors, order)), expected), factors


def test_factor_one_changes_nothing_and_extremes_are_exact() -> None:
    image = noise(0)
    one = dict.fromkeys(ENHANCERS, FACTOR_ONE)
    assert np.array_equal(np.asarray(jitter_image(image, one, 3)), np.asarray(image))
    assert np.asarray(jitter_image(image, one | {"bright": 0}, 0)).max() == 0
    doubled = np.asarray(jitter_image(image, one | {"bright": MAX_FACTOR}, 0))
    assert np.array_equal(doubled, (np.asarray(image).astype(int) * 2).clip(0, 255))


@pytest.mark.parametrize("order", range(6))
def test_jittering_a_crop_with_the_mean_of_the_image_equals_cropping_the_jittered_image(order: int) -> None:
    image = noise(7)
    factors = {"bright": 12000, "contrast": 21000, "sat": 9000}
    box = (5, 3, 30, 25)
    cropped = jitter_image(image.crop(box), factors, order, mean_from=image)
    assert np.array_equal(np.asarray(cropped), np.asarray(jitter_image(image, factors, order).crop(box)))
