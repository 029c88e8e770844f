"""Damaged files of the formats that libraries of their own read: every codec, layout and kind of header they know."""

import io
import struct

import imagecodecs
import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file

from beit.common.errors import BadSample
from beit.common.images.decode import decode_image, size_of_image
from beit.common.images.decoding import Decoding
from beit.common.images.formats import format_of, without_private
from beit.common.images.large.tiles import Box
from beit.common.images.large.windows import is_tiff, measure, open_pixels
from beit.tests.fuzz.mutations import INTERESTING_INTS, mutate_bytes
from beit.tests.science_files import dicom, heic, lossless_jpeg_dicom, noise, npy, one_of_each, pillow, smooth, tiff

_DICOM = (
    *("CT_small", "JPEG2000", "JPEGLSNearLossless_16", "JPGExtended", "MR_small_RLE", "MR_small_bigendian"),
    *("MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_lossy_gdcm"),
    *("SC_rgb_rle_16bit_2frame", "SC_rgb_small_odd_jpeg", "SC_ybr_full_422_uncompressed", "image_dfl", "rtdose"),
)
_FRAMES = ("first", "middle", 1)


def fuzz_formats(folder):
    """A case damages bytes anywhere, or entries of TIFF directories, whose offsets lead everywhere."""
    seeds = _seeds()

    def run(rng):
        kind = rng.choice(list(seeds))
        data = rng.choice(seeds[kind])
        tags = kind == "tiff" and rng.random() < 0.5
        data = _with_other_tags(data, rng) if tags else mutate_bytes(data, rng)
        decoding = Decoding(max_pixels=1_000_000, frame=rng.choice(_FRAMES))
        size_of_image(data)
        try:
            form = format_of(data)
            if form is not None and form.module:
                form.reader().num_frames(data)
                without_private(data)
        except BadSample:
            pass
        if is_tiff(data) and rng.random() < 0.5:
            _read_windows(data, decoding, rng)
        else:
            decode_image(data, decoding)

    return run


def _read_windows(data, decoding, rng):
    """Read parts of a TIFF, as tiling and predicting do, up to the size that its header claims."""
    measure(io.BytesIO(data), decoding)
    with open_pixels(io.BytesIO(data), decoding) as pixels:
        for version in (pixels, pixels.smallest_version(16)):
            width, height = version.size
            left, top = (rng.choice((0, rng.randrange(side), max(0, side - 20))) for side in (width, height))
            box = Box(left, top, min(width, left + 20), min(height, top + 20))
            assert version.read(box).size == box.size


def _seeds():
    grey, byte, stack = noise(), noise(dtype=np.uint8), noise((3, 48, 64), np.uint8)
    seeds = {suffix: [data] for suffix, data in one_of_each().items()}
    seeds["tiff"] = [
        *(tiff(grey, compression=name) for name in (None, "lzw", "zlib", "zstd", "packbits", "lzma")),
        *(tiff(grey, compression=name, tile=(16, 16), predictor=True) for name in ("lzw", "zlib")),
        *(tiff(smooth(), compression=name, photometric="rgb", tile=(32, 32)) for name in ("jpeg", "jpeg2000", "webp")),
        *(pillow(Image.fromarray(byte > 127), "TIFF", compression=name) for name in ("group3", "group4")),
        tiff(grey, bigtiff=True),
        tiff(grey, byteorder=">"),
        tiff(grey >> 4, bitspersample=12),
        tiff(byte > 127, photometric="miniswhite"),
        tiff(byte, photometric="palette", colormap=noise((3, 256))),
        tiff(noise((48, 64, 4), np.uint8), photometric="separated"),
        tiff(noise((48, 64, 4), np.uint8), photometric="rgb", extrasamples=["assocalpha"]),
        tiff(stack, photometric="rgb", planarconfig="separate"),
        tiff(stack, photometric="minisblack"),
        tiff(stack, imagej=True, metadata={"axes": "ZYX"}),
        tiff(stack, ome=True, photometric="minisblack", metadata={"axes": "CYX"}),
        tiff(grey, tile=(16, 16), bigtiff=True, compression="zlib"),
        tiff(noise((4, 48, 64)), tile=(16, 16), photometric="minisblack", planarconfig="separate"),
        _pyramid(),
    ]
    seeds["dcm"] = [dicom(), lossless_jpeg_dicom()]
    for name in _DICOM:
        with open(get_testdata_file(f"{name}.dcm", download=False), "rb") as file:
            seeds["dcm"].append(file.read())
    seeds["jxl"] += [imagecodecs.jpegxl_encode(values) for values in (grey, smooth(), smooth(1), stack)]
    seeds["heic"] += [heic(Image.fromarray(smooth(1))), heic(Image.fromarray(noise((48, 64, 4), np.uint8)))]
    seeds["npy"] += [npy(grey), npy(np.asfortranarray(smooth())), npy(np.zeros((8, 8, 5), np.float32))]
    seeds["frames"] = [dicom(_with_frames)]
    return seeds


def _pyramid():
    """A tiled TIFF that holds itself at half its size, too, as slides and maps do."""
    buffer, colours = io.BytesIO(), smooth()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(colours, photometric="rgb", tile=(16, 16), subifds=1, compression="lzw")
        writer.write(colours[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1, compression="lzw")
    return buffer.getvalue()


def _with_frames(dataset):
    unit, window, group = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    unit.RescaleSlope, unit.RescaleIntercept = 2, -5
    window.WindowCenter, window.WindowWidth = 40, 400
    group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [unit], [window]
    dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = [group, group], 2
    dataset.PixelData = dataset.PixelData * 2


def _with_other_tags(data, rng):
    """Change type, count or value of some entries of the first directory, which bytes at random seldom meet."""
    order = "<" if data.startswith(b"II") else ">"
    if struct.unpack_from(f"{order}H", data, 2)[0] != 42:
        return mutate_bytes(data, rng)
    buffer = bytearray(data)
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for _ in range(rng.randint(1, 3)):
        entry = start + 2 + 12 * rng.randrange(count)
        at, form, width = rng.choice(((2, "H", 2), (4, "I", 4), (8, "H", 2), (8, "I", 4), (8, "I", 4)))
        near = struct.unpack_from(order + form, buffer, entry + at)[0] + rng.choice((-1, 1))
        value = rng.choice((near, rng.choice(INTERESTING_INTS))) % 256**width
        struct.pack_into(order + form, buffer, entry + at, value)
    return bytes(buffer)
