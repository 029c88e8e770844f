"""From the bytes of a mask to a class id for every pixel.

Here: which numbers stand in a PNG (`read_values`), and what they mean to a model (`MaskDecoder`). Not here: where the
meaning comes from (`values/meaning.py`), which files are masks (`folders.py`).

H, W pixels of a mask. Values are what the file holds: of grey and palette PNGs the numbers themselves, of RGB its three
bytes as one number, red first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample
from beit.common.images import MAX_PIXELS, load_image
from beit.finetune.masks.classes import IGNORED, Colour

ValueKind = Literal["ids", "colours"]
"""What the values of a mask are: numbers, or colours."""
_PNG_START = b"\x89PNG\r\n\x1a\n"
_DEPTH, _COLOUR_TYPE = 24, 25
"""Bytes of a PNG that say how many bits a channel has, and which channels there are."""
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_SPREAD = {2: 85, 4: 17}
"""Factor by which Pillow spreads grey of so few bits over a byte."""
_OPAQUE = 255
_LARGEST = 1 << 16
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
        BadSample: no PNG, damaged, or of a kind whose values are not certain.
    """
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
    channels = np.asarray(image)
    if colour_type in (_GREY_ALPHA, _RGBA):
        _refuse_transparency(channels[..., -1])
        channels = channels[..., :-1]
    if colour_type == _GREY_ALPHA:
        return MaskValues(channels[..., 0], "ids", None)
    return MaskValues(packed(channels), "colours", None)


def packed(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return colours (..., 3) as numbers (...)."""
    wide: NDArray[np.uint32] = colours.astype(np.uint32)
    return (wide[..., 0] << np.uint32(16)) | (wide[..., 1] << np.uint32(8)) | wide[..., 2]


def packed_colour(colour: Colour) -> int:
    """Return one colour as a number."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def unpacked_colour(value: int) -> Colour:
    """Return the colour that a number stands for."""
    return value >> 16, value >> 8 & 255, value & 255


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
        ids = self.to_ids(values)
        if (ids < 0).any():
            odd = Counter(values[ids < 0].ravel().tolist())
            raise BadSample("mask-values", f"it holds {unknown_text(odd, self.kind)}")
        return ids.astype(np.uint8)

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
        if self.kind == "ids":
            ids: NDArray[np.int16] = self._table[values]
            return ids
        places = np.searchsorted(self._known, values).clip(max=len(self._known) - 1)
        ids = self._ids[places]
        ids[self._known[places] != values] = -1
        return ids

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        table = np.full(_LARGEST, -1, np.int16)
        table[list(self.values)] = self.ids
        return table

    @cached_property
    def _known(self) -> NDArray[np.uint32]:
        return np.array(self.values, np.uint32)

    @cached_property
    def _ids(self) -> NDArray[np.int16]:
        return np.array(self.ids, np.int16)


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
    raise BadSample("mask-format", "no PNG; write it as PNG")


def _refuse_transparency(alpha: NDArray[np.uint8]) -> None:
    if (alpha != _OPAQUE).any():
        raise BadSample(
            "mask-format", "a PNG with transparent pixels, whose colours mean nothing certain; write it without"
        )
