"""Whether the full range, which nobody has chosen, crushes what deep images show.

What that means is defined in `common/images/depth.py`.
"""

from __future__ import annotations

from beit.common.images.decoding import Decoding
from beit.common.images.depth import may_be_deep, num_looked_at, warn_of_idle_range
from beit.common.sources.glance.few import few_of, named
from beit.common.sources.index import LabelledIndex
from beit.common.sources.types import Source

_MANY_IMAGES = 1000
"""Where nobody has counted them."""


def warn_of_range(source: Source | LabelledIndex, decoding: Decoding, *, num_images: int | None = None) -> None:
    """Say it where the images of a source are deep and little of them is left in 8 bits, by a few of them.

    Args:
        source: Of the images.
        decoding: As the settings say; with another range than "dtype" nothing is looked at.
        num_images: Of the source, where that is known; an index knows.
    """
    if isinstance(source, LabelledIndex):
        num_images = len(source)
    warn_of_idle_range(named(few_of(source, num_looked_at(num_images or _MANY_IMAGES), wants=may_be_deep)), decoding)
