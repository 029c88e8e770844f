import io

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import BadSample
from beit.common.images.decode import decode_image
from beit.common.images.jpeg import lengthen_scans

KINDS = [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3}]


def noise(mode="RGB", size=(100, 77)):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pixels_of(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[2:])
@pytest.mark.parametrize("fraction", [0.5, 0.7, 0.97])
def test_data_that_end_early_are_found_although_the_end_marker_is_there(mode, kind, fraction):
    whole = jpeg(noise(mode), **kind)
    header = whole.index(b"\xff\xda")
    cut = whole[: header + int((len(whole) - header) * fraction)] + b"\xff\xd9"
    assert len(pixels_of(cut)) == len(pixels_of(whole))  # Pillow has no complaint
    with pytest.raises(BadSample, match="truncated: the pixel data end early"):
        decode_image(cut)


def test_a_flipped_bit_that_looks_like_a_marker_is_found():
    whole = bytearray(jpeg(noise()))
    middle = whole.index(b"\xff\xda") + 600
    whole[middle : middle + 2] = b"\xff\xd9"
    with pytest.raises(BadSample, match="truncated"):
        decode_image(bytes(whole))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_grey_are_left_alone(mode, kind):
    grey = Image.new(mode, (100, 77), {"RGB": (128,) * 3, "L": 128, "CMYK": (127,) * 4}[mode])
    decode_image(jpeg(grey, **kind))
    grey.paste(noise(mode, (40, 40)), (0, 0))
    decode_image(jpeg(grey, **kind))


@pytest.mark.parametrize("kind", KINDS)
def test_complete_scans_decode_alike_when_they_are_lengthened(kind):
    whole = jpeg(noise(), **kind)
    longer = lengthen_scans(whole)
    assert len(longer) > len(whole) and pixels_of(longer) == pixels_of(whole)


def test_any_bytes_can_be_lengthened():
    rng = np.random.default_rng(0)
    whole = jpeg(noise())
    for length in range(0, len(whole), 97):
        assert len(lengthen_scans(whole[:length])) >= length
    for _ in range(200):
        lengthen_scans(
            b"\xff\xd8" + rng.choice([0xFF, 0xDA, 0xDD, 0xD0, 0xD9, 0x00, 0x02], 200).astype(np.uint8).tobytes()
        )
