"""Settings of sources, the same for every command that reads images."""

from __future__ import annotations

from typing import Annotated

from beit.common.config import checked, within

MAX_MEGAPIXELS = 1000


@checked("source")
class SourceConfig:
    """Which images of a source are read."""

    max_megapixels: Annotated[float, within(f"(0, {MAX_MEGAPIXELS}]")] = 64.0
    """Larger images, by their headers, are skipped as bombs: decoding takes three bytes per pixel, or more."""
    image_member: str | None = None
    """Where a sample of a tar has several images: what follows the key in the member's name, such as "rgb.png", or some
    in order of preference, as "rgb.png;rgb.jpg". In Parquet, the image column."""

    @property
    def max_pixels(self) -> int:
        """The most pixels of an image."""
        return round(self.max_megapixels * 1e6)
