"""Whether deep images use little of their range, which nobody has chosen.

What that means is defined in `common/images/depth.py`.
"""

from __future__ import annotations

from functools import partial

from beit.common.images.decoding import Decoding
from beit.common.images.depth import may_be_deep, num_looked_at, warn_of_idle_range
from beit.common.sources.glance.few import few_of_index, few_of_source
from beit.common.sources.index import LabelledIndex
from beit.common.sources.types import Source

_MANY_IMAGES = 1000
"""Where nobody has counted them."""


def warn_of_range(source: Source | LabelledIndex, decoding: Decoding, *, num_images: int | None = None) -> None:
    """Say it where the images of a source are deep and use little of their range, by a few of them.

    Args:
        source: Of the images.
        decoding: As the settings say; with another range than "dtype" nothing is looked at.
        num_images: Of the source, where that is known; an index knows.
    """
    if isinstance(source, LabelledIndex):
        few = few_of_index(source, num_looked_at(len(source)), wants=may_be_deep)
    else:
        few = few_of_source(source, num_looked_at(num_images or _MANY_IMAGES), wants=may_be_deep)
    warn_of_idle_range(((ref.path, partial(reader.read, ref)) for reader, ref in few), decoding)
