import imagecodecs
import numpy as np
import pytest

from beit.common.errors import BadSample
from beit.common.images.decoding import Decoding
from beit.common.images.readers.jxl import read, size
from beit.tests.science_files import HEIGHT, WIDTH, noise, smooth

USUAL = Decoding()


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channels", "kind"), [(1, "grey"), (2, "grey"), (3, "rgb"), (4, "rgb")])
def test_values_are_those_that_were_written(channels, kind, dtype, container):
    values = noise((HEIGHT, WIDTH, channels), dtype)
    data = imagecodecs.jpegxl_encode(values, lossless=True, usecontainer=container)
    found = read(data, USUAL)
    colours = channels - 1 + channels % 2
    assert found.kind == kind and np.array_equal(found.array, values[..., :colours])
    assert (found.alpha is None) == (channels % 2 == 1)
    assert found.alpha is None or np.array_equal(found.alpha, values[..., -1])
    assert size(data) == (WIDTH, HEIGHT)


def test_depth_is_that_of_the_file():
    values = noise() >> 4
    found = read(imagecodecs.jpegxl_encode(values, lossless=True, bitspersample=12), USUAL)
    assert found.bits == 12 and np.array_equal(found.array[..., 0], values)
    floats = np.random.default_rng(0).random((HEIGHT, WIDTH), np.float32)
    found = read(imagecodecs.jpegxl_encode(floats, lossless=True), USUAL)
    assert found.full_range == (0, 1) and np.array_equal(found.array[..., 0], floats)


@pytest.mark.parametrize(
    "shape", [(1, 1), (8, 8), (16, 24), (240, 320), (90, 160), (100, 150), (3, 700), (1025, 2), (64, 64)]
)
def test_sizes_are_told_by_the_header(shape):
    data = imagecodecs.jpegxl_encode(np.zeros(shape, np.uint8))
    assert size(data) == (shape[1], shape[0]) and read(data, USUAL).array.shape[:2] == shape


def test_of_an_animation_the_first_frame():
    frames = noise((3, HEIGHT, WIDTH, 3), np.uint8)
    data = imagecodecs.jpegxl_encode(frames, lossless=True, photometric="rgb")
    found = read(data, USUAL)
    assert np.array_equal(found.array, frames[0]) and found.num_frames == 1
    with pytest.raises(BadSample, match="no-frame"):
        read(data, Decoding(frame=1))


def test_lossy_is_near():
    assert np.abs(read(imagecodecs.jpegxl_encode(smooth()), USUAL).array.astype(int) - smooth()).mean() < 4


def test_damage_and_bombs_are_said():
    data = imagecodecs.jpegxl_encode(noise(), lossless=True)
    for length in (len(data) - 1, len(data) // 2, 40, 14):
        with pytest.raises(BadSample, match="decode-error|truncated"):
            read(data[:length], USUAL)
    with pytest.raises(BadSample, match="bomb: 64 x 48 px, 0.003072 megapixels, more than 0.003"):
        read(data, Decoding(max_pixels=3000))
