import numpy as np
import pytest

from beit.common.rng import CounterRng
from beit.tokenize.synthetic import natural_palette, noise_texture, render_scene


def test_same_seed_same_scene_and_another_seed_another() -> None:
    first, again = render_scene(CounterRng(0, "a"), 48), render_scene(CounterRng(0, "a"), 48)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, render_scene(CounterRng(0, "b"), 48))
    assert first.shape == (48, 48, 3) and first.dtype == np.uint8


def test_scenes_have_the_contrast_and_colour_of_photographs() -> None:
    scenes = np.stack([render_scene(CounterRng(0, i), 48) for i in range(24)]).astype(np.float64) / 255
    pixels = scenes.reshape(-1, 3)
    light, *_, tint = np.sqrt(np.linalg.eigvalsh(np.cov(pixels.T)))[::-1]
    # 600 photographs: 0.44 along grey, 0.06 along the least colourful axis.
    assert 0.3 < light < 0.6
    assert 0.02 < tint < 0.12
    neighbours = np.abs(np.diff(scenes, axis=2))
    assert 0.01 < neighbours.mean() < 0.08
    assert np.quantile(neighbours, 0.99) > 6 * np.median(neighbours)  # rare edges, much that is smooth


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_noise_has_the_requested_spectrum(exponent: float) -> None:
    generator = np.random.Generator(np.random.Philox(1))
    field = noise_texture(generator, 128, exponent=exponent)
    amplitude = np.abs(np.fft.fft2(field))
    slope = np.log(amplitude[0, 32] / amplitude[0, 2]) / np.log(16)
    assert slope == pytest.approx(-exponent, abs=0.02)
    assert field.mean() == pytest.approx(0, abs=1e-4)
    assert field.std() == pytest.approx(1, abs=1e-3)


def test_palette_stays_in_range_and_varies_mostly_in_light() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    colours = np.concatenate([natural_palette(generator, 6) for _ in range(200)])
    assert colours.min() >= 0 and colours.max() <= 1
    light = colours.mean(axis=1)
    assert light.std() > 2 * (colours - light[:, None]).std()
