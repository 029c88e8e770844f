"""Everything that is found by looking at all masks of a source, and the reasons to refuse them.

Not here: the table that says it all at once (`check.py`), the masks a training uses (`index.py`).

N images, C classes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError
from beit.common.pages.numbers import count
from beit.common.sources.config import SourceConfig
from beit.common.sources.index import LabelledIndex
from beit.common.sources.index_build import index_source
from beit.common.sources.types import Source
from beit.finetune.masks.class_table import read_class_table
from beit.finetune.masks.classes import IGNORED
from beit.finetune.masks.decode import packed_colour, unknown_text, value_text
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.types import MaskedSource
from beit.finetune.masks.values.facts import MaskFacts, gather_facts
from beit.finetune.masks.values.meaning import Meaning, find_meaning, meaning_of_ids

_ADE20K_CLASSES = 150


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
    def ids(self) -> NDArray[np.int16]:
        """Own class id of each entry of `facts.flat`, int16 (M,); `IGNORED` for none, -1 where it is unknown."""
        assert self.meaning is not None
        values = self.facts.flat("values").astype(np.int64)
        if self.meaning.is_grey:
            values = values & 255
        return self.meaning.decoder(self.images.max_pixels).to_ids(values)

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
        values, counts = self.facts.flat("values")[is_unknown], self.facts.flat("counts")[is_unknown]
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
        return self.mask(int(self.facts.owners[self.facts.flat("values") == value][0]))


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
    images = index_source(source.images, name=name, max_pixels=reading.max_pixels)
    masks = index_source(mask_source, name=name, max_pixels=reading.max_pixels)
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
        return meaning_of_ids(source.classes)
    table = source.table if settings.classes is None else read_class_table(settings.classes)
    reduces = settings.reduce_zero_label or source.reduce_zero_label
    return find_meaning(facts, table, settings, reduce_zero_label=reduces, name=name)


def problems_of(found: Examined, settings: MaskDataConfig, *, for_training: bool) -> Iterator[str]:
    """Yield what keeps masks from being used, a line each, what explains others first."""
    yield from _unpaired(found, settings)
    yield from _unreadable(found)
    yield from _mixed_kinds(found)
    yield from _other_sizes(found)
    yield from _renumbered(found)
    if found.meaning is None:
        yield found.reason
        return
    yield from _unknown(found)
    num_pixels = found.pixel_counts[:, :-1].sum(axis=0)
    used = np.flatnonzero(num_pixels)
    if not len(used) and not found.unknown:
        ignored = ", ".join(map(str, found.facts.pixels_of_values()))
        yield (
            f"all pixels of all masks of {found.name} are ignored (values: {ignored}); name the classes "
            "in data.classes=FILE, and what means none in data.ignore"
        )
    elif for_training and len(used) == 1 and not found.unknown:
        yield _one_class(found, found.meaning.names[used[0]])


def hints_of(found: Examined, settings: MaskDataConfig) -> Iterator[str]:
    """Yield what is no problem, and may be another thing than its user thinks, a line each."""
    source = found.source
    if settings.skip_unpaired:
        if images := source.without_mask:
            yield f"{found.name}: {count(len(images), 'image')} without a mask left out (first: {images[0]})"
        if masks := source.without_image:
            yield f"{found.name}: {count(len(masks), 'mask')} without an image left out (first: {masks[0]})"
    turned = np.flatnonzero(found.facts.is_turned)
    if len(turned):
        yield (
            f"{found.name}: EXIF data have {count(len(turned), 'image')} turned (first: "
            f"{found.image(int(turned[0]))}); masks are taken to be of the turned images"
        )
    meaning = found.meaning
    if meaning is None:
        return
    if meaning.is_grey:
        yield f"{found.name}: masks are RGB of three equal channels, which are read as numbers"
    if meaning.kind == "ids" and meaning.class_of.get(0, IGNORED) != IGNORED:
        values = set(found.facts.pixels_of_values()) - {IGNORED}
        if {0, _ADE20K_CLASSES} <= values and max(values) == _ADE20K_CLASSES:
            yield (
                f"{found.name}: values from 0 to {_ADE20K_CLASSES} look like ADE20K, where 0 means no class; if so, "
                "set data.reduce_zero_label=true"
            )


def _unpaired(found: Examined, settings: MaskDataConfig) -> Iterator[str]:
    if settings.skip_unpaired:
        return
    images, masks = found.source.without_mask, found.source.without_image
    way_out = "add what is missing, or leave them out with --set data.skip_unpaired=true"
    if images:
        yield f"{found.name} has {count(len(images), 'image')} without a mask (first: {images[0]}); {way_out}"
    if masks:
        yield f"{found.name} has {count(len(masks), 'mask')} without an image (first: {masks[0]}); {way_out}"


def _unreadable(found: Examined) -> Iterator[str]:
    problems = found.facts.strings("problem")
    bad = [position for position, problem in enumerate(problems) if problem]
    if bad:
        yield (
            f"{found.name} has {count(len(bad), 'mask')} that cannot be used (first: {found.mask(bad[0])}: "
            f"{problems[bad[0]]})"
        )


def _mixed_kinds(found: Examined) -> Iterator[str]:
    kinds = found.facts.strings("kind")
    numbers, colours = kinds.count("ids"), kinds.count("colours")
    if numbers and colours:
        yield (
            f"{found.name} has {count(numbers, 'mask')} of numbers and {colours} of colours (first: "
            f"{found.mask(kinds.index('ids'))} and {found.mask(kinds.index('colours'))}); write all of one kind"
        )


def _other_sizes(found: Examined) -> Iterator[str]:
    bad = np.flatnonzero(found.facts.differs)
    if not len(bad):
        return
    first = int(bad[0])
    mask, image = found.facts.mask_sizes[first], found.facts.image_sizes[first]
    hint = "make them again at the size of the images, or resize them by nearest neighbours"
    if found.facts.is_turned[first] and (mask == found.facts.stored_sizes[first]).all():
        hint = "its EXIF data have the image turned, and the mask is of the image before that; turn the mask, too"
    yield (
        f"{found.name} has {count(len(bad), 'mask')} of another size than the image (first: {found.mask(first)} has "
        f"{mask[0]} x {mask[1]} px, {found.image(first)} {image[0]} x {image[1]}); {hint}"
    )


def _renumbered(found: Examined) -> Iterator[str]:
    """Yield if the colours of palettes contradict each other or the table: a program has numbered them anew."""
    values, colours = found.facts.flat("values").astype(np.int64), found.facts.flat("colours").astype(np.int64)
    pairs, entries = np.unique(np.stack([values, colours]), axis=1, return_index=True)
    way_out = (
        "as if a program had numbered colours anew; write masks without a palette, or in RGB with a table of colours"
    )
    stated = {} if found.meaning is None else found.meaning.stated
    own = {packed_colour(entry.colour): entry.name for entry in stated.values() if entry.colour is not None}
    first: dict[int, tuple[int, str]] = {}
    for value, colour, entry in zip(*pairs.tolist(), entries.tolist(), strict=True):
        if colour < 0:
            continue
        shown, mask = value_text(colour, "colours"), found.mask(int(found.facts.owners[entry]))
        other, other_mask = first.setdefault(value, (colour, mask))
        if other != colour:
            yield (
                f"the palettes of {found.name} disagree: the value {value} is {value_text(other, 'colours')} in "
                f"{other_mask} and {shown} in {mask}, {way_out}"
            )
            return
        if value in stated and own.get(colour, stated[value].name) != stated[value].name:
            yield (
                f"in {mask} of {found.name} the value {value} has the colour {shown} of {own[colour]}, and is "
                f"{stated[value].name} by {_stated_in(found)}, {way_out}"
            )
            return


def _stated_in(found: Examined) -> str:
    """Say where it stands what values mean."""
    return "" if found.meaning is None else found.meaning.origin


def _unknown(found: Examined) -> Iterator[str]:
    if not found.unknown:
        return
    assert found.meaning is not None
    value = found.unknown.most_common(1)[0][0]
    what = "in data.ignore" if found.meaning.kind == "ids" else "under the name void"
    hint = ""
    if found.meaning.kind == "ids" and 255 in found.meaning.class_of:
        made = next((odd for odd in (15, 3, 1) if odd in found.unknown), None)
        hint = f"; {made} may be what a PNG of few bits made of 255" if made is not None else ""
    yield (
        f"the masks of {found.name} hold {unknown_text(found.unknown, found.meaning.kind)}, first in "
        f"{found.first_with(value)}; {_stated_in(found)} lacks them: name them in data.classes=FILE, or {what} if they "
        f"mean none{hint}"
    )


def _one_class(found: Examined, name: str) -> str:
    values = found.facts.pixels_of_values()
    hint = ""
    if 255 in values and found.meaning is not None and found.meaning.class_of.get(255) == IGNORED:
        example = '{"0": "background", "255": "object"}'
        hint = f"; if the value 255 is one, too, set data.ignore=[] and data.classes=FILE, a file such as {example}"
    return (
        f"the masks of {found.name} hold one class only ({name}); segmentation needs two or more, what is not the "
        f"object being one, too{hint}"
    )


def require_sound(found: Examined, settings: MaskDataConfig, *, for_training: bool) -> Meaning:
    """Refuse masks with a problem, and return what the values of others mean."""
    problems = list(problems_of(found, settings, for_training=for_training))
    if problems:
        more = f" (and {len(problems) - 1} more: --check lists them)" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}")
    assert found.meaning is not None
    return found.meaning
