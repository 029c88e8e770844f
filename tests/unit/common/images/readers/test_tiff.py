import io

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from beit.common.errors import BadSample
from beit.common.images.decoding import Decoding
from beit.common.images.readers.tiff import num_frames, read, size
from beit.tests.science_files import HEIGHT, WIDTH, noise, pillow, smooth, tiff

USUAL = Decoding()
LOSSLESS = [None, "lzw", "zlib", "zstd", "packbits", "lzma"]
PLACES = [{}, {"tile": (16, 16)}, {"rowsperstrip": 7}]


def pages(*arrays, **options):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for values in arrays:
            writer.write(values, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("is_big", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("compression", LOSSLESS)
def test_values_are_those_that_were_written(compression, place, is_big):
    grey, colours = noise(), noise((HEIGHT, WIDTH, 3), np.uint8)
    options = {"compression": compression, "bigtiff": is_big, **place}
    found = read(tiff(grey, **options), USUAL)
    assert (found.kind, found.bits, found.alpha, found.num_frames) == ("grey", None, None, 1)
    assert np.array_equal(found.array[..., 0], grey) and found.array.dtype == np.uint16
    found = read(tiff(colours, photometric="rgb", **options), USUAL)
    assert found.kind == "rgb" and np.array_equal(found.array, colours)
    planes = tiff(np.moveaxis(colours, -1, 0), photometric="rgb", planarconfig="separate", **options)
    assert np.array_equal(read(planes, USUAL).array, colours)
    if compression in ("lzw", "zlib", "zstd"):
        assert np.array_equal(read(tiff(grey, predictor=True, **options), USUAL).array[..., 0], grey)


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f2", "f4", "f8"])
def test_every_type_of_number(dtype, byteorder):
    values = (noise().astype(np.float64) / 513).astype(dtype)
    found = read(tiff(values, byteorder=byteorder), USUAL).array[..., 0]
    assert np.array_equal(found, values) and found.dtype == values.dtype


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_bits_are_known(bits):
    values = noise() >> (16 - bits)
    found = read(tiff(values, bitspersample=bits), USUAL)
    assert found.bits == bits and found.full_range == (0, 2**bits - 1) and np.array_equal(found.array[..., 0], values)


def test_twelve_bits_in_sixteen_by_the_largest_value_only_where_it_is_one_of_a_camera():
    values = noise() >> 4
    assert read(tiff(values, extratags=[(281, 3, 1, 4095, True)]), USUAL).bits == 12
    assert read(tiff(values, extratags=[(281, 3, 1, 3999, True)]), USUAL).bits is None


@pytest.mark.parametrize("compression", [None, "packbits", "group3", "group4", "tiff_deflate"])
def test_black_and_white(compression):
    values = noise((HEIGHT, 61), np.uint8) > 127
    found = read(pillow(Image.fromarray(values), "TIFF", compression=compression), USUAL)
    assert found.bits == 1 and np.array_equal(found.array[..., 0] != found.is_inverted, values)


def test_white_may_be_zero():
    values = noise(dtype=np.uint8)
    found = read(tiff(values, photometric="miniswhite"), USUAL)
    assert found.is_inverted and np.array_equal(found.array[..., 0], values)


@pytest.mark.parametrize("colours", [noise((3, 256)), noise((3, 256)) & 0xFF00, noise((3, 256)) & 0xFF])
def test_palette_as_gdal_and_pillow_read_it(colours):
    places = noise(dtype=np.uint8)
    data = tiff(places, photometric="palette", colormap=colours)
    found = read(data, USUAL)
    expected = (colours if colours.max() < 256 else (colours.astype(int) + 128) // 257).T[places]
    assert found.kind == "rgb" and np.array_equal(found.array, expected)
    if colours.max() > 255:
        with Image.open(io.BytesIO(data)) as image:
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - found.array).max() <= 1  # it cuts, we round


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "webp"])
def test_pictures_inside_as_their_codec_reads_them(compression):
    data = tiff(smooth(), compression=compression, photometric="rgb", tile=(16, 32))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        tile = data[page.dataoffsets[0] :][: page.databytecounts[0]]
    codec = getattr(imagecodecs, {"jpeg2000": "jpeg2k"}.get(compression, compression) + "_decode")
    found = read(data, USUAL)
    assert found.kind == "rgb" and np.array_equal(found.array[:16, :32], codec(tile)[..., :3])
    assert np.abs(found.array.astype(int) - smooth()).max() < 60


def test_subsampled_jpeg_is_rgb_once():
    options = {"photometric": "ycbcr", "subsampling": (2, 2), "compressionargs": {"level": 95}}
    data = tiff(smooth(), compression="jpeg", **options)
    found = read(data, USUAL)
    with rasterio.MemoryFile(data) as file, file.open() as dataset:
        expected = np.moveaxis(dataset.read(), 0, -1)
    assert found.kind == "rgb" and np.abs(found.array.astype(int) - expected).max() <= 6


def test_inks_as_pillow_converts_them():
    inks = noise((HEIGHT, WIDTH, 4), np.uint8)
    expected = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
    assert np.array_equal(read(tiff(inks, photometric="separated"), USUAL).array, expected)
    assert np.array_equal(read(tiff(inks.astype(np.uint16) * 257, photometric="separated"), USUAL).array, expected)


def test_opacity_is_no_colour():
    values = noise((HEIGHT, WIDTH, 4), np.uint8)
    found = read(tiff(values, photometric="rgb", extrasamples=["unassalpha"]), USUAL)
    assert np.array_equal(found.array, values[..., :3]) and np.array_equal(found.alpha, values[..., 3])
    data = tiff(values, photometric="rgb", extrasamples=["unspecified"])
    found = read(data, USUAL)
    assert np.array_equal(found.array, values) and found.kind == "bands" and found.band_names[2:] == ("blue", "band 4")
    grey = tiff(values[..., :2], photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig")
    found = read(grey, USUAL)
    assert found.kind == "grey" and np.array_equal(found.alpha, values[..., 1])


def test_colours_multiplied_by_their_opacity_are_divided():
    colours, alpha = noise((HEIGHT, WIDTH, 3), np.uint8), noise((HEIGHT, WIDTH, 1), np.uint8, seed=1) | 0x80
    multiplied = (colours.astype(int) * alpha // 255).astype(np.uint8)
    data = tiff(np.concatenate([multiplied, alpha], axis=2), photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(read(data, USUAL).array.astype(int) - colours).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_turns_it(orientation):
    data = tiff(smooth(), photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # which turns TIFFs, and only them
        expected = np.asarray(image)
    found = read(data, USUAL)
    assert np.array_equal(found.array, expected)
    assert size(data) == (found.array.shape[1], found.array.shape[0])


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("options", [{}, {"metadata": None}, {"imagej": True, "metadata": {"axes": "ZYX"}}], ids=str)
def test_a_stack_of_slices_is_a_stack_whatever_its_shape(count, options):
    slices = noise((count, HEIGHT, WIDTH), np.uint8)
    data = tiff(slices, photometric="minisblack", **options)
    for frame, expected in [("first", 0), ("middle", count // 2), (count - 1, count - 1)]:
        found = read(data, Decoding(frame=frame))
        assert (found.kind, found.num_frames) == ("grey", count)
        assert np.array_equal(found.array[..., 0], slices[expected])
    with pytest.raises(BadSample, match=f"source.frame is {count}, and it has frames 0 to {count - 1}"):
        read(data, Decoding(frame=count))
    assert num_frames(data) == count


def test_pages_that_were_written_one_by_one():
    values = [noise(seed=seed)[: 20 + seed] for seed in range(3)]  # imread of tifffile gives the first alone
    for data in (pages(*values), pages(*values, metadata=None)):
        assert num_frames(data) == 3
        assert [np.array_equal(read(data, Decoding(frame=n)).array[..., 0], values[n]) for n in range(3)] == [True] * 3


@pytest.mark.parametrize("options", [{"ome": True}, {"imagej": True}], ids=str)
def test_channels_of_microscopes_are_bands_and_times_are_frames(options):
    values = noise((4, 2, HEIGHT, WIDTH), np.uint16)
    data = tiff(values, photometric="minisblack", metadata={"axes": "TCYX"}, **options)
    found = read(data, Decoding(frame=3))
    assert (found.kind, found.num_frames) == ("bands", 4)
    assert np.array_equal(found.array, np.moveaxis(values[3], 0, -1))


@pytest.mark.parametrize("options", [{"imagej": True}, {"shaped": True}], ids=str)
def test_slices_that_have_no_page_of_their_own(options):
    values, buffer = noise((3, HEIGHT, WIDTH)), io.BytesIO()
    with tifffile.TiffWriter(buffer, **options) as writer:
        writer.write(values, photometric="minisblack", metadata={"axes": "ZYX"}, truncate=True)
    data = buffer.getvalue()
    assert np.array_equal(read(data, Decoding(frame=2)).array[..., 0], values[2])
    with pytest.raises(BadSample, match="truncated|no-frame"):
        read(data[:-10], Decoding(frame=2))


def test_previews_and_levels_are_no_frames():
    buffer, colours = io.BytesIO(), noise((HEIGHT, WIDTH, 3), np.uint8)
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(colours, photometric="rgb", subifds=1, metadata=None)
        writer.write(colours[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(colours[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    found = read(buffer.getvalue(), USUAL)
    assert found.num_frames == 1 and np.array_equal(found.array, colours)
    only = pages(colours, photometric="rgb", subfiletype=1)
    with pytest.raises(BadSample, match="unsupported: a TIFF of previews alone"):
        read(only, USUAL)


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"compress": "LZW"}])
def test_geotiff_as_gdal_reads_it(options):
    bands = noise((13, HEIGHT, WIDTH))
    with MemoryFile() as file:
        profile = {"driver": "GTiff", "count": 13, "dtype": "uint16", "height": HEIGHT, "width": WIDTH, **options}
        with file.open(crs="EPSG:32632", transform=from_origin(600000, 5300000, 10, 10), **profile) as dataset:
            dataset.write(bands)
            dataset.descriptions = [f"B{band}" for band in range(13)]
        data = bytes(file.getbuffer())
    found = read(data, USUAL)
    with MemoryFile(data) as file, file.open() as dataset:
        assert np.array_equal(found.array, np.moveaxis(dataset.read(), 0, -1))
        assert found.band_names == dataset.descriptions and size(data) == (dataset.width, dataset.height)
    assert found.kind == "bands"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(smooth(), photometric="cielab"), "CIELAB"),
        (tiff(noise().astype(np.complex64)), "complex64"),
        (tiff(smooth(), compression="jpegxl", photometric="rgb"), "compression 50002"),
        (
            tiff(noise((16, 48, 64)), volumetric=True, tile=(16, 16, 16), photometric="minisblack"),
            "volume of 16 slices",
        ),
    ],
)
def test_what_is_no_image_for_us_is_said(data, words):
    with pytest.raises(BadSample, match=f"^unsupported: a TIFF .*{words}"):
        read(data, USUAL)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "rowsperstrip": 8}, {"tile": (16, 16)}], ids=str)
def test_a_cut_file_is_never_filled_up(options):
    data = tiff(noise(), **options)
    for length in (len(data) - 1, len(data) // 2, 8):
        with pytest.raises(BadSample, match="truncated"):
            read(data[:length], USUAL)


def test_a_strip_that_is_too_short_is_said():
    data = tiff(noise(), compression="zlib", rowsperstrip=8)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start, count = file.pages.first.dataoffsets[2], file.pages.first.databytecounts[2]
    short = imagecodecs.zlib_encode(bytes(7 * WIDTH * 2))
    with pytest.raises(BadSample, match="decode-error: TIFF: .*corrupted strip"):
        read(data[:start] + short.ljust(count, b"\0") + data[start + count :], USUAL)


def test_bombs_are_refused_by_their_headers():
    with pytest.raises(BadSample, match="bomb: 1000 x 700 px, 0.7 megapixels, more than 0.5.*source.max_megapixels"):
        read(tiff(np.zeros((700, 1000), np.uint8), compression="zlib"), Decoding(max_pixels=500_000))
    many = tiff(
        np.zeros((200, 200, 500), np.uint8), compression="zlib", photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(BadSample, match="bomb: 200 x 200 px of 500 bytes"):
        read(many, Decoding(max_pixels=200 * 200))
    data = tiff(smooth(), compression="jpeg", photometric="rgb")
    start = data.index(b"\xff\xc0")
    huge = data[: start + 5] + b"\xff\xff\xff\xff" + data[start + 9 :]
    with pytest.raises(BadSample, match="bomb: a picture of 65535 x 65535 px inside, in the place of 64 x 48 px"):
        read(huge, USUAL)
