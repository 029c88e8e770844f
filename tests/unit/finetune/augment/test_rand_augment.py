"""RandAugment: every operation against its published formula, and how operations are drawn."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from beit.common.errors import InputError
from beit.common.rng import CounterRng
from beit.finetune.augment import rand_augment as module
from beit.finetune.augment.rand_augment import OPERATIONS, Canvas, RandAugmentPolicy, parse_policy, rand_augment

CANVAS = Canvas((9, 8, 7), Image.Resampling.NEAREST)
PAPER = RandAugmentPolicy(magnitude=9.0, magnitude_std=0.5, num_layers=2)


def noise(side=24):
    pixels = CounterRng("noise").raw(side * side * 3) % 256
    return Image.fromarray(pixels.astype(np.uint8).reshape(side, side, 3))


def apply(operation, level, sign=1.0, image=None):
    return np.asarray(operation(image or noise(), level / 10, sign, CANVAS)).astype(int)


def test_the_papers_policy_string():
    assert parse_policy("rand-m9-mstd0.5-inc1") == PAPER
    assert parse_policy("rand-n3-inc1-m5") == RandAugmentPolicy(magnitude=5.0, magnitude_std=0.0, num_layers=3)
    assert parse_policy("none") is None


@pytest.mark.parametrize(
    "text", ["", "v0", "rand-inc1", "rand-m9", "rand-m11-inc1", "rand-m9-inc1-w0", "rand-m9-n0-inc1"]
)
def test_other_policy_strings_are_one_clear_line(text):
    with pytest.raises(InputError, match=r"augment\.rand_augment") as caught:
        parse_policy(text)
    assert "\n" not in str(caught.value)


def test_tables_at_strength_9_follow_timm():
    pixels = np.asarray(noise()).astype(int)
    assert np.array_equal(apply(OPERATIONS["posterize"], 9), pixels & 0b10000000)  # 4 - int(3.6) = 1 bit
    assert np.array_equal(apply(OPERATIONS["posterize"], 10), pixels * 0)
    assert np.array_equal(
        apply(OPERATIONS["solarize"], 9), np.where(pixels < 26, pixels, 255 - pixels)
    )  # 256 - int(230.4)
    assert np.array_equal(
        apply(OPERATIONS["solarize_add"], 9), np.where(pixels < 128, np.minimum(pixels + 99, 255), pixels)
    )
    assert np.array_equal(apply(OPERATIONS["invert"], 3), 255 - pixels)


@pytest.mark.parametrize(
    ("operation", "enhancer"),
    [
        (OPERATIONS["color"], ImageEnhance.Color),
        (OPERATIONS["contrast"], ImageEnhance.Contrast),
        (OPERATIONS["brightness"], ImageEnhance.Brightness),
        (OPERATIONS["sharpness"], ImageEnhance.Sharpness),
    ],
)
@pytest.mark.parametrize(("level", "sign", "factor"), [(9, 1, 1.81), (9, -1, 0.19), (10, -1, 0.1), (0, 1, 1.0)])
def test_enhancements_grow_in_both_directions(operation, enhancer, level, sign, factor):
    expected = np.asarray(enhancer(noise()).enhance(factor)).astype(int)
    assert abs(apply(operation, level, sign) - expected).max() <= 1


def test_shifts_and_shears_move_pixels_by_their_formula_and_fill_the_rest():
    image = noise(20)
    pixels = np.asarray(image).astype(int)
    shifted = apply(OPERATIONS["translate_x"], 10, 1, image)  # 0.45 x 20 = 9 px
    assert np.array_equal(shifted[:, :11], pixels[:, 9:])
    assert (shifted[:, 11:] == CANVAS.fill).all()
    assert np.array_equal(apply(OPERATIONS["translate_y"], 10, -1, image)[9:], pixels[:11])
    sheared = apply(OPERATIONS["shear_x"], 10, 1, image)  # row y is moved by 0.3 (y + 0.5)
    assert np.array_equal(sheared[19, :10], pixels[19, 6:16])
    assert (sheared[19, -5:] == CANVAS.fill).all()
    rotated = apply(OPERATIONS["rotate"], 10, -1, image)
    assert np.array_equal(rotated, np.asarray(image.rotate(-30, fillcolor=CANVAS.fill)).astype(int))


def test_equalize_and_auto_contrast_use_the_whole_range():
    dull = Image.fromarray((np.asarray(noise()) // 4 + 90).astype(np.uint8))
    for operation in (OPERATIONS["auto_contrast"], OPERATIONS["equalize"]):
        result = apply(operation, 0, image=dull)
        assert result.min() == 0
        assert result.max() >= 254


def test_operations_are_drawn_alike_and_half_of_them_applied(monkeypatch):
    seen, levels, signs = Counter(), [], Counter()

    def spy(number):
        def operation(image, share, sign, canvas):
            seen[number] += 1
            levels.append(10 * share)
            signs[sign] += 1
            return image

        return operation

    monkeypatch.setattr(module, "OPERATIONS", {name: spy(number) for number, name in enumerate(OPERATIONS)})
    image = noise(2)
    for number in range(3000):
        rand_augment(image, PAPER, CounterRng(number), CANVAS)
    assert len(OPERATIONS) == len(seen) == 15
    assert sum(seen.values()) == pytest.approx(3000, rel=0.05)
    assert min(seen.values()) > 150
    assert np.mean(levels) == pytest.approx(9.0, abs=0.05)
    assert np.std(levels) == pytest.approx(0.49, abs=0.03)  # 0.5, clipped at 10
    assert max(levels) <= 10
    assert signs[1.0] == pytest.approx(sum(signs.values()) / 2, rel=0.1)


def test_same_state_same_image():
    first, again, other = (rand_augment(noise(), PAPER, CounterRng(seed), CANVAS) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes() != other.tobytes()
