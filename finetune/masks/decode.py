"""From the bytes of a mask to a class id for every pixel.

Here: which numbers stand in a PNG, TIFF, GIF or BMP (`read_values`), and what they mean to a model (`MaskDecoder`). Not
here: where the meaning comes from (`values/meaning.py`), which files are masks (`folders.py`).

H, W pixels of a mask. Values are what the file holds: of grey and of palettes the numbers themselves, of RGB its three
bytes as one number, red the lowest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from beit.common.errors import BadSample
from beit.common.images.decode import load_image
from beit.common.images.decoding import MAX_PIXELS
from beit.finetune.masks.classes import IGNORED, Colour

ValueKind = Literal["ids", "colours"]
"""What the values of a mask are: numbers, or colours."""
_PNG_START = b"\x89PNG\r\n\x1a\n"
_OTHER_STARTS = (b"II*\0", b"MM\0*", b"GIF8", b"BM")
"""How TIFF, GIF and BMP begin."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Numbers of two tags of a TIFF, and what the second may say."""
_LOSSY = ("jpeg", "tiff_jpeg", "webp")
_DEPTH, _COLOUR_TYPE = 24, 25
"""Bytes of a PNG that say how many bits a channel has, and which channels there are."""
_GREY, _PALETTE = 0, 3
_SPREAD = {2: 85, 4: 17}
"""Factor by which Pillow spreads grey of so few bits over a byte."""
_OPAQUE = 255
_ALL_NUMBERS, _ALL_COLOURS = 1 << 16, 1 << 24
_NAMED = 3
"""Unknown values that a message names; arbitrary."""


class MaskValues(NamedTuple):
    """What a mask holds."""

    values: NDArray[Any]
    """Unsigned integers (H, W); uint8 or uint16 of numbers, uint32 of colours."""
    kind: ValueKind
    """What they are."""
    palette: NDArray[np.uint8] | None
    """Colours of the numbers, (up to 256, 3), where the file has a palette; they are never what is read."""


def read_values(data: bytes, *, max_pixels: int = MAX_PIXELS) -> MaskValues:
    """Return the values of a mask as its file holds them.

    Raises:
        BadSample: no PNG, TIFF, GIF or BMP, damaged, or of a kind whose values are not certain.
    """
    if data.startswith(_OTHER_STARTS):
        return _values_of_other(data, max_pixels=max_pixels)
    if data and not data.startswith(_PNG_START):
        _refuse_format(data)
    image = load_image(data, max_pixels=max_pixels)
    depth, colour_type = data[_DEPTH], data[_COLOUR_TYPE]
    if colour_type == _PALETTE:
        flat = image.getpalette("RGB") or []
        palette = np.array(flat, np.uint8).reshape(-1, 3)
        return MaskValues(np.asarray(image), "ids", palette)
    if colour_type == _GREY:
        values = np.asarray(image)
        if depth == 1:
            values = values.astype(np.uint8)
        elif depth in _SPREAD:
            values = values // _SPREAD[depth]
        return MaskValues(values.astype(np.uint16) if depth == 16 else values, "ids", None)
    if depth != 8:
        raise BadSample("mask-format", f"a PNG of colours with {depth} bits each; write one of 8 bits, or of numbers")
    return _of_bytes(image)


def _of_bytes(image: Image.Image) -> MaskValues:
    """Return the values of grey with transparency, or of colours, 8 bits each."""
    if image.mode in ("LA", "RGBA"):
        _refuse_transparency(np.asarray(image.getchannel("A")))
    if image.mode == "LA":
        return MaskValues(np.asarray(image.getchannel(0)), "ids", None)
    # With a fourth channel, a colour is one number in memory: three times as quick as shifting and adding.
    channels = np.asarray(image.convert("RGBA"))
    colours = channels.view("<u4")[..., 0] & np.uint32(_ALL_COLOURS - 1)
    return MaskValues(colours, "colours", None)


def _values_of_other(data: bytes, *, max_pixels: int) -> MaskValues:
    """Return the values of a TIFF, GIF or BMP, as far as it holds whole numbers or colours without loss."""
    image = load_image(data, max_pixels=max_pixels, formats=("TIFF", "GIF", "BMP"))
    name, way_out = image.format, "write it as PNG"

    def refuse_if(is_odd: bool, what: str) -> None:
        if is_odd:
            raise BadSample("mask-format", f"a {name} {what}; {way_out}")

    try:
        num_pictures = getattr(image, "n_frames", 1)
    except Exception as error:  # reads on behind the first, and has as many types of errors as decoders have
        raise BadSample("decode-error", f"{type(error).__name__}: {error}") from None
    refuse_if(num_pictures > 1, "of several pictures")
    bits: tuple[int, ...] = (8,)
    if isinstance(image, TiffImageFile):
        refuse_if(image.info.get("compression") in _LOSSY, "with compression that changes values")
        refuse_if(
            image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO, "in which 0 is white, so that numbers run backwards"
        )
        bits = tuple(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return MaskValues(np.asarray(image), "ids", palette)
    if image.mode in ("1", "L"):
        values = np.asarray(image).astype(np.uint8)
        return MaskValues(values // _SPREAD.get(bits[0], 1), "ids", None)
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        is_within = wide.min() >= 0 and wide.max() < _ALL_NUMBERS
        refuse_if(not is_within, f"of numbers from {wide.min()} to {wide.max()}, which must be 0 to {_ALL_NUMBERS - 1}")
        return MaskValues(wide.astype(np.uint16), "ids", None)
    refuse_if(image.mode == "F", "of numbers with fractions")
    refuse_if(image.mode not in ("LA", "RGB", "RGBA") or max(bits) != 8, f"of a kind that is not known ({image.mode})")
    return _of_bytes(image)


def packed(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return colours (..., 3) as numbers (...)."""
    wide: NDArray[np.uint32] = colours.astype(np.uint32)
    numbers: NDArray[np.uint32] = wide[..., 0] | (wide[..., 1] << np.uint32(8)) | (wide[..., 2] << np.uint32(16))
    return numbers


def packed_colour(colour: Colour) -> int:
    """Return one colour as a number."""
    red, green, blue = colour
    return red | green << 8 | blue << 16


def unpacked_colour(value: int) -> Colour:
    """Return the colour that a number stands for."""
    return value & 255, value >> 8 & 255, value >> 16


def value_text(value: int, kind: ValueKind) -> str:
    """Write a value as its user knows it: a number, or red, green and blue."""
    return str(value) if kind == "ids" else "({}, {}, {})".format(*unpacked_colour(value))


def is_grey(values: NDArray[Any]) -> bool:
    """Tell whether packed colours have three equal channels each, as programs write numbers into RGB."""
    return bool((values % 0x010101 == 0).all())


def unknown_text(unknown: Counter[int], kind: ValueKind) -> str:
    """Name values that are no class, with how many pixels have each."""
    shown = ", ".join(f"{value_text(value, kind)} in {count} pixels" for value, count in unknown.most_common(_NAMED))
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    return f"{'values' if kind == 'ids' else 'colours'} that are no class ({shown}{more})"


@dataclass(frozen=True, kw_only=True)
class MaskDecoder:
    """Turns encoded masks into class ids. Pickles."""

    kind: ValueKind
    """What the values are."""
    values: tuple[int, ...]
    """All that are known, ascending."""
    ids: tuple[int, ...]
    """The class id of each, `IGNORED` for none."""
    is_grey: bool = False
    """Whether masks are RGB of three equal channels, one of which is the number."""
    max_pixels: int = MAX_PIXELS
    """Largest mask that is decoded."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the tables behind."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def decode(self, mask_bytes: bytes, *, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return the class of every pixel, uint8 (H, W) in [0, C) or `IGNORED`.

        Args:
            mask_bytes: The encoded mask.
            size: Width and height of the image, which the mask must have.
        Raises:
            BadSample: the mask cannot be read, or has another size, or holds what is no class. All of them were looked
                at before a training began, so it has changed since.
        """
        found = read_values(mask_bytes, max_pixels=self.max_pixels)
        height, width = found.values.shape
        if size is not None and (width, height) != tuple(size):
            raise BadSample("mask-size", sizes_differ((width, height), size))
        values = self.numbers(found)
        table, unknown = self._table
        ids = table.take(values)
        is_unknown = ids == unknown
        if is_unknown.any():
            odd = Counter(values[is_unknown].ravel().tolist())
            raise BadSample("mask-values", f"it holds {unknown_text(odd, self.kind)}")
        return ids.astype(np.uint8, copy=False)

    def numbers(self, found: MaskValues) -> NDArray[Any]:
        """Return the values of a mask as this decoder knows them.

        Raises:
            BadSample: they are of another kind.
        """
        if self.is_grey and found.kind == "colours":
            if is_grey(found.values):
                return found.values & 255
        elif found.kind == self.kind:
            return found.values
        wanted, other = ("numbers", "colours") if self.kind == "ids" else ("colours", "numbers")
        raise BadSample("mask-values", f"it holds {other}, where other masks hold {wanted}")

    def to_ids(self, values: NDArray[Any]) -> NDArray[np.int16]:
        """Return the class ids of values of this decoder's kind, int16 of the same shape, -1 where they are unknown."""
        table, unknown = self._table
        ids = table.take(values).astype(np.int16)
        ids[ids == unknown] = -1
        return ids

    @cached_property
    def _table(self) -> tuple[NDArray[Any], int]:
        """Return the id of every possible value, and what stands for values that are unknown.

        In bytes, unless all 256 are taken.
        """
        unknown = next((number for number in range(256) if number not in self.ids), -1)
        size = _ALL_NUMBERS if self.kind == "ids" else _ALL_COLOURS
        table = np.full(size, unknown, np.int16 if unknown < 0 else np.uint8)
        table[list(self.values)] = self.ids
        return table, unknown


def class_id_decoder(num_classes: int, *, max_pixels: int = MAX_PIXELS) -> MaskDecoder:
    """Return what decodes masks that hold the class ids themselves."""
    values = (*range(num_classes), IGNORED)
    return MaskDecoder(kind="ids", values=values, ids=values, max_pixels=max_pixels)


def sizes_differ(mask: Iterable[int], image: Iterable[int]) -> str:
    """Say that a mask has another size than its image."""
    return "the mask has {} x {} px, its image {} x {}".format(*mask, *image)


def _refuse_format(data: bytes) -> None:
    if data.startswith(b"\xff\xd8\xff"):
        raise BadSample(
            "mask-format", "a JPEG, whose compression changes values and invents classes at every edge; write it as PNG"
        )
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        raise BadSample("mask-format", "a WebP image, which mostly has changed values; write it as PNG")
    load_image(data)  # says what it is where it is nothing known
    raise BadSample("mask-format", "no PNG, TIFF, GIF or BMP; write it as PNG")


def _refuse_transparency(alpha: NDArray[np.uint8]) -> None:
    if (alpha != _OPAQUE).any():
        raise BadSample(
            "mask-format", "a PNG with transparent pixels, whose colours mean nothing certain; write it without"
        )
