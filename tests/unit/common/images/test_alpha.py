import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from beit.common.images.alpha import compose_pixels, hides_colours, laid_over, opacity_of
from beit.common.images.decode import decode_image, read_samples
from beit.common.images.decoding import Decoding
from beit.common.images.samples import Samples, without_opacity

BACKGROUNDS = {"white": 255, "black": 0}


def encoded(image, format_name="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def noise(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def png(width, height, bits, colour_type, rows, *chunks):
    """Write a PNG that Pillow cannot write, from the bytes of its rows."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*pair) for pair in chunks), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def composed(colours, opacity, level):
    """Return the mix by the formula, in exact fractions."""
    share = opacity[..., None].astype(np.float64) / 255
    return np.floor(colours * share + level * (1 - share) + 0.5).astype(np.int64)


@pytest.mark.parametrize("alpha", BACKGROUNDS)
@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_rgba_is_laid_on_its_background(alpha, format_name):
    image = Image.fromarray(noise(300, 20, 4))
    data = encoded(image, format_name, **({"lossless": True, "exact": True} if format_name == "WEBP" else {}))
    found = np.asarray(decode_image(data, Decoding(alpha=alpha)))
    pixels = np.asarray(image)
    assert np.array_equal(found, composed(pixels[..., :3], pixels[..., 3], BACKGROUNDS[alpha]))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "1"])
def test_dropping_is_what_it_was(mode):
    """Bit for bit what Pillow makes of the image, whatever says its transparency."""
    image = Image.fromarray(noise(30, 20, 4)).convert("RGB" if mode not in ("RGBA", "LA") else mode).convert(mode)
    key = {"P": 3, "RGB": (1, 2, 3), "L": 7, "1": 0}.get(mode)
    data = encoded(image, **({} if key is None else {"transparency": key}))
    with Image.open(io.BytesIO(data)) as plain:
        expected = np.asarray(plain.convert("RGB"))
    assert np.array_equal(np.asarray(decode_image(data)), expected)
    assert np.array_equal(
        np.asarray(decode_image(data, Decoding(alpha="drop", value_range=Decoding().value_range))), expected
    )


def test_opaque_images_are_the_same_on_any_background():
    data = encoded(Image.fromarray(noise(30, 20, 3)))
    usual = np.asarray(decode_image(data))
    for alpha in ("white", "black", "checker"):
        assert np.array_equal(np.asarray(decode_image(data, Decoding(alpha=alpha))), usual)


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (9, 9, 9)), ("1", 0), ("P", 3)])
def test_a_transparent_colour_shows_the_background(mode, key):
    image = Image.new(mode, (6, 4), key if mode != "RGB" else (9, 9, 9))
    if mode == "P":
        image.putpalette([10, 20, 30] * 9)
    image.putpixel((0, 0), 255 if mode in ("L", "1") else 8 if mode == "P" else (200, 100, 50))
    data = encoded(image, transparency=key)
    dropped, white = (np.asarray(decode_image(data, Decoding(alpha=alpha))) for alpha in ("drop", "white"))
    assert np.array_equal(white[0, 0], dropped[0, 0])
    assert (white.reshape(-1, 3)[1:] == 255).all()


def test_a_palette_may_have_many_opacities():
    image = Image.fromarray(np.arange(4, dtype=np.uint8)[None], "P")
    image.putpalette([10, 20, 30] * 4)
    data = encoded(image, transparency=bytes([0, 85, 170, 255]))
    found = np.asarray(decode_image(data, Decoding(alpha="white")))
    assert np.array_equal(found, composed(np.array([[[10, 20, 30]] * 4]), np.array([[0, 85, 170, 255]]), 255))


def test_the_transparent_level_of_16_bit_grey_is_compared_in_16_bits():
    rows = [struct.pack(">3H", 1000, 1001, 65535)]
    data = png(3, 1, 16, 0, rows, (b"tRNS", struct.pack(">H", 1000)))
    assert np.asarray(decode_image(data, Decoding(alpha="white")))[0, :, 0].tolist() == [255, 4, 255]
    assert np.asarray(decode_image(data))[0, :, 0].tolist() == [4, 4, 255]


def test_the_transparent_colour_of_16_bit_rgb_is_compared_by_high_bytes():
    rows = [struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x1234, 0x5678, 0x0001)]
    data = png(2, 1, 16, 2, rows, (b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)))
    assert np.asarray(decode_image(data, Decoding(alpha="white"))).tolist() == [[[255] * 3, [0x12, 0x56, 0]]]


def test_the_checker_is_white_at_the_top_left_of_the_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    data = encoded(Image.new("RGBA", (40, 300)), exif=exif)
    found = np.asarray(decode_image(data, Decoding(alpha="checker")))
    assert found.shape == (40, 300, 3)
    assert (found[:8, :8] == 255).all() and (found[:8, 8:16] == 204).all() and (found[8:16, :8] == 204).all()
    assert (found[32:40, 264:272] == (255 if (32 // 8 + 264 // 8) % 2 == 0 else 204)).all()


def test_strips_of_a_high_image_fit_together():
    colours, opacity = noise(600, 3, 3), noise(600, 3, 1)[..., 0]
    assert np.array_equal(compose_pixels(colours, opacity, "white"), composed(colours, opacity, 255))
    checker = compose_pixels(colours, np.zeros_like(opacity), "checker")
    assert (checker[[0, 8, 256, 264, 599], 0, 0] == [255, 204, 255, 204, 255]).all()


@pytest.mark.parametrize(
    ("dtype", "full"),
    [(np.uint8, 255), (np.uint16, 1023), (np.uint32, 2**32 - 1), (np.int16, 32767), (np.float32, 1.0)],
)
def test_premultiplied_colours_are_divided_by_their_opacity(dtype, full):
    alpha = np.array([[0, full / 5, full]]).astype(dtype)
    stored = np.array([[[0], [full / 10], [full / 2]]]).astype(dtype)
    meant = without_opacity(stored, alpha, full)
    assert meant.dtype == dtype
    assert np.allclose(meant[0, :, 0].astype(float) / full, [0, 0.5, 0.5], atol=0.01)


def test_whole_numbers_that_were_multiplied_are_rounded_to_the_nearest():
    colours, alpha = noise(50, 40, 3), noise(50, 40, 1)[..., 0]
    exact = np.floor(colours.astype(float) * 255 / np.maximum(alpha, 1)[..., None] + 0.5).clip(0, 255)
    assert np.array_equal(without_opacity(colours, alpha, 255), exact)


def test_opacity_of_16_bits_is_scaled_with_the_values():
    samples = Samples(
        array=np.full((1, 3, 1), 65535, np.uint16), kind="grey", alpha=np.array([[0, 32768, 65535]], np.uint16)
    )
    pixels = np.full((1, 3, 1), 255, np.uint8)
    assert laid_over(pixels, samples, "black")[0, :, 0].tolist() == [0, 128, 255]


def test_what_says_nothing_of_opacity_has_none():
    assert opacity_of(Image.new("RGB", (2, 2))) is None and opacity_of(Image.new("CMYK", (2, 2))) is None


def icon(hidden, seen=(250, 120, 0)):
    image = Image.new("RGBA", (64, 64), (*hidden, 0))
    ImageDraw.Draw(image).ellipse((10, 10, 54, 54), fill=(*seen, 255))
    return image


def test_black_under_an_icon_is_hidden_and_bled_colours_are_not():
    assert hides_colours(read_samples(encoded(icon((0, 0, 0)))))
    assert not hides_colours(read_samples(encoded(icon((250, 120, 0)))))
    assert not hides_colours(read_samples(encoded(icon((240, 110, 10)))))  # ten levels off


def test_what_was_cut_away_is_hidden():
    photo = Image.fromarray(noise(64, 64, 3)).convert("RGBA")
    matte = Image.new("L", photo.size, 0)
    ImageDraw.Draw(matte).ellipse((10, 10, 54, 54), fill=255)
    photo.putalpha(matte)
    assert hides_colours(read_samples(encoded(photo)))


def test_a_few_transparent_pixels_hide_nothing_that_matters():
    image = Image.new("RGBA", (100, 100), (255, 255, 255, 255))
    for x in range(99):
        image.putpixel((x, 0), (0, 0, 0, 0))
    assert not hides_colours(read_samples(encoded(image)))
    image.putpixel((99, 0), (0, 0, 0, 0))  # the hundredth
    assert hides_colours(read_samples(encoded(image)))


def test_half_transparent_shadows_are_seen():
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 60))
    ImageDraw.Draw(image).ellipse((10, 10, 54, 54), fill=(250, 250, 250, 255))
    assert not hides_colours(read_samples(encoded(image)))


def test_nothing_seen_hides_only_what_varies():
    assert not hides_colours(read_samples(encoded(Image.new("RGBA", (64, 64), (9, 9, 9, 0)))))
    image = Image.fromarray(noise(64, 64, 3)).convert("RGBA")
    image.putalpha(0)
    assert hides_colours(read_samples(encoded(image)))


def test_large_images_are_looked_at_in_parts():
    image = Image.new("RGBA", (3000, 2000), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((1000, 500, 2000, 1500), fill=(200, 200, 200, 255))
    assert hides_colours(read_samples(encoded(image)))


def test_opaque_images_hide_nothing():
    assert not hides_colours(read_samples(encoded(Image.fromarray(noise(20, 20, 3)))))
