"""Windows of TIFFs of every layout, against the whole as it is decoded otherwise."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.large.tiles import Box
from beit.common.images.large.windows import measure, open_pixels
from beit.common.images.ranges import ValueRange

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (70, 90), dtype=np.uint16)
PLANES = np.ascontiguousarray(COLOURS.transpose(2, 0, 1))
RGB = {"photometric": "rgb"}
LAYOUTS = {
    "tiles": (COLOURS, RGB | {"tile": (16, 32), "compression": "deflate"}),
    "strips": (COLOURS, RGB | {"rowsperstrip": 9, "compression": "lzw", "predictor": True}),
    "one piece": (COLOURS, RGB),
    "plane by plane in tiles": (PLANES, RGB | {"planarconfig": "separate", "tile": (16, 16)}),
    "plane by plane": (PLANES, RGB | {"planarconfig": "separate"}),
    "zstd in a BigTIFF": (COLOURS, RGB | {"tile": (32, 16), "compression": "zstd", "bigtiff": True}),
    "big-endian": (DEEP, {"photometric": "minisblack", "byteorder": ">"}),
    "big-endian tiles": (DEEP, {"photometric": "minisblack", "byteorder": ">", "tile": (16, 16)}),
    "inverted": (DEEP, {"photometric": "miniswhite", "rowsperstrip": 13}),
    "JPEG inside": (COLOURS, RGB | {"tile": (32, 32), "compression": "jpeg"}),
    "with opacity": (np.dstack([COLOURS, COLOURS[..., :1]]), RGB | {"extrasamples": ["unassalpha"], "tile": (16, 16)}),
    "palette": (COLOURS[..., 0], {"photometric": "palette", "colormap": RNG.integers(0, 65536, (3, 256), np.uint16)}),
}  # fmt: skip
BOXES = [Box(0, 0, 90, 70), Box(0, 0, 1, 1), Box(89, 69, 90, 70), Box(15, 15, 33, 17), Box(3, 40, 80, 70)]


def written(layout):
    array, options = LAYOUTS[layout]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "decoding", [USUAL, Decoding(value_range=ValueRange.parse((0.0, 200.0)))], ids=["usual", "range"]
)
def test_a_window_is_that_part_of_the_whole(layout, decoding):
    data = written(layout)
    whole = np.asarray(decode_image(data, decoding))
    assert measure(io.BytesIO(data)) == ((90, 70), True, 1)
    with open_pixels(io.BytesIO(data), decoding) as pixels:
        assert pixels.size == (90, 70) and pixels.has_windows
        for box in BOXES:
            found = np.asarray(pixels.read(box))
            assert (found == whole[box.top : box.bottom, box.left : box.right]).all()


def test_only_the_segments_of_a_window_are_read():
    data = bytearray(written("tiles"))
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages[0]
        for number in range(len(page.dataoffsets)):
            if number != 4:  # the second of the second row, 3 a row
                start = page.dataoffsets[number]
                data[start : start + page.databytecounts[number]] = bytes(page.databytecounts[number])
    with open_pixels(io.BytesIO(data)) as pixels:
        found = np.asarray(pixels.read(Box(32, 16, 64, 32)))
        assert (found == COLOURS[16:32, 32:64]).all()
        with pytest.raises(BadSample, match="decode-error"):
            pixels.read(Box(31, 16, 64, 32))


def test_what_has_to_be_turned_is_decoded_as_a_whole():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, COLOURS, photometric="rgb", tile=(16, 16), extratags=[(274, 3, 1, 6, True)])
    data = buffer.getvalue()
    assert measure(io.BytesIO(data)) == ((70, 90), False, 1)
    with open_pixels(io.BytesIO(data)) as pixels:
        assert pixels.size == (70, 90) and not pixels.has_windows
        assert (np.asarray(pixels.read(Box(0, 0, 70, 90))) == np.asarray(decode_image(data))).all()


def test_the_limit_is_for_what_is_decoded_at_once():
    small = Decoding(max_pixels=600)
    with open_pixels(io.BytesIO(written("tiles")), small) as pixels:
        pixels.read(Box(0, 0, 20, 30))
        with pytest.raises(BadSample, match="a part of it: 31 x 20 px"):
            pixels.read(Box(0, 0, 31, 20))
    with open_pixels(io.BytesIO(written("one piece")), small) as pixels:
        assert (np.asarray(pixels.read(Box(0, 69, 90, 70))) == COLOURS[69:]).all()
    with (
        pytest.raises(BadSample, match=r"each of its strips: 90 x 9 px.*max_megapixels"),
        open_pixels(io.BytesIO(written("strips")), small),
    ):
        pass


def test_pages_are_chosen_and_counted():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as tiff:
        for number in range(3):
            tiff.write(COLOURS // (number + 1), photometric="rgb", tile=(16, 16))
    assert measure(buffer, Decoding(frame="each")).num_frames == 3
    buffer.seek(0)
    with open_pixels(buffer, Decoding(frame=2)) as pixels:
        assert (np.asarray(pixels.read(Box(0, 0, 90, 70))) == COLOURS // 3).all()
    buffer.seek(0)
    with pytest.raises(BadSample, match="no-frame"), open_pixels(buffer, Decoding(frame=3)):
        pass


def test_other_formats_are_measured_by_their_headers_and_decoded_as_a_whole():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "JPEG", exif=exif)
    assert measure(io.BytesIO(buffer.getvalue())) == ((70, 90), False, 1)
    assert measure(io.BytesIO(b"nothing")) is None and measure(io.BytesIO(b"II*\0")) is None
    with open_pixels(io.BytesIO(buffer.getvalue())) as pixels:
        assert pixels.size == (70, 90) and pixels.read(Box(1, 2, 4, 8)).size == (3, 6)


def test_what_is_raised_while_an_image_is_open_is_not_taken_for_its_fault():
    with pytest.raises(InputError, match="mine"), open_pixels(io.BytesIO(written("tiles"))):
        raise InputError("mine")
    with pytest.raises(KeyError), open_pixels(io.BytesIO(written("tiles"))):
        raise KeyError("mine")
