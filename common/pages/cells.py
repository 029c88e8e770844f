"""What a sheet of pictures consists of, kept in its PNG: texts, and where its pictures are.

A page sets it anew from that: with letters that can be read on a phone, in light and dark, and found by a search.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

_KEY = "beit:sheet"
"""In `Image.info`, and of the text in a PNG."""
_MOST_PIXELS = 64_000_000
"""Of a sheet that is read; arbitrary."""


class Box(NamedTuple):
    """Where a picture is, in pixels from the upper left."""

    left: int
    top: int
    right: int
    bottom: int

    def moved(self, right: int, down: int) -> Box:
        """Return the same box elsewhere."""
        return Box(self.left + right, self.top + down, self.right + right, self.bottom + down)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Pictures in rows and columns."""

    boxes: Sequence[Sequence[Box | None]]
    """Row by row; None where a cell is empty."""
    titles: Sequence[str] = ()
    """One per column, or none."""
    labels: Sequence[str] = ()
    """One per row, or none."""
    captions: Sequence[Sequence[str]] = ()
    """One per cell, or none."""

    def moved(self, right: int, down: int) -> Grid:
        """Return the same grid elsewhere."""
        return replace(self, boxes=[[box and box.moved(right, down) for box in row] for row in self.boxes])


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """A sheet, or a part of one."""

    heading: str = ""
    facts: str = ""
    legend: str = ""
    bodies: Sequence[Grid] = field(default_factory=list)
    """Top to bottom. A chart is a grid of one."""

    def moved(self, right: int, down: int) -> Described:
        """Return the same elsewhere."""
        return replace(self, bodies=[body.moved(right, down) for body in self.bodies])


def describe(image: Image.Image, what: Described) -> None:
    """Note what an image consists of."""
    image.info[_KEY] = what


def described(image: Image.Image) -> Described:
    """Return what is noted of an image; of one without a note, that it is a single picture."""
    found = image.info.get(_KEY)
    if isinstance(found, Described):
        return found
    return Described(bodies=[Grid(boxes=[[Box(0, 0, image.width, image.height)]])])


def as_png_text(image: Image.Image) -> PngInfo | None:
    """Return what `png_bytes` writes beside the pixels; None where nothing is noted."""
    if _KEY not in image.info:
        return None
    text = PngInfo()
    text.add_itxt(_KEY, json.dumps(asdict(image.info[_KEY])), zip=True)
    return text


def read_sheet(path: Path) -> Image.Image:
    """Read a PNG and what it says of itself; a note that is damaged is passed over.

    Raises:
        OSError: it cannot be read as a picture.
    """
    with Image.open(path) as file:
        if file.width * file.height > _MOST_PIXELS:
            raise OSError(f"{path} is too large for a page ({file.width} x {file.height} pixels)")
        text = getattr(file, "text", {}).get(_KEY)
        image = file.convert("RGB")
    image.info.pop(_KEY, None)
    if text is not None:
        try:
            describe(image, _parsed(json.loads(text), image))
        except (ValueError, TypeError, KeyError):
            pass  # the picture as a whole can still be shown
    return image


def _parsed(value: dict[str, Any], image: Image.Image) -> Described:
    texts = {name: str(value[name]) for name in ("heading", "facts", "legend")}
    bodies = []
    for body in value["bodies"]:
        boxes = [[None if box is None else Box(*map(int, box)) for box in row] for row in body["boxes"]]
        for box in (box for row in boxes for box in row if box is not None):
            if not (0 <= box.left < box.right <= image.width and 0 <= box.top < box.bottom <= image.height):
                raise ValueError(f"{box} is outside the picture")
        captions = [[str(text) for text in row] for row in body["captions"]]
        lists = {name: [str(text) for text in body[name]] for name in ("titles", "labels")}
        bodies.append(Grid(boxes=boxes, captions=captions, **lists))
    return Described(**texts, bodies=bodies)
