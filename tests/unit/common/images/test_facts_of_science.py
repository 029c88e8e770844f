"""Headers of TIFF, DICOM, HEIC, AVIF, JPEG XL and NumPy say what decoding finds: bits, channels, opacity, frames."""

import io

import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file

from beit.common.errors import BadSample
from beit.common.images.decode import read_samples
from beit.common.images.decoding import Decoding
from beit.common.images.facts import facts_of_image
from beit.common.images.readers import jxl
from beit.tests.unit.common.images.test_alpha import noise


def tiff(array, **settings):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **settings)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def pillow(image, form, **settings):
    buffer = io.BytesIO()
    image.save(buffer, form, **settings)
    return buffer.getvalue()


def heic(array, mode):
    file = pillow_heif.HeifFile()
    file.add_frombytes(mode, (array.shape[1], array.shape[0]), array.tobytes())
    buffer = io.BytesIO()
    file.save(buffer, quality=-1)
    return buffer.getvalue()


def deep(*shape, dtype=np.uint16, top=4096):
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


RGB, RGBA = noise(40, 60, 3), noise(40, 60, 4)
GREY = RGB[..., 0]
CASES = {
    "tiff-grey": (tiff(GREY), ("TIFF", "8", 1, "grey", False, 1)),
    "tiff-rgb": (tiff(RGB, photometric="rgb"), ("TIFF", "8", 3, "RGB", False, 1)),
    "tiff-rgba": (tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"]), ("TIFF", "8", 3, "RGB", True, 1)),
    "tiff-rgb-and-more": (
        tiff(RGBA, photometric="rgb", extrasamples=["unspecified"]),
        ("TIFF", "8", 4, "bands", False, 1),
    ),
    "tiff-12-in-16": (tiff(deep(40, 60), extratags=[(281, 3, 1, 4095, True)]), ("TIFF", "12", 1, "grey", False, 1)),
    "tiff-16": (tiff(deep(40, 60), extratags=[(281, 3, 1, 3271, True)]), ("TIFF", "16", 1, "grey", False, 1)),
    "tiff-bands": (
        tiff(deep(40, 60, 5), photometric="minisblack", planarconfig="contig"),
        ("TIFF", "16", 5, "bands", False, 1),
    ),
    "tiff-stack": (tiff(deep(7, 40, 60), photometric="minisblack"), ("TIFF", "16", 1, "grey", False, 7)),
    "tiff-imagej": (
        tiff(deep(5, 2, 40, 60), imagej=True, metadata={"axes": "ZCYX"}),
        ("TIFF", "16", 2, "bands", False, 5),
    ),
    "tiff-float": (tiff(GREY.astype(np.float32)), ("TIFF", "32 float", 1, "grey", False, 1)),
    "tiff-1-bit": (pillow(Image.fromarray(GREY).convert("1"), "TIFF"), ("TIFF", "1", 1, "black and white", False, 1)),
    "tiff-palette": (pillow(Image.fromarray(RGB).convert("P"), "TIFF"), ("TIFF", "8", 3, "palette", False, 1)),
    "npy-grey": (npy(deep(40, 60)), ("NumPy", "16", 1, "grey", False, 1)),
    "npy-rgb": (npy(RGB), ("NumPy", "8", 3, "RGB", False, 1)),
    "npy-bands": (npy(deep(40, 60, 13)), ("NumPy", "16", 13, "bands", False, 1)),
    "npy-bool": (npy(GREY > 99), ("NumPy", "1", 1, "grey", False, 1)),
    "npy-float": (npy(deep(40, 60, dtype=np.float64)), ("NumPy", "64 float", 1, "grey", False, 1)),
    "heic": (heic(RGB, "RGB"), ("HEIC", "8", 3, "RGB", False, 1)),
    "heic-alpha": (heic(RGBA, "RGBA"), ("HEIC", "8", 3, "RGB", True, 1)),
    "jxl": (imagecodecs.jpegxl_encode(RGB), ("JPEG XL", "8", 3, "RGB", False, 1)),
    "jxl-grey": (imagecodecs.jpegxl_encode(GREY, lossless=True), ("JPEG XL", "8", 1, "grey", False, 1)),
    "jxl-lossy-grey": (imagecodecs.jpegxl_encode(GREY, level=70), ("JPEG XL", "8", 1, "grey", False, 1)),
    "jxl-alpha": (imagecodecs.jpegxl_encode(RGBA, lossless=True), ("JPEG XL", "8", 3, "RGB", True, 1)),
    "jxl-deep": (
        imagecodecs.jpegxl_encode(deep(40, 60), bitspersample=12, lossless=True),
        ("JPEG XL", "12", 1, "grey", False, 1),
    ),
    "avif": (pillow(Image.fromarray(RGB), "AVIF"), ("AVIF", "8", 3, "RGB", False, 1)),
    "avif-alpha": (pillow(Image.fromarray(RGBA), "AVIF"), ("AVIF", "8", 3, "RGB", True, 1)),
    "avif-10": (
        imagecodecs.avif_encode(deep(40, 60, 3, top=1024), bitspersample=10),
        ("AVIF", "10", 3, "RGB", False, 1),
    ),
    "avif-grey": (imagecodecs.avif_encode(deep(40, 60), bitspersample=12), ("AVIF", "12", 1, "grey", False, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_headers_say_what_decoding_finds(name):
    data, expected = CASES[name]
    facts = facts_of_image(data)
    assert (facts.format, facts.depth, facts.channels, facts.colours, facts.has_alpha, facts.num_frames) == expected
    assert (facts.width, facts.height) == (60, 40) and facts.has_range == ("float" not in name)
    samples = read_samples(data, Decoding())
    assert samples.array.shape == (40, 60, facts.channels) and (samples.alpha is not None) == facts.has_alpha
    assert samples.num_frames == facts.num_frames
    if "avif" not in name and "palette" not in name and not facts.is_float:
        assert (samples.bits or 8 * samples.array.dtype.itemsize) == facts.bits or samples.array.dtype.kind == "b"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CT_small.dcm", ("DICOM", "16", 1, "grey", 1)),
        ("MR_small.dcm", ("DICOM", "16", 1, "grey", 1)),
        ("examples_palette.dcm", ("DICOM", "8", 3, "palette", 1)),
        ("examples_rgb_color.dcm", ("DICOM", "8", 3, "RGB", 1)),
        ("examples_ybr_color.dcm", ("DICOM", "8", 3, "RGB", 30)),
    ],
)
def test_dicom_headers(name, expected):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"{name} does not come with pydicom")
    with open(path, "rb") as file:
        facts = facts_of_image(file.read())
    assert (facts.format, facts.depth, facts.channels, facts.colours, facts.num_frames) == expected


def test_no_pixel_is_decoded(monkeypatch):
    def refuse(*given, **settings):
        raise AssertionError("decoded")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    monkeypatch.setattr(imagecodecs, "jpegxl_decode", refuse)
    monkeypatch.setattr(pillow_heif.HeifImage, "load", refuse, raising=False)
    for data, _ in CASES.values():
        facts_of_image(data)


def test_channels_of_jpeg_xl_behind_a_named_opacity():
    """All fields of an extra channel: depth, shift, name; then the colours."""
    fields = [
        *[(1, 1), (2, 5), (0, 3), (2, 5)],  # small, height 24, no ratio, width 24
        *[(0, 1), (0, 1)],  # not all as usual, no further fields
        *[(0, 1), (0, 2), (1, 1)],  # 8 bits, 16-bit buffers are enough
        *[(1, 2), (0, 1), (0, 2)],  # one extra channel, described: opacity
        *[(0, 1), (0, 2), (0, 2)],  # of 8 bits, not shifted
        *[(1, 2), (2, 4), (97, 8), (98, 8), (0, 1)],  # its name has two letters; not premultiplied
        *[(0, 1), (0, 1), (0, 1), (1, 2)],  # not XYB; colours described, no profile: grey
    ]
    value = place = 0
    for number, count in fields:
        value, place = value | number << place, place + count
    data = b"\xff\x0a" + value.to_bytes(40, "little")
    facts = jxl.facts(data)
    assert (facts.width, facts.height, facts.bits, facts.channels, facts.has_alpha) == (24, 24, 8, 1, True)
    with pytest.raises(BadSample, match="ends early"):
        jxl.facts(data[:9])
