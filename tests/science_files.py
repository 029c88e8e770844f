"""Images as science and phones write them, made by other people's writers."""

import io

import imagecodecs
import numpy as np
import pillow_heif
import pydicom
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

HEIGHT, WIDTH = 48, 64


def noise(shape=(HEIGHT, WIDTH), dtype=np.uint16, seed=0):
    """Values over the whole range of a type of whole numbers."""
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max, shape, dtype, endpoint=True)


def smooth(channels=3):
    """Colours, or grey, that lossy codecs keep well, uint8."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    colours = np.stack([rows * 5, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)
    return colours if channels == 3 else colours[..., 0]


def tiff(values, **options):
    """What tifffile writes."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def pillow(image, form, **options):
    """What Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def heic(image, **options):
    """What pillow-heif writes of an image of Pillow."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **{"quality": -1, "chroma": 444} | options)
    return buffer.getvalue()


def npy(values):
    """What NumPy writes."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def dicom(change=None, name="MR_small.dcm"):
    """One of pydicom's own files, changed."""
    dataset = pydicom.dcmread(get_testdata_file(name, download=False))
    if change is not None:
        change(dataset)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def lossless_jpeg_dicom():
    """The same picture as MR_small.dcm, as many scanners compress it."""

    def compress(dataset):
        encoded = imagecodecs.ljpeg_encode(dataset.pixel_array.astype(np.uint16))
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
        dataset.PixelData = encapsulate([encoded])
        dataset["PixelData"].VR = "OB"

    return dicom(compress)


def one_of_each():
    """A small file of every format that a library of its own reads, by suffix."""
    return {
        "tif": tiff(smooth(), photometric="rgb", compression="zlib"),
        "dcm": dicom(),
        "heic": heic(Image.fromarray(smooth())),
        "avif": pillow(Image.fromarray(smooth()), "AVIF", quality=95),
        "jxl": imagecodecs.jpegxl_encode(smooth(), lossless=True),
        "npy": npy(smooth()),
    }
