"""Whether the full range, which nobody has chosen, crushes what deep images show, or a chosen one misses images.

What that means is defined in `common/images/depth.py` and `missed.py`. Either is asked of the same few images: where
there is a range of given or found values the full one is not in use.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from beit.common.images.decoding import Decoding
from beit.common.images.depth import may_be_deep, num_looked_at, warn_of_idle_range
from beit.common.images.missed import Drawn, missed_by
from beit.common.sources.glance.few import few_of, named
from beit.common.sources.index import LabelledIndex
from beit.common.sources.types import Source

logger = logging.getLogger(__name__)

_MANY_IMAGES = 1000
"""Where nobody has counted them."""


def warn_of_range(
    source: Source | LabelledIndex, decoding: Decoding, *, num_images: int | None = None, option: str = "--set"
) -> None:
    """Say it where the range leaves little of the images of a source, by a few of them.

    Args:
        source: Of the images.
        decoding: As they are decoded. With the full range, deep images are looked at; with given or found values, all.
        num_images: Of the source, where that is known; an index knows.
        option: How the command sets a range, "--set" or "--range".
    """
    if isinstance(source, LabelledIndex):
        num_images = len(source)
    num = num_looked_at(num_images or _MANY_IMAGES)
    if decoding.value_range.needs_values:
        missed = missed_by(_drawn(source, num), decoding)
        if missed is not None:
            name = source.name if isinstance(source, LabelledIndex) else source.root
            logger.warning("%s: %s", name, missed.warning(option=option))
        return
    warn_of_idle_range(named(few_of(source, num, wants=may_be_deep)), decoding)


def _drawn(source: Source | LabelledIndex, num: int) -> Iterator[Drawn]:
    names: Sequence[str] = source.class_names or ()
    for one in few_of(source, num):
        label = one.ref.label
        is_named = isinstance(label, int) and 0 <= label < len(names)
        yield Drawn(one.ref.path, one.read, names[label] if is_named else None if label is None else str(label))
