"""The progress of a tokenisation as a user wants to see it: views, with the rate of images and the count of skipped."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from beit.common.progress import Progress


class TokenizeProgress:
    """Counts images and shows views.

    Args:
        total_images: Images of the work that is known; None when unknown.
        views: K, views per image; with 0, images are shown instead.
        images_done: By earlier runs, skipped ones included.
        skipped: Of those.
        enabled: False on every rank but the first.
    """

    def __init__(
        self, total_images: int | None, *, views: int, images_done: int = 0, skipped: int = 0, enabled: bool = True
    ) -> None:
        self._factor = max(1, views)
        self._shows_views = views > 0
        self._images, self._skipped = 0, skipped
        self._started = time.monotonic()
        self._progress = Progress(
            None if total_images is None else total_images * self._factor,
            unit="views" if views else "images",
            description="tokenize",
            initial=images_done * self._factor,
            enabled=enabled,
        )

    def __enter__(self) -> Self:
        """Start counting."""
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar, or write the last line."""
        self._progress.__exit__(kind, value, trace)

    def add(self, *, images: int = 0, skipped: int = 0) -> None:
        """Note finished and skipped images."""
        self._images += images
        self._skipped += skipped
        fields: dict[str, str | int | float] = {}
        if self._shows_views:
            fields["images/s"] = f"{self._images / max(time.monotonic() - self._started, 1e-9):.1f}"
        fields["skipped"] = self._skipped
        self._progress.update((images + skipped) * self._factor, **fields)

    def grow(self, images: int) -> None:
        """Note that there are `images` more to do than was known."""
        self._progress.grow(images * self._factor)
