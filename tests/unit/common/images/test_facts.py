import io
import struct

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import BadSample
from beit.common.images.facts import facts_of_image
from beit.tests.unit.common.images.test_alpha import encoded, noise, png

RGB = Image.fromarray(noise(40, 60, 3))
DEEP = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 60), np.uint16))
OTHERS = [RGB.rotate(90 * turn) for turn in (1, 2, 3)]

CASES = {
    "jpeg": (encoded(RGB, "JPEG"), ("JPEG", 8, 3, "RGB", False, 1)),
    "grey-jpeg": (encoded(RGB.convert("L"), "JPEG"), ("JPEG", 8, 1, "grey", False, 1)),
    "cmyk": (encoded(RGB.convert("CMYK"), "JPEG"), ("JPEG", 8, 4, "CMYK", False, 1)),
    "png": (encoded(RGB), ("PNG", 8, 3, "RGB", False, 1)),
    "rgba": (encoded(RGB.convert("RGBA")), ("PNG", 8, 3, "RGB", True, 1)),
    "la": (encoded(RGB.convert("LA")), ("PNG", 8, 1, "grey", True, 1)),
    "palette": (encoded(RGB.convert("P")), ("PNG", 8, 3, "palette", False, 1)),
    "palette-alpha": (encoded(RGB.convert("P"), transparency=3), ("PNG", 8, 3, "palette", True, 1)),
    "colour-key": (encoded(RGB, transparency=(1, 2, 3)), ("PNG", 8, 3, "RGB", True, 1)),
    "1-bit": (encoded(RGB.convert("1")), ("PNG", 1, 1, "black and white", False, 1)),
    "16-bit": (encoded(DEEP), ("PNG", 16, 1, "grey", False, 1)),
    "16-bit-rgb": (png(60, 40, 16, 2, [bytes(360)] * 40), ("PNG", 16, 3, "RGB", False, 1)),
    "animated-png": (encoded(RGB, save_all=True, append_images=OTHERS), ("PNG", 8, 3, "RGB", False, 4)),
    "webp": (encoded(RGB, "WEBP"), ("WebP", 8, 3, "RGB", False, 1)),
    "webp-alpha": (encoded(Image.fromarray(noise(40, 60, 4)), "WEBP"), ("WebP", 8, 3, "RGB", True, 1)),
    "mpo": (encoded(RGB, "MPO", save_all=True, append_images=OTHERS), ("JPEG", 8, 3, "RGB", False, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_facts_of_each_kind(name):
    data, expected = CASES[name]
    facts = facts_of_image(data)
    assert (facts.width, facts.height) == (60, 40)
    assert (facts.format, facts.bits, facts.channels, facts.colours, facts.has_alpha, facts.num_frames) == expected


@pytest.mark.parametrize("name", [name for name in CASES if "webp" not in name and name != "mpo"])
def test_a_beginning_is_enough_for_jpeg_and_png(name):
    data, _ = CASES[name]
    assert facts_of_image(data[: len(data) - 40]) == facts_of_image(data)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_read(format_name):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert facts_of_image(encoded(RGB, format_name, exif=exif)).transpose == Image.Transpose.ROTATE_270
    assert facts_of_image(encoded(RGB, format_name)).transpose is None


def test_the_size_of_a_huge_image_is_read_all_the_same():
    facts = facts_of_image(png(30000, 30000, 8, 2, [b""]))
    assert facts.megapixels == 900
    jpeg = bytearray(CASES["jpeg"][0])
    place = jpeg.find(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 60000, 50000)
    assert facts_of_image(bytes(jpeg)).megapixels == 3000


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (POINTER, "lfs-pointer"),
        (b"<html>404</html>", "unsupported"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIH", "decode-error"),
        (CASES["jpeg"][0][:100], "decode-error"),
    ],
)
def test_what_has_no_header_is_said(data, reason):
    with pytest.raises(BadSample) as error:
        facts_of_image(data)
    assert error.value.reason == reason


def test_nothing_is_decoded():
    """Pixels that cannot be decoded do not matter."""
    data = bytearray(encoded(RGB))
    place = data.find(b"IDAT")
    data[place + 4 : place + 24] = bytes(20)
    facts_of_image(bytes(data))
    with pytest.raises(Exception, match="."):
        Image.open(io.BytesIO(bytes(data))).load()
