"""Everything that is found by looking at all masks of a source.

Not here: what is wrong with it (`problems.py`), the masks a training uses (`index.py`).

N images, C classes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError
from beit.common.images.decoding import Decoding
from beit.common.sources.config import SourceConfig
from beit.common.sources.index import LabelledIndex
from beit.common.sources.index_build import index_source
from beit.common.sources.types import Source
from beit.finetune.masks.class_table import read_class_table
from beit.finetune.masks.classes import IGNORED
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.types import MaskedSource
from beit.finetune.masks.values.facts import MaskFacts, gather_facts
from beit.finetune.masks.values.meaning import Meaning, find_meaning, meaning_of_ids


@dataclass(frozen=True)
class Examined:
    """A source of which every mask was looked at."""

    name: str
    """What its user calls it."""
    source: MaskedSource
    images: LabelledIndex
    masks: LabelledIndex
    """Beside each image its mask."""
    facts: MaskFacts
    meaning: Meaning | None
    """None where values mean nothing that is known."""
    reason: str = ""
    """Why not, in that case."""

    def __len__(self) -> int:
        return len(self.facts)

    @cached_property
    def values(self) -> NDArray[np.int64]:
        """The values of `facts.flat` as they are read, int64 (M,): of RGB that holds numbers, these."""
        values = self.facts.flat("values").astype(np.int64)
        return values & 255 if self.meaning is not None and self.meaning.is_grey else values

    @cached_property
    def ids(self) -> NDArray[np.int16]:
        """Own class id of each of `values`, int16 (M,); `IGNORED` for none, -1 where it is unknown."""
        assert self.meaning is not None
        return self.meaning.decoder(self.images.decoding.max_pixels).to_ids(self.values)

    @cached_property
    def pixel_counts(self) -> NDArray[np.int64]:
        """Pixels of each class in each mask, and of none in the last column, int64 (N, C + 1)."""
        assert self.meaning is not None
        num_classes = len(self.meaning.names)
        columns = np.where(self.ids == IGNORED, num_classes, self.ids)
        counts = np.zeros((len(self), num_classes + 1), np.int64)
        is_known = self.ids >= 0
        np.add.at(counts, (self.facts.owners[is_known], columns[is_known]), self.facts.flat("counts")[is_known])
        return counts

    @cached_property
    def unknown(self) -> Counter[int]:
        """Pixels of each value that is no class."""
        found: Counter[int] = Counter()
        is_unknown = self.ids < 0
        values, counts = self.values[is_unknown], self.facts.flat("counts")[is_unknown]
        for value, number in zip(values.tolist(), counts.tolist(), strict=True):
            found[value] += number
        return found

    @cached_property
    def is_wholly_ignored(self) -> NDArray[np.bool_]:
        """Tell which masks have no pixel of any class, bool (N,)."""
        return np.asarray(self.pixel_counts[:, :-1].sum(axis=1) == 0)

    def image(self, position: int) -> str:
        """Name an image."""
        return self.images.ref_at(position).path

    def mask(self, position: int) -> str:
        """Name a mask."""
        return self.masks.ref_at(position).path

    def first_with(self, value: int) -> str:
        """Name the first mask that holds a value."""
        return self.mask(int(self.facts.owners[self.values == value][0]))


def examine(source: MaskedSource, settings: MaskDataConfig, *, name: str, reading: SourceConfig) -> Examined:
    """Look at every mask of a source, or take what was found before.

    Args:
        source: Images and masks.
        settings: What masks mean.
        name: What the user calls them.
        reading: Which images are read.
    """
    digest = source.mask_digest or hashlib.sha256(f"masks of {source.images.digest}".encode()).hexdigest()
    mask_source = Source(
        kind=source.masks[0].kind,
        root=source.masks[0].location,
        shards=list(source.masks),
        class_names=None,
        digest=digest,
    )
    images = index_source(source.images, name=name, decoding=reading.decoding)
    masks = index_source(mask_source, name=name, decoding=Decoding(reading.decoding.max_pixels))
    assert images.shard_sizes.tolist() == masks.shard_sizes.tolist()
    facts = gather_facts(images, masks)
    meaning, reason = None, ""
    try:
        meaning = _meaning_of(source, facts, settings, name)
    except InputError as error:
        reason = str(error)
    return Examined(name, source, images, masks, facts, meaning, reason)


def _meaning_of(source: MaskedSource, facts: MaskFacts, settings: MaskDataConfig, name: str) -> Meaning:
    if source.is_ids:
        assert source.classes is not None
        if settings.classes is not None:
            raise InputError(f"{name} names its classes itself; leave data.classes ({settings.classes}) out")
        if settings.reduce_zero_label or settings.ignore != (IGNORED,):
            raise InputError(
                f"{name} has categories, not values that data.ignore or data.reduce_zero_label could name; leave these "
                "out (data.coco_background=false ignores the pixels of no annotation)"
            )
        return meaning_of_ids(source.classes)
    table = source.table if settings.classes is None else read_class_table(settings.classes)
    reduces = settings.reduce_zero_label or source.reduce_zero_label
    return find_meaning(facts, table, settings, reduce_zero_label=reduces, name=name)
