"""NumPy files (.npy) as images: numbers of shape (H, W) or (H, W, C). Never pickles: those can run programs."""

from __future__ import annotations

import io
import math
from typing import Any, Literal, NamedTuple

import numpy as np

from beit.common.errors import BadSample
from beit.common.images.decoding import Decoding
from beit.common.images.header import BANDS, ImageFacts
from beit.common.images.readers.claims import check_size
from beit.common.images.samples import Samples

_KINDS = "biuf"
_MOST_LEADING_CHANNELS = 16


class _Header(NamedTuple):
    """What stands before the values."""

    height: int
    width: int
    channels: int
    is_fortran: bool
    dtype: np.dtype[Any]
    offset: int


def read(data: bytes, decoding: Decoding) -> Samples:
    """Return an array (H, W) as grey, (H, W, 3) as colours and (H, W, C) as bands.

    Raises:
        BadSample: reason is "truncated", "unsupported", "bomb", "too-large" or "decode-error".
    """
    header = _header(data)
    check_size(header.width, header.height, decoding, bytes_per_pixel=header.channels * header.dtype.itemsize)
    count = header.height * header.width * header.channels
    if len(data) - header.offset < count * header.dtype.itemsize:
        raise BadSample(
            "truncated",
            f"{len(data) - header.offset} bytes of values, {count * header.dtype.itemsize} are needed by its header",
        )
    values = np.frombuffer(data, header.dtype, count, header.offset)
    shape = (header.height, header.width, header.channels)
    array = values.reshape(shape, order="F" if header.is_fortran else "C")
    array = np.ascontiguousarray(array, dtype=header.dtype.newbyteorder("="))
    kinds: dict[int, Literal["grey", "rgb"]] = {1: "grey", 3: "rgb"}
    return Samples(array=array, kind=kinds.get(header.channels, "bands"))


def facts(data: bytes) -> ImageFacts:
    """Return what stands before the values."""
    header = _header(data)
    is_float = header.dtype.kind == "f"
    return ImageFacts(
        format="NumPy",
        width=header.width,
        height=header.height,
        bits=1 if header.dtype.kind == "b" else 8 * header.dtype.itemsize,
        channels=header.channels,
        colours={1: "grey", 3: "RGB"}.get(header.channels, BANDS),
        is_float=is_float,
        has_range=not is_float,
    )


def size(data: bytes) -> tuple[int, int]:
    """Return width and height in px."""
    header = _header(data)
    return header.width, header.height


def num_frames(data: bytes) -> int:
    """Return 1: a file is one image."""
    return 1


def _header(data: bytes) -> _Header:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file)
    except Exception as error:  # the header is a Python literal, which fails in as many ways
        raise BadSample("decode-error", f"not a readable npy header ({type(error).__name__})") from None
    if dtype.hasobject:
        raise BadSample("unsupported", "an npy file of Python objects, which are pickles and never loaded")
    if dtype.kind not in _KINDS or dtype.itemsize > 8 or len(shape) not in (2, 3) or min(shape) < 1:
        raise BadSample(
            "unsupported",
            f"an npy array of type {dtype.str:.40} and shape {str(shape):.80}; an image has numbers of shape (height, "
            "width) or (height, width, channels)",
        )
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) == 3 and shape[0] <= _MOST_LEADING_CHANNELS < min(shape[1:]):
        raise BadSample(
            "unsupported", f"an npy array of shape {shape}, with the channels first; write (height, width, channels)"
        )
    assert math.prod(shape) > 0
    return _Header(shape[0], shape[1], channels, is_fortran, dtype, file.tell())
