"""Which formats of images there are: what they are called, how their data begin, what reads them, what that needs.

Which format an image is, its first bytes decide, never its name. Names decide what of a folder, a tar or a list is an
image at all. Here, too: the words for images whose library is not installed. The readers are imported when one is met.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from beit.common.errors import BadSample

if TYPE_CHECKING:
    from beit.common.images.decoding import Decoding
    from beit.common.images.header import ImageFacts
    from beit.common.images.samples import Samples

NEEDS = "needs-"
"""Begins the reasons of images that nothing is wrong with, but whose library is missing."""


class Reader(Protocol):
    """The module of a format."""

    def read(self, data: bytes, decoding: Decoding) -> Samples:
        """Decode an image, or the wanted frame of several."""

    def facts(self, data: bytes) -> ImageFacts:
        """Return what the header says, of the first frame as `read` gives it; no pixel is decoded."""

    def size(self, data: bytes) -> tuple[int, int]:
        """Return width and height in px, as `read` gives them."""

    def num_frames(self, data: bytes) -> int:
        """Return how many frames there are to choose from."""


@dataclass(frozen=True, slots=True)
class Format:
    """One format of images."""

    name: str
    """As people call it."""
    suffixes: tuple[str, ...]
    """Endings of files and suffixes of tar members, lower case."""
    magic: re.Pattern[bytes] | None = None
    """How its data begin; None where `_BRANDS` tells it, or Pillow."""
    extra: str = ""
    """Of `pip install 'beit[...]'`; empty where nothing more is needed."""
    module: str = ""
    """In this room; empty for what Pillow reads."""
    libraries: tuple[str, ...] = ()
    """Modules that the reader imports."""
    by_name: bool = True
    """Whether a file is an image for its ending alone; arrays stand beside images for many reasons."""

    @property
    def is_installed(self) -> bool:
        """Whether images of this format can be read."""
        return _is_there(self.libraries)

    @property
    def needs(self) -> str:
        """What to do where it is not installed."""
        return f"pip install 'beit[{self.extra}]'" if self.extra else "pip install --upgrade 'pillow>=11.3'"

    @property
    def reason(self) -> str:
        """Why an image cannot be used where it is not installed, as `BadSample` has it."""
        return f"{NEEDS}{self.suffixes[0]}"

    def require(self) -> None:
        """Refuse an image of this format where its library is not installed.

        Raises:
            BadSample: it is not.
        """
        if not self.is_installed:
            raise BadSample(self.reason, words_of(self.reason))

    def reader(self) -> Reader:
        """Import what reads it.

        Raises:
            BadSample: its library is not installed.
        """
        self.require()
        return cast(Reader, importlib.import_module(f"beit.common.images.readers.{self.module}"))


def _begins(*starts: bytes) -> re.Pattern[bytes]:
    return re.compile(b"|".join(starts), re.DOTALL)


FORMATS = (
    Format("JPEG, PNG or WebP", ("jpg", "jpeg", "png", "webp", "jfif", "jpe", "mpo", "apng")),
    # Before TIFF, because the preamble of a DICOM file may be the head of one, for programs that know no DICOM.
    Format(
        "DICOM",
        ("dcm", "dicom"),
        _begins(
            rb".{128}DICM",
            # Without a preamble, by the first elements of group 2 or 8, little-endian: nothing else begins so.
            rb"\x02\0[\0-\x02]\0(UL|OB|UI)",
            rb"\x08\0[\0-\x18]\0((UL|CS|UI|DA)|[\x02-\x40]\0\0\0)",
        ),
        "dicom",
        "dicom",
        ("pydicom", "imagecodecs"),
    ),
    Format("TIFF", ("tif", "tiff"), _begins(rb"II[*+]\0", rb"MM\0[*+]"), "tiff", "tiff", ("tifffile", "imagecodecs")),
    Format("AVIF", ("avif",), libraries=("PIL._avif",)),
    Format("HEIC", ("heic", "heif", "hif"), None, "heic", "heif", ("pillow_heif",)),
    Format("JPEG XL", ("jxl",), _begins(rb"\xff\x0a", rb"\0\0\0\x0cJXL \r\n\x87\n"), "jxl", "jxl", ("imagecodecs",)),
    Format("NumPy", ("npy",), _begins(rb"\x93NUMPY"), module="npy", by_name=False),
)
"""In order of preference where a sample of a tar has several images."""
OTHER_NAMES = ", ".join(form.name for form in FORMATS[1:])
IMAGE_SUFFIXES = tuple(suffix for form in FORMATS if form.by_name for suffix in form.suffixes)
"""File endings and tar suffixes that mean "an image", in order of preference where a sample has several."""
ARRAY_SUFFIXES = tuple(suffix for form in FORMATS if not form.by_name for suffix in form.suffixes)
"""Endings of files that are images where a folder has no others, or a list names them."""
_BY_SUFFIX = {suffix: form for form in FORMATS for suffix in form.suffixes}
_USUAL_STARTS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"), "heic"),
}
"""What files of the kind of MP4 say that they are, the more telling first."""
_MOST_BRANDS = 32


def format_of(data: bytes) -> Format | None:
    """Return the format of an image by its first bytes, None for one that Pillow has to tell, or that is none."""
    if data.startswith(tuple(_USUAL_STARTS)):
        return None
    if data[4:8] == b"ftyp":
        brands = {data[8:12]} | {data[start : start + 4] for start in range(16, _brands_end(data), 4)}
        return next((_BY_SUFFIX[suffix] for brand, suffix in _BRANDS.items() if brand in brands), None)
    return next((form for form in FORMATS if form.magic is not None and form.magic.match(data)), None)


def _brands_end(data: bytes) -> int:
    return min(int.from_bytes(data[:4], "big"), len(data), 16 + 4 * _MOST_BRANDS)


def suffix_to_store(data: bytes) -> str:
    """Return what an image is called in a store, by its content.

    What is none of these is stored all the same, and counted as unusable when it is decoded.
    """
    form = format_of(data)
    if form is not None:
        return form.suffixes[0]
    return next((suffix for start, suffix in _USUAL_STARTS.items() if data.startswith(start)), "jpg")


def without_private(data: bytes) -> bytes:
    """Return what a store keeps of an image: of DICOM, whose headers tell of patients, only what its pixels need.

    Raises:
        BadSample: that cannot be told.
    """
    form = format_of(data)
    if form is None or form.name != "DICOM":
        return data
    form.require()
    cleaned: bytes = importlib.import_module("beit.common.images.readers.dicom").without_patient(data)
    return cleaned


def words_of(reason: str) -> str:
    """Return what helps where an image cannot be used for a missing library; empty for any other reason."""
    form = _BY_SUFFIX.get(reason.removeprefix(NEEDS)) if reason.startswith(NEEDS) else None
    return f"{form.name} images are read after {form.needs}" if form is not None else ""


def is_image_path(path: str) -> bool:
    """Tell by its ending whether a path names an image, whether or not its format can be read here."""
    return suffix_of(path) in IMAGE_SUFFIXES


def is_array_path(path: str) -> bool:
    """Tell by its ending whether a path names an array that may be an image."""
    return suffix_of(path) in ARRAY_SUFFIXES


def suffix_of(path: str) -> str:
    """Return the ending of a path in lower case, without the dot."""
    return os.path.splitext(path)[1].lower().lstrip(".")


def is_readable(suffix: str) -> bool:
    """Tell whether images of that ending, such as "tif" or "rgb.tif", can be read as far as libraries are concerned."""
    form = _BY_SUFFIX.get(suffix.rpartition(".")[2])
    return form is None or form.is_installed


def needs_of(suffix: str) -> str:
    """Return what lets images of an ending be read, such as "pip install 'beit[heic]'"; empty where they can be."""
    form = _BY_SUFFIX.get(suffix.rpartition(".")[2])
    return "" if form is None or form.is_installed else form.needs


def left_out(suffixes: Iterable[str]) -> str:
    """Say which images cannot be read here, and what would help; empty if there are none.

    Args:
        suffixes: Of each image, lower case.
    Returns:
        Such as "8 .heic left out (pip install 'beit[heic]')".
    """
    counts = Counter(suffix for suffix in suffixes if not is_readable(suffix))
    needs = sorted({_BY_SUFFIX[suffix.rpartition(".")[2]].needs for suffix in counts})
    named = ", ".join(f"{count} .{suffix}" for suffix, count in counts.most_common())
    return f"{named} left out ({'; '.join(needs)})" if counts else ""


@functools.cache
def _is_there(libraries: tuple[str, ...]) -> bool:
    try:
        return all(importlib.util.find_spec(name) is not None for name in libraries)
    except ImportError:  # of what a name lies in
        return False
