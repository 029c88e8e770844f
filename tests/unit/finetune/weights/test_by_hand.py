"""Whoever follows the steps of an export, without a line of beit's, gets its pixels, bit for bit."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from beit.common.images.decode import decode_image
from beit.common.images.decoding import Decoding
from beit.common.images.ranges import ValueRange
from beit.finetune.weights.by_hand import decoding_steps

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 4096, (40, 50), np.uint16)
BANDS = RNG.integers(0, 9000, (40, 50, 6), np.uint16)
FLOATS = RNG.normal(0, 1e-3, (40, 50)).astype(np.float32)
PICTURE = RNG.integers(0, 256, (40, 50, 4), np.uint8)
FOUND = ValueRange.parse("percentile:0.5,99.5", (123.25, 3000.7))


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def mapped(values, text):
    """Follow the step that makes 8 bits; the ends are read from its words."""
    assert "floor(255 (v - low) / (high - low) + 1/2), at least 0 and at most 255; NaN becomes 0" in text
    low, high = map(float, re.search(r"low = (\S+) and high = (\S+),", text).groups())
    return np.nan_to_num(np.floor(255 * (values.astype(float) - low) / (high - low) + 0.5)).clip(0, 255).astype(int)


def mixed(rgb, text):
    assert "(19595 R + 38470 G + 7471 B + 32768) >> 16" in text
    return (19595 * rgb[..., 0] + 38470 * rgb[..., 1] + 7471 * rgb[..., 2] + 32768) >> 16


def laid(pixels, behind, text):
    assert "(a x + (255 - a) B + 127) // 255" in text
    opacity = pixels[..., 3:].astype(int)
    return (opacity * pixels[..., :3] + (255 - opacity) * behind + 127) // 255


def ours(data, decoding):
    return np.asarray(decode_image(data, decoding)).astype(int)


def test_a_range_and_grey_by_hand():
    decoding = Decoding(value_range=FOUND, channels="grey")
    _, step, transparency, grey = decoding_steps(decoding)
    assert np.array_equal(ours(tiff(DEEP), decoding), mapped(DEEP, step))
    assert "dropped" in transparency
    colours = png(PICTURE[..., :3])
    assert np.array_equal(ours(colours, decoding), mixed(mapped(PICTURE[..., :3], step), grey))
    turned = tiff(DEEP, photometric="miniswhite")
    assert "MINISWHITE), take 255 less that" in step
    assert np.array_equal(ours(turned, decoding), 255 - mapped(DEEP, step))


def test_bands_by_hand():
    decoding = Decoding(value_range=FOUND, channels=(4, 3, 2))
    _, bands, step, *_ = decoding_steps(decoding)
    numbers = [int(number) for number in re.findall(r"\d+", bands.replace("counted from 1", ""))]
    data = tiff(BANDS, photometric="minisblack", planarconfig="contig")
    assert numbers == [4, 3, 2] and "red, green and blue" in bands
    assert np.array_equal(ours(data, decoding), mapped(BANDS[..., [number - 1 for number in numbers]], step))
    alone = Decoding(value_range=FOUND, channels=(5,))
    assert decoding_steps(alone)[1] == "Take band 5, counted from 1, as grey."
    assert np.array_equal(ours(data, alone), mapped(BANDS[..., 4], step))


@pytest.mark.parametrize(("alpha", "behind"), [("white", 255), ("black", 0), ("checker", None)])
def test_backgrounds_by_hand(alpha, behind):
    decoding = Decoding(alpha=alpha)
    _, step, over, _ = decoding_steps(decoding)
    assert "8 bits stay as they are" in step
    if behind is None:
        assert "B = 255 where row // 8 + column // 8 is even, else 204" in over
        rows, columns = np.mgrid[:40, :50] // 8
        behind = np.where((rows + columns) % 2 == 0, 255, 204)[..., None]
    else:
        assert f"and B = {behind}." in over
    assert np.array_equal(ours(png(PICTURE), decoding), laid(PICTURE, behind, over))


def test_the_ends_of_a_range_are_told_in_full():
    low, high = float(FLOATS.min()) / 3, float(FLOATS.max()) / 3
    decoding = Decoding(value_range=ValueRange.parse((low, high)), channels="grey")
    step = decoding_steps(decoding)[1]
    assert np.array_equal(ours(tiff(FLOATS), decoding), mapped(FLOATS, step))
    assert f"{low!r}" in step and f"{high!r}" in step


def test_frames_and_what_is_as_usual():
    assert decoding_steps(Decoding()) == []
    pages = tiff(np.stack([DEEP, DEEP // 2, DEEP // 3, DEEP // 4]), photometric="minisblack")
    for frame, words, number in (("middle", "n // 2 of n, counted from 0", 2), (3, "number 3, counted from 0", 3)):
        decoding = Decoding(value_range=FOUND, channels="grey", frame=frame)
        first, step, *_ = decoding_steps(decoding)
        assert words in first
        assert np.array_equal(ours(pages, decoding), mapped(DEEP // (number + 1), step))


def raw_png(values, bits, colours, *extra):
    """A PNG that Pillow does not write: of few bits, or of 16 in several channels."""
    rows = values.reshape(len(values), -1)
    if bits < 8:
        rows = np.packbits(((rows[..., None] >> np.arange(bits)[::-1]) & 1).reshape(len(rows), -1), axis=1)
    lines = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in rows)
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colours, 0, 0, 0)
    chunks = [(b"IHDR", size), *extra, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize(("colours", "channels"), [(4, 2), (6, 4)])
def test_upper_bits_of_deep_pngs_with_an_opacity_by_hand(colours, channels):
    values = RNG.integers(0, 65536, (24, 32, channels))
    decoding = Decoding(alpha="white")
    assert "PNGs of 16 bits with colours or an opacity the upper 8 of every channel" in decoding_steps(decoding)[1]
    upper = values >> 8
    pixels = np.concatenate([np.broadcast_to(upper[..., :-1], (24, 32, 3)), upper[..., -1:]], axis=-1)
    over = decoding_steps(decoding)[2]
    assert np.array_equal(ours(raw_png(values, 16, colours), decoding), laid(pixels, 255, over))


@pytest.mark.parametrize(("bits", "times"), [(1, 255), (2, 85), (4, 17)])
def test_grey_pngs_of_few_bits_by_hand(bits, times):
    values = RNG.integers(0, 2**bits, (24, 32))
    decoding = Decoding(value_range=ValueRange.parse((0, 200)), channels="grey")
    first, step, *_ = decoding_steps(decoding)
    assert "grey PNGs of 1, 2 and 4 bits: times 255, 85 and 17" in first
    assert np.array_equal(ours(raw_png(values, bits, 0), decoding), mapped(values * times, step))
    for level in (1, 2**bits - 1):  # transparent
        data = raw_png(values, bits, 0, (b"tRNS", struct.pack(">H", level)))
        wanted = np.where(values == level, 0, values * times)
        assert np.array_equal(ours(data, Decoding(alpha="black", channels="grey")), wanted)
        assert np.array_equal(ours(data, Decoding(channels="grey")), values * times)


def test_ink_by_hand():
    file = io.BytesIO()
    Image.fromarray(PICTURE, "CMYK").save(file, "JPEG")
    ink = np.asarray(Image.open(io.BytesIO(file.getvalue()))).astype(int)
    decoding = Decoding(value_range=ValueRange.parse((10, 200)))
    first, step, *_ = decoding_steps(decoding)
    assert "255 - k - round(c (255 - k) / 255)" in first
    light = 255 - ink[..., 3:]
    colours = light - np.rint(ink[..., :3] * light / 255).astype(int)
    assert np.array_equal(ours(file.getvalue(), decoding), mapped(colours, step))
