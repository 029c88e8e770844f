"""What keeps masks from being used, and what may be another thing than their user thinks: a line each.

Here: reasons to refuse, and hints, from what was found (`examined.py`). Not here: the table of `--check`, which says
all at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from beit.common.errors import InputError
from beit.common.pages.numbers import count
from beit.finetune.masks.classes import IGNORED
from beit.finetune.masks.decode import packed_colour, unknown_text, value_text
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.values.examined import Examined
from beit.finetune.masks.values.meaning import Meaning

_ADE20K_CLASSES = 150
_MANY_VALUES = 64
"""Without names more are hardly classes; arbitrary."""
_LARGEST_BYTE = 255
_CUT = (15, 3, 1)
"""What PNGs of 4, 2 and 1 bits keep of 255."""
_COLOUR_BITS = (1 << 32) - 1
_MANY_UNKNOWN = 20
"""More values that are no class have one cause; arbitrary."""


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
    yield from _spread(found)
    yield from _beyond_palette(found)
    num_pixels = found.pixel_counts[:, :-1].sum(axis=0)
    used = np.flatnonzero(num_pixels)
    if not found.facts.pixels_of_values():
        return  # none can be read, as was said
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
    unread = np.flatnonzero(found.facts.is_unread)
    if len(unread):
        yield (
            f"{found.name}: {count(len(unread), 'image')} cannot be read (first: {found.image(int(unread[0]))}); left "
            "out"
        )
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
    if not meaning.stated and meaning.kind == "ids":
        yield from _hints_of_numbers(found, settings, meaning)
    if meaning.kind == "ids" and meaning.class_of.get(0, IGNORED) != IGNORED:
        values = set(found.facts.pixels_of_values()) - {IGNORED}
        if {0, _ADE20K_CLASSES} <= values and max(values) == _ADE20K_CLASSES:
            yield (
                f"{found.name}: values from 0 to {_ADE20K_CLASSES} look like ADE20K, where 0 means no class; if so, "
                "set data.reduce_zero_label=true"
            )


def _hints_of_numbers(found: Examined, settings: MaskDataConfig, meaning: Meaning) -> Iterator[str]:
    """Yield if values that nothing names look like something else than classes."""
    largest = max((value for value, own in meaning.class_of.items() if own != IGNORED), default=0)
    way_out = "name the classes in data.classes=FILE"
    if settings.ignore and meaning.class_of.get(IGNORED, IGNORED) != IGNORED:
        listed = ", ".join(map(str, settings.ignore))
        yield (
            f"{found.name}: the value {IGNORED} is a class, since data.ignore ({listed}) does not list it; add it "
            "there if it means none"
        )
    if largest > _LARGEST_BYTE:
        yield f"{found.name}: values go up to {largest}; are they numbers of objects, not of classes? {way_out}"
    elif len(meaning.names) > _MANY_VALUES and largest != _ADE20K_CLASSES:
        yield (
            f"{found.name}: masks hold {len(meaning.names)} different values, as if they had been resized with "
            f"interpolation or saved as JPEG; if so, make them again, else {way_out}"
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
    colours = found.facts.flat("colours").astype(np.int64) + 1  # no colour is -1
    codes, entries = np.unique(found.facts.flat("values").astype(np.int64) << 32 | colours, return_index=True)
    pairs = zip((codes >> 32).tolist(), ((codes & _COLOUR_BITS) - 1).tolist(), entries.tolist(), strict=True)
    way_out = (
        "as if a program had numbered colours anew; write masks without a palette, or in RGB with a table of colours"
    )
    stated = {} if found.meaning is None else found.meaning.stated
    own = {packed_colour(entry.colour): entry.name for entry in stated.values() if entry.colour is not None}
    first: dict[int, tuple[int, str]] = {}
    for value, colour, entry in pairs:
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


def _spread(found: Examined) -> Iterator[str]:
    """Yield if values that nothing names are multiples of 85 or 17: numbers of 2 or 4 bits that became shades."""
    assert found.meaning is not None
    if found.meaning.kind != "ids" or found.meaning.stated or found.source.is_ids:
        return
    values = sorted({*found.values.tolist()})
    if _are_shades(values):
        shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        yield (
            f"the masks of {found.name} hold shades ({shown}), as programs make them of numbers of 2 or 4 bits; write "
            "the numbers themselves, or name the values in data.classes=FILE"
        )


def _beyond_palette(found: Examined) -> Iterator[str]:
    """Yield if a value that nothing names is what few bits keep of 255, and its own file has no colour for it."""
    assert found.meaning is not None
    if found.meaning.kind != "ids" or found.meaning.stated or found.source.is_ids:
        return
    owners, has_colour = found.facts.owners, found.facts.flat("colours") >= 0
    has_palette = np.bincount(owners[has_colour], minlength=len(found)) > 0
    is_cut = np.isin(found.values, _CUT) & (found.ids != IGNORED) & ~has_colour & has_palette[owners]
    if is_cut.any():
        first = int(np.argmax(is_cut))
        value = int(found.values[first])
        yield (
            f"the masks of {found.name} hold the value {value}, for which their palette has no colour (first: "
            f"{found.mask(int(owners[first]))}), as if a program had cut {IGNORED} to few bits; if so, set "
            f"data.ignore=[{value},{IGNORED}], else name the classes in data.classes=FILE"
        )


def _are_shades(values: Collection[int]) -> bool:
    return (
        sum(value > 0 for value in values) > 1
        and max(values) <= _LARGEST_BYTE
        and all(value % 17 == 0 for value in values)
    )


def _unknown(found: Examined) -> Iterator[str]:
    if not found.unknown:
        return
    assert found.meaning is not None
    value = found.unknown.most_common(1)[0][0]
    what = "in data.ignore" if found.meaning.kind == "ids" else "under the name void"
    hint = ""
    if found.meaning.kind == "ids" and 255 in found.meaning.class_of:
        made = next((odd for odd in _CUT if odd in found.unknown), None)
        hint = f"; {made} may be what a PNG of few bits made of 255" if made is not None else ""
        hint = "; a program may have made shades of numbers of 2 or 4 bits" if _are_shades(found.unknown) else hint
    if len(found.unknown) > _MANY_UNKNOWN:
        hint = "; so many come from interpolation, when masks are resized or drawn with soft edges, or from JPEG"
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
