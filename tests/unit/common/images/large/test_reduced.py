"""Smaller versions of large images: which scale, within which limit, and what is left as it was."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from beit.common.errors import BadSample
from beit.common.images.decode import decode_image
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.large import reduced as module
from beit.common.images.large.reduced import decode_reduced, jpeg_reduction
from beit.common.images.large.windows import open_pixels
from beit.tokenize.packing.members import shrink


def scene(width, height):
    """Soft shapes, so that every way to make them smaller gives nearly the same."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def tiff(image, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.asarray(image), photometric="rgb", **options)
    return buffer.getvalue()


def distance(one, other):
    assert one.size == other.size
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean()


@pytest.mark.parametrize(
    ("side", "max_pixels", "expected"),
    [
        (40, 600 * 400, 1),  # it is admitted as it is
        (20, 100_000, 8),
        (25, 100_000, 8),  # 400 / 8 = 50
        (26, 100_000, 4),
        (100, 100_000, 2),
        (101, 100_000, 2),  # 200 is less than twice as much, but enough
        (101, 50_000, 1),  # half of it is too large, and a quarter too small
    ],
)
def test_the_scale_leaves_twice_what_is_wanted_where_that_fits(side, max_pixels, expected):
    assert jpeg_reduction(jpeg(scene(600, 400)), Decoding(max_pixels=max_pixels), side) == expected


def test_a_jpeg_above_the_limit_is_decoded_at_a_scale(monkeypatch):
    image = scene(640, 400)
    data, small = jpeg(image), Decoding(max_pixels=640 * 400 // 4)
    with pytest.raises(BadSample, match=r"640 x 400 px, 0.256 megapixels.*source.max_megapixels=0.3 admits it"):
        decode_image(data, small)
    found = decode_reduced(data, small, 50)
    assert found.size == (160, 100) and distance(found, image.resize((160, 100))) < 2
    assert distance(decode_image(shrink(data, 50, jpeg_quality=95, decoding=small)), image.resize((80, 50))) < 3


def test_what_is_within_the_limit_stays_as_it_was():
    data = jpeg(scene(600, 400))
    assert decode_reduced(data, USUAL, 10).tobytes() == decode_image(data).tobytes()
    assert shrink(data, 400, jpeg_quality=95) is data


def test_a_reduced_jpeg_is_turned_and_its_filler_found():
    exif = Image.Exif()
    exif[0x0112] = 6
    small = Decoding(max_pixels=100_000)
    assert decode_reduced(jpeg(scene(600, 400), exif=exif), small, 100).size == (200, 300)
    data = jpeg(scene(600, 400))
    with pytest.raises(BadSample, match="truncated"):
        decode_reduced(data[: len(data) // 2] + b"\xff\xd9", small, 100)
    grey = jpeg(Image.new("RGB", (600, 400), (128, 128, 128)))
    assert decode_reduced(grey, small, 100).size == (300, 200)


def test_a_progressive_jpeg_counts_as_a_whole_and_says_so():
    data = jpeg(scene(600, 400), progressive=True)
    with pytest.raises(BadSample, match="progressive, and libjpeg holds such a file as a whole"):
        decode_reduced(data, Decoding(max_pixels=100_000), 50)


@pytest.mark.parametrize("options", [{"tile": (64, 64)}, {"rowsperstrip": 32, "compression": "deflate"}, {}])
def test_a_tiff_is_averaged_band_by_band(options, monkeypatch):
    image = scene(600, 400)
    monkeypatch.setattr(module, "_BAND_PIXELS", 5000)
    found = decode_reduced(tiff(image, **options), Decoding(max_pixels=100_000), 50)
    assert found.size == (150, 100) and distance(found, image.reduce(4)) == 0


@pytest.mark.parametrize("is_subifd", [True, False])
def test_a_smaller_version_in_the_file_is_used(is_subifd, tmp_path):
    path, marked = tmp_path / "pyramid.tif", np.full((100, 150, 3), 7, np.uint8)
    options = {"photometric": "rgb", "tile": (64, 64)}
    with tifffile.TiffWriter(path, ome=is_subifd or None) as file:
        file.write(np.asarray(scene(600, 400)), subifds=2 if is_subifd else None, **options)
        for level in (np.asarray(scene(300, 200)), marked):
            file.write(level, subfiletype=1, **options)
    with path.open("rb") as file, open_pixels(file, Decoding(max_pixels=100_000)) as pixels:
        if is_subifd:
            assert pixels.smallest_version(100).size == (150, 100)
            assert (np.asarray(module.reduced(pixels, 50, most=100_000)) == 7).all()
        assert pixels.smallest_version(500).size == (600, 400)


def test_a_strip_above_the_limit_is_refused_with_the_way_out():
    data = tiff(scene(600, 400), rowsperstrip=400, compression="deflate")
    with pytest.raises(BadSample, match=r"each of its strips: 600 x 400 px.* source.max_megapixels=0.25 admits it"):
        decode_reduced(data, Decoding(max_pixels=100_000), 50)
