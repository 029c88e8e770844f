"""Letters in pictures: one typeface for sheets and charts, and texts cut or broken to a width in pixels.

The typeface is DejaVu Sans, which matplotlib brings, so that pictures look the same everywhere. Names may hold letters
it lacks, such as those of Chinese and Japanese; they are taken from a font of the machine where there is one.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

ELLIPSIS = "…"
_NOWHERE = "\U0010ffff"
"""A letter that no typeface has; drawn is what stands for those."""
_OTHERS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKjp-Regular.otf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "unifont.otf",
    "Hiragino Sans GB.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "malgun.ttf",
)
"""Files of fonts with many letters, of Linux, macOS and Windows; Pillow looks for them where those keep fonts."""


def font(size: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the typeface, `size` pixels high, or the first that has more of the letters of `text`."""
    own = _own(size)
    unusual = "".join(sorted({letter for letter in text if ord(letter) > 0x24F}))
    if not unusual or not _lacking(own, unusual):
        return own
    return min((own, *_others(size)), key=lambda face: _lacking(face, unusual))  # the first of equals


@lru_cache(maxsize=32)
def _own(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    found = importlib.util.find_spec("matplotlib")  # not imported, which takes half a second
    for folder in (found.submodule_search_locations or ()) if found else ():
        file = Path(folder) / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


@lru_cache(maxsize=32)
def _others(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    return tuple(_opened(size))


def _opened(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    for name in _OTHERS:
        try:
            yield ImageFont.truetype(name, size)
        except OSError:
            continue


def _lacking(face: ImageFont.FreeTypeFont | ImageFont.ImageFont, letters: str) -> int:
    """Count the letters that a typeface draws as it draws what it lacks."""
    nothing = bytes(face.getmask(_NOWHERE))
    return sum(bytes(face.getmask(letter)) == nothing for letter in letters)


def text_px(text: str, size: int) -> float:
    """Return the width of a line of text in pixels."""
    return font(size, text).getlength(text) if text else 0.0


def fitted(text: str, width_px: float, size: int) -> str:
    """Cut a line that is wider than `width_px` in its middle: names differ at their beginning or at their end."""
    if text_px(text, size) <= width_px:
        return text
    low, high = 0, len(text) - 1  # letters kept
    while low < high:
        kept = (low + high + 1) // 2
        if text_px(_without_middle(text, kept), size) <= width_px:
            low = kept
        else:
            high = kept - 1
    return _without_middle(text, low)


def _without_middle(text: str, kept: int) -> str:
    """Keep so many letters, the first ones and the last; marks that belong to a letter do not stand alone."""
    first, last = text[: kept - kept // 2], text[len(text) - kept // 2 :]
    while last and unicodedata.combining(last[0]):
        last = last[1:]
    return f"{first.rstrip()}{ELLIPSIS}{last.lstrip()}"


def wrapped(text: str, width_px: float, size: int) -> list[str]:
    """Break a text between words into lines no wider than `width_px`; longer words are cut. None for an empty text.

    Its own line breaks stay.
    """
    return [line for part in text.splitlines() for line in _lines(part, width_px, size)]


def _lines(text: str, width_px: float, size: int) -> list[str]:
    lines: list[str] = []
    for word in text.replace(" %", "\u00a0%").split(" "):  # a percent sign stays with its number
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_px(longer, size) <= width_px:
            lines[-1] = longer
        else:
            lines.append(fitted(word, width_px, size))
    return lines
