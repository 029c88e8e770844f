"""Grey is one channel from the decoder to the stored view, whoever decodes; of colours it is the luma of Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.images.decoding import Decoding
from beit.common.rng import CounterRng
from beit.common.sources.config import SourceConfig
from beit.common.views import AugmentConfig, crop_crc, draw_view, render_view, replay_view

GREY = Decoding(channels="grey")


def colours(width=70, height=50):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=90, exif=exif)


PICTURES = {
    "png": lambda: encoded(colours()),
    "jpeg": lambda: encoded(colours(), "JPEG", quality=85),
    "progressive": lambda: encoded(colours(), "JPEG", quality=85, progressive=True),
    "grey jpeg": lambda: encoded(colours().convert("L"), "JPEG", quality=85),
    "grey png": lambda: encoded(colours().convert("L")),
    "palette": lambda: encoded(colours().quantize(17)),
    "bilevel": lambda: encoded(colours().convert("1")),
    "grey and alpha": lambda: encoded(colours().convert("LA")),
    "alpha": lambda: encoded(colours().convert("RGBA")),
    "ink": lambda: encoded(colours().convert("CMYK"), "JPEG", quality=85),
    "16 bit": lambda: encoded(Image.fromarray(np.asarray(colours().convert("L")).astype(np.uint16) * 251)),
    "turned": lambda: turned(colours(), 6),
    "webp": lambda: encoded(colours(), "WEBP", quality=80),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_grey_is_the_luma_of_what_is_decoded_in_colour_bit_for_bit(kind):
    data = PICTURES[kind]()
    found = decode_image(data, GREY)
    assert found.mode == "L"
    assert found.tobytes() == decode_image(data).convert("L").tobytes()


@pytest.mark.parametrize("kind", PICTURES)
def test_the_quick_decoder_of_stored_views_agrees(kind):
    data = PICTURES[kind]()
    image = decode_image(data, GREY)
    for number in range(4):
        view = draw_view(CounterRng(number), image.width, image.height, AugmentConfig())
        view["crc_crop"] = crop_crc(image, view)
        for size in (32, int(view["w"])):
            found = replay_view(data, view, img_size=size, decoding=GREY)
            assert found.shape == (size, size, 1)
            assert np.array_equal(found, render_view(image, view, img_size=size, check_crop=True))
        view["crc_crop"] += 1
        with pytest.raises(BadSample, match="crc-mismatch"):
            replay_view(data, view, img_size=32, decoding=GREY)


def test_bands_of_a_picture_are_picked_by_number():
    data, pixels = encoded(colours()), np.asarray(colours())
    assert np.array_equal(decode_image(data, Decoding(channels=(3, 2, 1))), pixels[..., ::-1])
    green = decode_image(data, Decoding(channels=(2,)))
    assert green.mode == "L" and np.array_equal(green, pixels[..., 1])
    grey = decode_image(encoded(colours().convert("L")), Decoding(channels=(1, 1, 1)))
    assert grey.mode == "RGB" and np.array_equal(grey, np.asarray(colours().convert("L").convert("RGB")))


@pytest.mark.parametrize("kind", ["jpeg", "alpha", "palette"])
def test_a_picture_has_no_band_4(kind):
    with pytest.raises(BadSample, match="names band 4, and it has 3 bands, counted from 1") as error:
        decode_image(PICTURES[kind](), Decoding(channels=(4, 3, 2)))
    assert error.value.reason == "channels"


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        ((0, 1, 2), r"\(\[0, 1, 2\]\) must be .*counted from 1 \(there is no band 0\)"),
        ((1, 2), r"\(\[1, 2\]\) must be .*three such as \[4, 3, 2\].*or one such as \[1\]"),
        ((1, 2, 3, 4), "three such as"),
        ((-1,), "counted from 1"),
        (0, r"\(there is no band 0\)"),
        ("gray", r'\(gray\) must be "rgb", "grey", or numbers'),
        ("4,3,2", r"such as \[4, 3, 2\]"),
        ((), "three such as"),
    ],
)
def test_wrong_settings_are_refused_with_the_way_out(channels, said):
    with pytest.raises(InputError, match=said) as error:
        SourceConfig(channels=channels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("channels", "count", "packed"), [("rgb", 3, "rgb"), ("grey", 1, "grey"), ((4, 3, 2), 3, "rgb"), ((7,), 1, "grey")]
)
def test_a_decoding_knows_how_many_channels_come_of_it_and_keeps_them_when_packed(channels, count, packed):
    decoding = SourceConfig(channels=channels).decoding
    assert decoding.num_channels == count
    assert decoding.of_packed() == Decoding(channels=packed)
    assert Decoding.from_json(decoding.as_json()) == decoding


def test_a_single_number_is_one_band():
    assert SourceConfig(channels=2).decoding == SourceConfig(channels=(2,)).decoding
