"""Settings of sources, the same for every command that reads images."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any

from beit.common.config import checked, within
from beit.common.images.decoding import Decoding
from beit.common.images.ranges import RangeSetting

MAX_MEGAPIXELS = 1000
_OF_DECODING = ("max_megapixels", "range", "channels", "alpha", "frame")


@checked("source")
class SourceConfig:
    """Which images of a source are read, and how."""

    max_megapixels: Annotated[float, within(f"(0, {MAX_MEGAPIXELS}]")] = 64.0
    """Larger images, by their headers, are skipped as bombs: decoding takes three bytes per pixel, or more."""
    image_member: str | None = None
    """Where a sample of a tar has several images: what follows the key in the member's name, such as "rgb.png", or some
    in order of preference, as "rgb.png;rgb.jpg". In Parquet, the image column."""
    range: RangeSetting = "dtype"
    """Which values become black and white, see `beit.common.images.ranges.ValueRange`."""
    channels: str | int | tuple[int, ...] = "rgb"
    """Which channels become those of the image, see `beit.common.images.decoding.Channels`."""
    alpha: str = "drop"
    """What lies behind transparent pixels, see `beit.common.images.decoding.Alpha`."""
    frame: int | str = "first"
    """Of several pages, see `beit.common.images.decoding.Frame`."""

    def __post_init__(self) -> None:
        self.decoding  # noqa: B018  # which says what is wrong with it

    @property
    def decoding(self) -> Decoding:
        """How images are decoded; percentiles are yet to be found."""
        return Decoding.of_settings(self)


def value_of_option(text: str) -> Any:
    """Return what an option on the command line means: a number, numbers between commas as a tuple, or a word."""
    for form in (text, f"[{text}]"):
        try:
            value = tomllib.loads(f"value = {form}")["value"]
        except (ValueError, RecursionError):
            continue
        return tuple(value) if isinstance(value, list) else value
    return text


def decoding_options(source: SourceConfig) -> list[str]:
    """Return the options by which a command without settings decodes as these do; what is usual is not said."""
    words: list[str] = []
    for name in _OF_DECODING:
        value = getattr(source, name)
        if value != getattr(SourceConfig(), name):
            numbers = value if isinstance(value, tuple) else (value,)
            text = ",".join(number if isinstance(number, str) else f"{number:.17g}" for number in numbers)
            words += [f"--{name.replace('_', '-')}", text]
    return words
