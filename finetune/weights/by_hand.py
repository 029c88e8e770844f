"""How values of an image file become the 8-bit pixels that an exported model takes, in steps for those without beit.

Programs of others read 8-bit images in colour and know nothing of ranges, bands and backgrounds. Whoever follows the
steps, with a library that gives the values of a file as they are stored, gets the pixels of `decode_image`, bit by bit.
"""

from __future__ import annotations

from beit.common.images.alpha import CHECKER_LEVELS, CHECKER_PX
from beit.common.images.decoding import Decoding
from beit.common.images.ranges import DTYPE, WINDOW, ValueRange

_ROUNDED = "floor(255 (v - low) / (high - low) + 1/2), at least 0 and at most 255; NaN becomes 0"
_UPPER = "of PNGs of 16 bits with colours or an opacity the upper 8 of every channel are taken, the opacity's too"
_BEHIND = {"white": "B = 255", "black": "B = 0"}


def decoding_steps(decoding: Decoding) -> list[str]:
    """Return the steps in their order, one or more sentences each; none where images are decoded as usual."""
    if decoding.is_usual:
        return []
    return [
        _values(decoding),
        *_bands(decoding),
        _mapped(decoding.value_range),
        *_laid_over(decoding),
        _channels(decoding),
    ]


def _values(decoding: Decoding) -> str:
    which = {
        "first": "the first",
        "middle": "number n // 2 of n, counted from 0",
        "each": "each, as an image of its own",
    }
    frame = which.get(str(decoding.frame), f"number {decoding.frame}, counted from 0")
    return (
        "Read the values as they are stored (DICOM: times its slope plus its intercept; a palette: its colours; grey "
        "PNGs of 1, 2 and 4 bits: times 255, 85 and 17, as 8 bits; JPEGs of CMYK: 255 - k - round(c (255 - k) / 255) "
        "of each ink c and the black k), "
        f"turned as EXIF, TIFF or HEIC say. Of several pages or frames take {frame}."
    )


def _bands(decoding: Decoding) -> list[str]:
    if isinstance(decoding.channels, str):
        return []
    bands = decoding.channels
    if len(bands) == 1:
        return [f"Take band {bands[0]}, counted from 1, as grey."]
    return [f"Take the bands {bands[0]}, {bands[1]} and {bands[2]}, counted from 1, as red, green and blue."]


def _mapped(value_range: ValueRange) -> str:
    if value_range.low is not None and value_range.high is not None:
        bounds = f"low = {value_range.low:.17g} and high = {value_range.high:.17g}, for images of 8 bits, too"
    elif value_range.kind == WINDOW:
        bounds = (
            "low = c - 1/2 - (w - 1)/2 and high = c - 1/2 + (w - 1)/2 for the first window of the file, of centre c "
            "and width w (c - w/2 and c + w/2 where its function is not LINEAR); 8 bits without a "
            f"window stay; {_UPPER}"
        )
    else:
        assert value_range.kind == DTYPE
        bounds = f"low and high the ends of its type (0 and 2^b - 1 of b bits; 8 bits stay as they are; {_UPPER})"
    return (
        f"Map each value v to {_ROUNDED}. Here {bounds}. Where the file says that its least value is white "
        "(MONOCHROME1, MINISWHITE), take 255 less that."
    )


def _laid_over(decoding: Decoding) -> list[str]:
    if decoding.alpha == "drop":
        return ["Transparency is dropped: the colours stay as they are stored."]
    light, dark = CHECKER_LEVELS
    is_light = f"row // {CHECKER_PX} + column // {CHECKER_PX} is even"
    squares = f"B = {light} where {is_light}, else {dark}, counted from 0 at the top left"
    return [
        f"Lay what is transparent on {decoding.alpha}: (a x + (255 - a) B + 127) // 255 for every colour x, where a is "
        f"the opacity, mapped to 0 to 255 over its full range (0 where a PNG has its one transparent colour, compared "
        f"by the upper 8 bits where only these are taken, else 255), and {_BEHIND.get(decoding.alpha, squares)}."
    ]


def _channels(decoding: Decoding) -> str:
    if decoding.channels == "grey":
        return "Mix colours to one channel of grey: (19595 R + 38470 G + 7471 B + 32768) >> 16."
    if decoding.num_channels == 1:
        return "The image has this one channel."
    return "The image has three channels; what is grey stands in all of them."
