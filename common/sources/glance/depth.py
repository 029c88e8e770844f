"""Whether the full range, which nobody has chosen, crushes what deep images show, or a chosen one misses images.

What that means is defined in `common/images/depth.py` and `common/images/missed.py`. Either is asked of the same few
images: where there is a range of given or found values the full one is not in use.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from beit.common.images.decoding import Decoding
from beit.common.images.depth import may_be_deep, num_looked_at, warn_of_idle_range
from beit.common.images.missed import Drawn, RangeOption, missed_by
from beit.common.sources.glance.few import few_of, named
from beit.common.sources.index import LabelledIndex
from beit.common.sources.types import Source

logger = logging.getLogger(__name__)

_MANY_IMAGES = 1000
"""Where nobody has counted them."""


def warn_of_range(
    source: Source | LabelledIndex,
    decoding: Decoding,
    *,
    num_images: int | None = None,
    option: RangeOption = "--set",
) -> None:
    """Say it where the range leaves little of the images of a source, by a few of them.

    Args:
        source: Of the images.
        decoding: As they are decoded. With the full range, deep images are looked at; with given or found values, all.
        num_images: Of the source, where that is known; an index knows.
        option: How the command sets a range.
    """
    warn_of_missed(source, decoding, num_images=num_images, option=option)
    if not decoding.value_range.needs_values:
        few = few_of(source, _num_looked_at(source, num_images), wants=may_be_deep)
        warn_of_idle_range(named(few), decoding)


def warn_of_missed(
    source: Source | LabelledIndex, decoding: Decoding, *, num_images: int | None = None, option: RangeOption
) -> None:
    """Say it where a range of given or found values, a model's or one of other images, misses those of a source."""
    if not decoding.value_range.needs_values:
        return
    missed = missed_by(_drawn(source, _num_looked_at(source, num_images)), decoding)
    if missed is not None:
        name = source.name if isinstance(source, LabelledIndex) else source.root
        logger.warning("%s: %s", name, missed.warning(option=option))


def _num_looked_at(source: Source | LabelledIndex, num_images: int | None) -> int:
    return num_looked_at((len(source) if isinstance(source, LabelledIndex) else num_images) or _MANY_IMAGES)


def _drawn(source: Source | LabelledIndex, num: int) -> Iterator[Drawn]:
    names: Sequence[str] = source.class_names or ()
    for one in few_of(source, num):
        label = one.ref.label
        name = None if label is None else str(label)
        if isinstance(label, int) and 0 <= label < len(names):
            name = names[label]
        yield Drawn(one.ref.path, one.read, name)
