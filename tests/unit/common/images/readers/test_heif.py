import io

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from beit.common.errors import BadSample
from beit.common.images.decoding import Decoding
from beit.common.images.readers.heif import num_frames, read, size
from beit.tests.science_files import HEIGHT, WIDTH, heic, noise, smooth

USUAL = Decoding()
TURNS = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_270,
    8: Image.Transpose.ROTATE_90,
    5: Image.Transpose.TRANSPOSE,
}


def test_pixels_are_those_of_the_plug_in():
    data = heic(Image.fromarray(smooth()))
    with pillow_heif.HeifImageFile(io.BytesIO(data)) as image:
        expected = np.asarray(image)
    found = read(data, USUAL)
    assert found.kind == "rgb" and np.array_equal(found.array, expected) and size(data) == (WIDTH, HEIGHT)
    assert np.abs(found.array.astype(int) - smooth()).max() <= 4


@pytest.mark.parametrize("orientation", TURNS)
def test_a_photograph_of_a_phone_is_turned_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation  # which stays in the file, beside the turn that the format itself says
    image = Image.fromarray(smooth())
    data = heic(image, exif=exif.tobytes())
    expected = np.asarray(image.transpose(TURNS[orientation]))
    found = read(data, USUAL)
    assert found.array.shape == expected.shape and np.abs(found.array.astype(int) - expected).max() <= 4
    assert size(data) == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("bits", [10, 12])
def test_more_than_8_bits(bits, monkeypatch):
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    values = np.mgrid[:HEIGHT, :WIDTH].sum(axis=0)[..., None].repeat(3, 2).astype(np.uint16) << (16 - bits)
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (WIDTH, HEIGHT), values.tobytes()).save(buffer, quality=-1, chroma=444)
    found = read(buffer.getvalue(), USUAL)
    assert found.bits == bits and found.full_range == (0, 2**bits - 1)
    assert np.abs(found.array.astype(int) - (values >> (16 - bits))).max() <= 2


def test_opacity_and_grey():
    colours = np.dstack([smooth(), noise((HEIGHT, WIDTH), np.uint8)])
    found = read(heic(Image.fromarray(colours)), USUAL)
    assert found.array.shape[2] == 3 and found.alpha is not None
    assert np.abs(found.alpha.astype(int) - colours[..., 3]).max() <= 2
    assert read(heic(Image.fromarray(smooth(1))), USUAL).kind == "grey"


def test_of_several_images_the_primary_one_or_by_number():
    buffer, file = io.BytesIO(), pillow_heif.HeifFile()
    for value in (10, 20, 30):
        file.add_from_pillow(Image.new("RGB", (64, 64), (value, value, value)))
    file.save(buffer, quality=-1, primary_index=1)
    data = buffer.getvalue()
    means = [read(data, Decoding(frame=frame)).array.mean() for frame in ("first", 0, "middle", 2)]
    assert np.allclose(means, [20, 10, 20, 30], atol=1.5) and num_frames(data) == 3
    with pytest.raises(BadSample, match="no-frame: source.frame is 3"):
        read(data, Decoding(frame=3))


def test_damage_and_bombs_are_said():
    data = heic(Image.fromarray(smooth()))
    for length in (len(data) - 10, len(data) // 2, 60):
        with pytest.raises(BadSample, match="decode-error"):
            read(data[:length], USUAL)
    with pytest.raises(BadSample, match="bomb: 64 x 48 px, 0.003072 megapixels, more than 0.003"):
        read(data, Decoding(max_pixels=3000))
