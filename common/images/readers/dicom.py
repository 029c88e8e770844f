"""DICOM through pydicom: rescaled values, the window that the file states, one frame of several.

What a file says of a patient is nobody's business here: of the data set only what describes pixels is looked at, and no
text of it, nor of an error about it, gets into a message. pydicom is imported here alone.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample
from beit.common.images.decoding import MAX_IMAGE_BYTES, Decoding
from beit.common.images.header import ImageFacts
from beit.common.images.readers.claims import check_picture, check_size, frame_number
from beit.common.images.samples import Samples, samples_of_8_bit

if TYPE_CHECKING:
    from pydicom import Dataset

_SEGMENTATION = "SEG"
_SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Modality and storage classes of masks: by segment, and as a map of labels."""
_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_JPEG_EXTENDED = ("1.2.840.10008.1.2.4.51",)
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_HIGH_THROUGHPUT = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
_BY_IMAGECODECS = (*_JPEG_EXTENDED, *_JPEG_LOSSLESS, *_JPEG_LS, *_JPEG_2000, *_HIGH_THROUGHPUT)
_RUN_LENGTHS = "1.2.840.10008.1.2.5"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MOST_WHOLE = 1 << 31
_DESCRIBING_GROUP, _PIXEL_GROUP = 0x0028, 0x7FE0
_FREE_TEXTS = (0x1055, 0x4000)
"""Elements of the former in which people write what they like: on windows and on the image."""

# pydicom warns of values that are not as the standard wants them, and quotes them. Set once, for the whole process,
# because `warnings.catch_warnings` swaps global state, and images are decoded in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\b")


def read(data: bytes, decoding: Decoding) -> Samples:
    """Return a frame of a DICOM file: grey values rescaled as it says, colours as RGB of 8 or 16 bits.

    Raises:
        BadSample: as `beit.common.images.decode.decode_image` says.
    """
    try:
        dataset = _dataset(data)
        count = _num_frames(dataset)
        number = frame_number(decoding.frame, count)
        _check(dataset, number, count, decoding)
        values = _values(dataset, number, count)
        return _samples(dataset, values, number, count)
    except (BadSample, MemoryError):
        raise
    except Exception as error:
        # As many types as there are ways to damage a file; their texts quote what stands in it.
        raise BadSample("decode-error", f"DICOM: {type(error).__name__}") from None


def facts(data: bytes) -> ImageFacts:
    """Return what the elements before the pixels say."""
    try:
        dataset = _dataset(data)
        photometric, is_float = str(dataset.PhotometricInterpretation), "PixelData" not in dataset
        _check_photometric(photometric)
        stored = int(dataset.get("BitsStored") or dataset.BitsAllocated)
        return ImageFacts(
            format="DICOM",
            width=int(dataset.Columns),
            height=int(dataset.Rows),
            bits=8 if photometric == _PALETTE else stored,
            channels=1 if photometric in _GREYS else 3,
            colours="grey" if photometric in _GREYS else "palette" if photometric == _PALETTE else "RGB",
            is_float=is_float,
            has_range=not is_float,
            num_frames=_num_frames(dataset),
            series=_series_of(dataset),
        )
    except (BadSample, MemoryError):
        raise
    except Exception as error:
        raise BadSample("decode-error", f"DICOM: {type(error).__name__}") from None


def _series_of(dataset: Dataset) -> str:
    """Return a hash of the series that an image belongs to; nothing where it does not say."""
    uid = str(dataset.get("SeriesInstanceUID") or "")
    return hashlib.blake2b(uid.encode(), digest_size=8).hexdigest() if uid else ""


def size(data: bytes) -> tuple[int, int]:
    """Return width and height in px."""
    try:
        dataset = _dataset(data)
        return int(dataset.Columns), int(dataset.Rows)
    except (BadSample, MemoryError):
        raise
    except Exception as error:
        raise BadSample("decode-error", f"DICOM: {type(error).__name__}") from None


def num_frames(data: bytes) -> int:
    """Return how many frames there are."""
    try:
        return _num_frames(_dataset(data))
    except (BadSample, MemoryError):
        raise
    except Exception as error:
        raise BadSample("decode-error", f"DICOM: {type(error).__name__}") from None


def without_patient(data: bytes) -> bytes:
    """Return a file with the same pixels, their unit and their window, and nothing else: nobody's name, date or place.

    What is written into the picture itself stays.
    """
    import pydicom

    try:
        dataset = _dataset(data)
        kept = _kept(dataset)
        if kept.get("BitsAllocated") is None:
            raise BadSample("decode-error", "DICOM: it does not say how its pixels are stored")
        kept.file_meta = pydicom.dataset.FileMetaDataset()
        kept.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
        buffer = io.BytesIO(bytes(_PREAMBLE_BYTES) + _MAGIC)
        is_implicit, is_little = dataset.original_encoding
        pydicom.dcmwrite(buffer, kept, implicit_vr=is_implicit, little_endian=is_little, enforce_file_format=False)
        written = buffer.getvalue()
        return written if written[_PREAMBLE_BYTES:].startswith(_MAGIC) else bytes(_PREAMBLE_BYTES) + _MAGIC + written
    except (BadSample, MemoryError):
        raise
    except Exception as error:
        raise BadSample("decode-error", f"DICOM: {type(error).__name__}") from None


def _kept(dataset: Dataset) -> Dataset:
    """Return the elements that pixels need: group 0028, the pixels, and of functional groups unit and window."""
    import pydicom

    kept = pydicom.Dataset()
    for tag in dataset.keys():  # noqa: SIM118  # which gives tags, where the data set itself gives elements
        if tag.group in (_DESCRIBING_GROUP, _PIXEL_GROUP) and tag.element not in _FREE_TEXTS:
            kept.add(dataset[tag])
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if name in dataset:
            setattr(kept, name, [_kept_group(group) for group in dataset[name].value])
    return kept


def _kept_group(group: Dataset) -> Dataset:
    import pydicom

    kept = pydicom.Dataset()
    for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
        if name in group:
            kept.add(group[name])
    return kept


def _dataset(data: bytes) -> Dataset:
    """Read the elements of a file, and what its pixels are encoded as, if it does not say."""
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # which would quote, as its warnings
    _check_deflated(data)
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if not any(name in dataset for name in _PIXELS):
        # Of a file that ends in the middle of an element, pydicom may give up all elements.
        if not len(dataset) or "Rows" in dataset:
            raise BadSample("truncated", "DICOM: its elements end before the pixels")
        raise BadSample("unsupported", "a DICOM file without pixels, such as a report, a plan or a directory")
    if dataset.get("Modality") == _SEGMENTATION or dataset.get("SOPClassUID") in _SEGMENTATION_CLASSES:
        raise BadSample("unsupported", "a DICOM segmentation, which is a mask of other images and no picture")
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return dataset


def _check_deflated(data: bytes) -> None:
    """Refuse a data set that is compressed as a whole and becomes larger than any image may be."""
    start = _PREAMBLE_BYTES + len(_MAGIC)
    if data[_PREAMBLE_BYTES:start] != _MAGIC or _DEFLATED not in data[start : start + 1024]:
        return
    length = int.from_bytes(data[start + 8 : start + 12], "little")  # of the rest of group 2
    try:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start + 12 + length :], MAX_IMAGE_BYTES + 1)
    except zlib.error:
        raise BadSample("decode-error", "DICOM: its compressed elements are damaged") from None
    if len(inflated) > MAX_IMAGE_BYTES:
        raise BadSample("bomb", f"DICOM: its compressed elements are more than {MAX_IMAGE_BYTES} bytes")


def _num_frames(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _check(dataset: Dataset, number: int, count: int, decoding: Decoding) -> None:
    """Refuse what is too large, or larger than its data, before any pixel is decoded."""
    width, height = int(dataset.Columns), int(dataset.Rows)
    samples, bits = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated)
    photometric = str(dataset.PhotometricInterpretation)
    _check_photometric(photometric)
    if samples != (3 if photometric in _COLOURS else 1) or bits not in (1, 8, 16, 32, 64):
        raise BadSample("decode-error", f"DICOM: {samples} samples of {bits} bits per pixel")
    check_size(width, height, decoding, bytes_per_pixel=samples * max(1, bits // 8))
    syntax = dataset.file_meta.TransferSyntaxUID
    pixels = next(dataset[name].value for name in _PIXELS if name in dataset)
    if not pixels:
        raise BadSample("truncated", "DICOM: no bytes of pixels")
    if syntax.is_encapsulated:
        if syntax != _RUN_LENGTHS:  # of which every row is as long as the header says
            check_picture(_encapsulated(dataset, number, count), width, height)
        return
    samples_stored = 2 if photometric == "YBR_FULL_422" else samples
    needed = (width * height * samples_stored * bits * (number + 1) + 7) // 8
    if len(pixels) < needed:
        raise BadSample("truncated", f"DICOM: {len(pixels)} bytes of pixels, {needed} are needed by its header")


def _check_photometric(photometric: str) -> None:
    if photometric not in (*_GREYS, *_COLOURS, _PALETTE):
        raise BadSample("unsupported", "a DICOM file of other values than grey, palette, RGB and YBR")


def _encapsulated(dataset: Dataset, number: int, count: int) -> bytes:
    from pydicom.encaps import get_frame

    extended = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        extended = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    frame: bytes = get_frame(dataset.PixelData, number, number_of_frames=count, extended_offsets=extended)
    return frame


def _values(dataset: Dataset, number: int, count: int) -> NDArray[Any]:
    """Decode a frame, (H, W, C); YBR as RGB."""
    from pydicom.pixels import pixel_array

    if dataset.file_meta.TransferSyntaxUID in _BY_IMAGECODECS:
        values = _by_imagecodecs(dataset, _encapsulated(dataset, number, count))
    else:
        values = pixel_array(dataset, index=number)
    values = (values[..., None] if values.ndim == 2 else values).astype(values.dtype.newbyteorder("="), copy=False)
    expected = (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    if values.shape != expected:
        raise BadSample("decode-error", f"DICOM: pixels of shape {values.shape}, where its header says {expected}")
    return values


def _by_imagecodecs(dataset: Dataset, frame: bytes) -> NDArray[Any]:
    """Decode the JPEGs that pydicom has no decoder for under a free licence, and JPEG 2000.

    The latter because pydicom 3.0.2 never comes back from some damaged ones. Whether a value is signed, the data set
    says, as far as it is used: of `BitsStored` bits the highest is the sign.
    """
    import imagecodecs
    from pydicom.pixels import convert_color_space

    syntax, bits = dataset.file_meta.TransferSyntaxUID, int(dataset.BitsStored)
    if syntax in _JPEG_EXTENDED:
        values = imagecodecs.jpeg_decode(frame, bitspersample=12 if bits > 8 else 8)
    elif syntax in _JPEG_LOSSLESS:
        values = imagecodecs.jpegsof3_decode(frame)
    elif syntax in _JPEG_LS:
        values = imagecodecs.jpegls_decode(frame)
    elif syntax in _JPEG_2000:
        values = imagecodecs.jpeg2k_decode(frame, numthreads=1)
    else:
        values = imagecodecs.htj2k_decode(frame)
    if values.dtype.kind not in "iu" or not 1 <= bits <= 8 * values.dtype.itemsize:
        raise BadSample("decode-error", f"DICOM: {bits} bits in values of type {values.dtype}")
    if values.ndim == 3 and str(dataset.PhotometricInterpretation).startswith("YBR_FULL"):
        return np.asarray(convert_color_space(values, "YBR_FULL", "RGB", per_frame=True))
    is_signed, unused = int(dataset.get("PixelRepresentation") or 0) == 1, 8 * values.dtype.itemsize - bits
    if is_signed != (values.dtype.kind == "i"):
        # Shifted up in one type and down in the other, the highest bit that is used becomes the sign, or none.
        as_wanted = np.dtype(f"{'i' if is_signed else 'u'}{values.dtype.itemsize}")
        values = np.ascontiguousarray(values << unused).view(as_wanted) >> unused
    return np.ascontiguousarray(values)


def _samples(dataset: Dataset, values: NDArray[Any], number: int, count: int) -> Samples:
    photometric, bits = str(dataset.PhotometricInterpretation), int(dataset.get("BitsStored") or dataset.BitsAllocated)
    bits = min(bits, 8 * values.dtype.itemsize)
    if photometric == _PALETTE:
        return samples_of_8_bit(_colours_of_palette(dataset, values[..., 0]), num_frames=count)
    if photometric in _COLOURS:
        return Samples(array=values, kind="rgb", bits=bits, num_frames=count)
    array, limits = _rescaled(dataset, values, bits, number)
    return Samples(
        array=array,
        kind="grey",
        bits=bits if limits is None and array.dtype.kind in "iu" else None,
        limits=limits,
        window=_window(dataset, number),
        is_inverted=photometric == "MONOCHROME1",
        num_frames=count,
    )


def _colours_of_palette(dataset: Dataset, places: NDArray[Any]) -> NDArray[np.uint8]:
    """Look colours up, (H, W, 3) uint8; pydicom gives those of 8 bits as 16 bits with the lower 8 empty."""
    from pydicom.pixels import apply_color_lut

    colours: NDArray[Any] = apply_color_lut(places, dataset)[..., :3]
    if colours.dtype == np.uint8:
        return colours
    small: NDArray[Any] = (colours.astype(np.uint32) + 128) // 257 if (colours & 0xFF).any() else colours >> 8
    return small.astype(np.uint8)


def _rescaled(
    dataset: Dataset, values: NDArray[Any], bits: int, number: int
) -> tuple[NDArray[Any], tuple[float, float] | None]:
    """Return stored values in their unit, such as Hounsfield, and the least and the greatest that there can be."""
    if "ModalityLUTSequence" in dataset and len(dataset.ModalityLUTSequence):
        from pydicom.pixels import apply_modality_lut

        table = np.asarray(dataset.ModalityLUTSequence[0].LUTData)
        return np.asarray(apply_modality_lut(values, dataset)), (float(table.min()), float(table.max()))
    source = _functional(dataset, "PixelValueTransformationSequence", number)
    slope, intercept = (_number(source, "RescaleSlope", 1.0), _number(source, "RescaleIntercept", 0.0))
    if slope == 0:
        raise BadSample("decode-error", "DICOM: it rescales all values to one")
    if (slope, intercept) == (1.0, 0.0):
        return values, None
    if values.dtype.kind == "f":
        return values * slope + intercept, None
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if values.dtype.kind == "i" else (0.0, 2.0**bits - 1)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    is_whole = slope.is_integer() and intercept.is_integer() and max(map(abs, ends)) < _MOST_WHOLE
    if is_whole:
        array = values.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    else:
        array = (values.astype(np.float64) * slope + intercept).astype(np.float32)
    return array, (ends[0], ends[1])


def _window(dataset: Dataset, number: int) -> tuple[float, float] | None:
    """Return the values that the first window of a file maps to black and white. Source: DICOM PS3.3, C.11.2.1.2."""
    source = _functional(dataset, "FrameVOILUTSequence", number)
    width, center = _number(source, "WindowWidth", 0.0), _number(source, "WindowCenter", None)
    if center is None or width <= 0:
        return None
    function = str(source.get("VOILUTFunction") or "LINEAR")
    if function != "LINEAR":  # LINEAR_EXACT; of SIGMOID, where it is nearly black and white
        return center - width / 2, center + width / 2
    if width <= 1:
        return None  # a threshold
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def _functional(dataset: Dataset, name: str, number: int) -> Dataset:
    """Return where a file of many frames has what may differ by frame, else the data set itself."""
    places = []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if number < len(per_frame):
        places.append(per_frame[number])
    places += list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    for place in places:
        found = place.get(name)
        if found:
            return found[0]
    return dataset


def _number(dataset: Dataset, name: str, missing: Any) -> Any:
    value = dataset.get(name)
    if value is None or value == "":
        return missing
    first = value if isinstance(value, (int, float)) else value[0]
    number = float(first)
    if not np.isfinite(number):
        raise BadSample("decode-error", f"DICOM: {name} is no finite number")
    return number
