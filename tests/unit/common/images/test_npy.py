import io
import os

import numpy as np
import pytest

from beit.common.errors import BadSample
from beit.common.images.decoding import Decoding
from beit.common.images.npy import num_frames, read, size
from beit.tests.science_files import HEIGHT, WIDTH, noise, npy

USUAL = Decoding()


class Program:
    def __reduce__(self):
        return (os.system, ("true",))


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["?", "u1", "<u2", ">u2", "i4", "f2", "<f4", ">f8"])
@pytest.mark.parametrize(("channels", "kind"), [(0, "grey"), (1, "grey"), (3, "rgb"), (13, "bands")])
def test_numbers_are_those_that_were_written(channels, kind, dtype, order):
    shape = (HEIGHT, WIDTH, channels) if channels else (HEIGHT, WIDTH)
    values = np.asarray(noise(shape).astype(dtype), order=order)
    found = read(npy(values), USUAL)
    assert found.kind == kind and np.array_equal(found.array.reshape(shape), values)
    assert found.array.dtype == values.dtype.newbyteorder("=") and found.array.flags.c_contiguous
    assert size(npy(values)) == (WIDTH, HEIGHT) and num_frames(npy(values)) == 1


def test_pickles_are_never_loaded():
    with pytest.raises(BadSample, match="unsupported: an npy file of Python objects, which are pickles"):
        read(npy(np.array([[Program()]], dtype=object)), USUAL)


@pytest.mark.parametrize(
    "values",
    [np.zeros(5), np.zeros((2, 2, 2, 2)), np.zeros((4, 4), complex), np.zeros((4, 4), "U3"), np.zeros((0, 4))],
)
def test_what_is_no_image_is_said(values):
    with pytest.raises(BadSample, match="unsupported: an npy array of type .* and shape"):
        read(npy(values), USUAL)


def test_channels_first_is_not_taken_for_a_picture_of_many_bands():
    with pytest.raises(BadSample, match=r"shape \(13, 48, 64\), with the channels first"):
        read(npy(np.zeros((13, 48, 64), np.uint8)), USUAL)


def test_a_header_that_claims_more_than_there_is():
    data = npy(noise())
    with pytest.raises(BadSample, match="truncated: .* bytes of values, 6144 are needed"):
        read(data[:-1], USUAL)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 40)})
    with pytest.raises(BadSample, match="bomb"):
        read(header.getvalue(), USUAL)
    with pytest.raises(BadSample, match="decode-error: not a readable npy header"):
        read(b"\x93NUMPY\x01\x00\x10\x00__import__('os')", USUAL)
