"""Whether transparent images hide colours that tokenising and training would show.

What that means is defined in `common/images/alpha.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from beit.common.errors import BadSample
from beit.common.images.alpha import hides_colours
from beit.common.images.decode import read_samples
from beit.common.images.decoding import Decoding
from beit.common.sources.glance.few import Few, few_of
from beit.common.sources.glance.headers import image_facts
from beit.common.sources.index import LabelledIndex
from beit.common.sources.types import SampleRef, ShardReader, Source

logger = logging.getLogger(__name__)

_LOOKED_AT = 64
"""Images; arbitrary. Of those of a name that no transparent image has, none is read."""
_WITHOUT = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
WAY_OUT = 'source.alpha="white" (or "black", "checker") lays them on a background instead'


def warn_of_hidden_colours(source: Source | LabelledIndex, decoding: Decoding) -> None:
    """Say so where dropping the transparency of images would show what nobody sees of them.

    Args:
        source: Of which some images are looked at.
        decoding: As the settings say; with another background than "drop" nothing is looked at.
    """
    if decoding.alpha != "drop":
        return
    name = source.name if isinstance(source, LabelledIndex) else source.root
    few = few_of(source, _LOOKED_AT, wants=could_be_transparent)
    if found := hidden_colours(few, decoding):
        logger.warning("%s: %s; %s", name, found, WAY_OUT)


def could_be_transparent(path: str) -> bool:
    """Tell by its name whether an image may have transparent parts."""
    return os.path.splitext(path)[1].lower() not in _WITHOUT


def hidden_colours(few: Iterable[Few], decoding: Decoding) -> str:
    """Return in words how many of some images hide colours, see `hides_colours`; empty where none does."""
    num_looked, num_transparent, hiding = 0, 0, []
    for _, reader, ref in few:
        num_looked += 1
        hides = hides_colours_of(reader, ref, decoding)
        num_transparent += hides is not None
        if hides:
            hiding.append(ref.path)
    if not hiding:
        return ""
    return (
        f"of {num_looked} images looked at, {num_transparent} are transparent in parts, and {len(hiding)} of these "
        f"hide colours there that differ from what is seen around them (first: {hiding[0]}); transparency is dropped, "
        "so these colours show"
    )


def hides_colours_of(reader: ShardReader, ref: SampleRef, decoding: Decoding) -> bool | None:
    """Tell whether an image hides colours; None where it is not transparent at all, or cannot be read."""
    try:
        facts = image_facts(reader, ref)
        if not facts.has_alpha:
            return None
        samples = read_samples(reader.read(ref), decoding)
        return None if samples.alpha is None else hides_colours(samples)
    except BadSample:  # met and counted where images are read
        return None
