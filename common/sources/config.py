"""Settings of sources, the same for every command that reads images."""

from __future__ import annotations

import logging
import tomllib
from dataclasses import replace
from typing import Annotated, Any

from beit.common.config import checked, within
from beit.common.errors import require
from beit.common.images.decoding import DEFAULTS, Decoding
from beit.common.images.ranges import RangeSetting

MAX_MEGAPIXELS = 1000
_OF_DECODING = ("max_megapixels", *DEFAULTS)
logger = logging.getLogger(__name__)


@checked("source")
class SourceConfig:
    """Which images of a source are read, and how."""

    max_megapixels: Annotated[float, within(f"(0, {MAX_MEGAPIXELS}]")] = 64.0
    """Larger images, by their headers, are skipped as bombs: decoding takes three bytes per pixel, or more."""
    image_member: str | None = None
    """Where a sample of a tar has several images: what follows the key in the member's name, such as "rgb.png", or some
    in order of preference, as "rgb.png;rgb.jpg". In Parquet, the image column."""
    range: RangeSetting | None = None
    """Which values become black and white, see `beit.common.images.ranges.ValueRange`. As the next three, left out it
    is what the encoder or the model was trained with, and where there is none, the default of `Decoding`."""
    channels: str | tuple[int, ...] | None = None
    """Which channels become those of the image, see `beit.common.images.decoding.Channels`."""
    alpha: str | None = None
    """What lies behind transparent pixels, see `beit.common.images.decoding.Alpha`."""
    frame: int | str | None = None
    """Of several pages, see `beit.common.images.decoding.Frame`."""

    def __post_init__(self) -> None:
        self.decoding  # noqa: B018  # which says what is wrong with it

    @property
    def decoding(self) -> Decoding:
        """How images are decoded; percentiles are yet to be found."""
        return Decoding.of_settings(self)

    def with_values_of(self, training: Decoding) -> SourceConfig:
        """Return the settings for images beside those of a training, whose percentiles are found already."""
        found = training.value_range.found
        return self if found is None else replace(self, range=found)

    def after(self, trained: Decoding, model: str, *, is_final: bool = False) -> SourceConfig:
        """Return the settings for images that a model is to see: where they leave it open, what it was trained with.

        Args:
            trained: How the images were decoded that it learned from.
            model: Its place, for messages. What is set otherwise is said.
            is_final: Whether it is only used, so that it has no images of its own to find percentiles over.
        """
        brought: dict[str, Any] = {}
        found = trained.value_range.found
        for name, usual in DEFAULTS.items():
            setting, own = getattr(self, name), trained.setting(name)
            if name == "range" and found is not None:
                own = found
            if setting is None and own != usual:
                brought[name] = own
            elif setting is not None and setting != own:
                logger.warning("source.%s is %s, where %s was trained with %s", name, _text(setting), model, _text(own))
        settings = replace(self, **brought)
        require(
            settings.decoding.value_range.is_resolved or not is_final,
            f"source.range ({settings.range}): percentiles are found where a model is trained; leave it out for what "
            f"{model} was trained with, or give two values, such as 0,4095",
        )
        return settings


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
            words += [f"--{name.replace('_', '-')}", _text(value)]
    return words


def _text(value: Any) -> str:
    """Return a setting as an option has it."""
    numbers = value if isinstance(value, tuple) else (value,)
    return ",".join(number if isinstance(number, str) else repr(number).removesuffix(".0") for number in numbers)
