"""What the values that masks hold mean: from a table of classes, or from the values themselves, to a decoder.

Here: which value is which class, and which is none. Not here: finding the values (`facts.py`), files of classes
(`class_table.py`).

K values, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from beit.common.errors import InputError, require
from beit.common.sources.labels import ClassMatcher, meant_number, unknown_classes
from beit.finetune.masks.class_table import ClassEntry, ClassTable
from beit.finetune.masks.classes import IGNORED, MAX_CLASSES, Colour, MaskClasses, voc_colours
from beit.finetune.masks.decode import MaskDecoder, ValueKind, packed_colour, unpacked_colour
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.values.facts import MaskFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Meaning:
    """What the values of some masks mean."""

    kind: ValueKind
    is_grey: bool
    """Whether numbers are written as RGB of three equal channels."""
    names: tuple[str, ...]
    """C names of the data's own classes."""
    colours: tuple[Colour, ...]
    """C colours."""
    class_of: Mapping[int, int]
    """Own class id of each value that is known, `IGNORED` where it means no class."""
    origin: str
    """Where that stands: a file, a published table, or the masks themselves."""
    stated: Mapping[int, ClassEntry] = field(default_factory=dict)
    """What the table says of each value."""

    def decoder(self, max_pixels: int, ids: Sequence[int] | None = None) -> MaskDecoder:
        """Return what decodes such masks.

        Args:
            max_pixels: Largest mask that is decoded.
            ids: Id of each class; left out, its own.
        """
        values = sorted(self.class_of)
        own = [self.class_of[value] for value in values]
        if ids is not None:
            own = [class_id if class_id == IGNORED else ids[class_id] for class_id in own]
        return MaskDecoder(
            kind=self.kind, values=tuple(values), ids=tuple(own), is_grey=self.is_grey, max_pixels=max_pixels
        )

    def classes(self) -> MaskClasses:
        """Return the data's own classes."""
        return MaskClasses(names=self.names, colours=self.colours)


def meaning_of_ids(classes: MaskClasses) -> Meaning:
    """Return the meaning of masks that hold class ids already."""
    values = (*range(len(classes)), IGNORED)
    return Meaning(
        kind="ids",
        is_grey=False,
        names=classes.names,
        colours=classes.colours,
        class_of={value: value for value in values},
        origin="the data themselves",
    )


def find_meaning(
    facts: MaskFacts, table: ClassTable | None, settings: MaskDataConfig, *, reduce_zero_label: bool, name: str
) -> Meaning:
    """Return what the values of masks mean.

    Args:
        facts: What they hold, all of one kind.
        table: Names, where any are known.
        settings: Values that mean nothing.
        reduce_zero_label: Whether 0 means no class and 1 the first.
        name: Of the data, for messages.
    """
    kinds = [kind for kind in facts.strings("kind") if kind]
    is_colours = "colours" in kinds
    has_table = table is not None and table.has_colours
    is_grey = is_colours and not has_table and sum(facts.table["is_grey"].to_pylist()) == len(kinds)
    if is_colours and not is_grey:
        require(has_table, _colours_without_table(facts, table, name))
        assert table is not None
        return _by_colours(table)
    if table is None:
        return _by_numbers(facts, settings, reduce_zero_label=reduce_zero_label, is_grey=is_grey, name=name)
    return _by_values(table, facts, settings, reduce_zero_label=reduce_zero_label, is_grey=is_grey)


def ids_of_model(meaning: Meaning, model: MaskClasses, used: Iterable[int], *, name: str) -> list[int]:
    """Return the id that a model gives each class of some data, matched by name.

    Args:
        meaning: Of the data.
        model: Its classes.
        used: Ids of the data's own classes that have pixels.
        name: Of the data, for messages.
    """
    matcher = ClassMatcher(model.names)
    found = [matcher.find(own) for own in meaning.names]
    unknown = [meaning.names[own] for own in used if found[own] is None]
    if unknown and all(meant_number(one) is not None for one in (*unknown, *model.names)):
        raise InputError(
            f"the masks of {name} hold {_listed(unknown)}, which is no class of the model's ({_listed(model.names)}); "
            "name all classes in data.classes=FILE when training, or what means none in data.ignore"
        )
    are_numbers = [all(meant_number(one) is not None for one in side) for side in (unknown, model.names)]
    if unknown and are_numbers[0] != are_numbers[1]:
        raise InputError(
            f"the classes of {name} are {'numbers' if are_numbers[0] else 'names'} ({_listed(unknown)}), the model's "
            f"{'numbers' if are_numbers[1] else 'names'} ({_listed(model.names)}); say which is which in a file: "
            "--class-names FILE, in a training data.classes=FILE; the config.json of a model is one, too"
        )
    require(not unknown, unknown_classes(name, unknown, model.names))
    return [IGNORED if class_id is None else class_id for class_id in found]


def _by_colours(table: ClassTable) -> Meaning:
    classes = [entry for entry in table.entries if entry.is_class]
    _require_several(classes, table.origin)
    class_of = {packed_colour(entry.colour): IGNORED for entry in table.entries if entry.colour is not None}
    class_of |= {packed_colour(entry.colour): i for i, entry in enumerate(classes) if entry.colour is not None}
    return Meaning(
        kind="colours",
        is_grey=False,
        names=tuple(entry.name for entry in classes),
        colours=_colours(classes, {}),
        class_of=class_of,
        origin=table.origin,
        stated={packed_colour(entry.colour): entry for entry in table.entries if entry.colour is not None},
    )


def _by_values(
    table: ClassTable, facts: MaskFacts, settings: MaskDataConfig, *, reduce_zero_label: bool, is_grey: bool
) -> Meaning:
    entries = _with_values(table, reduce_zero_label=reduce_zero_label)
    ignored = {*settings.ignore, *([0] if reduce_zero_label else [])}
    clash = next((value for value, entry in entries.items() if entry.is_class and value in ignored), None)
    if clash is not None:
        own = entries[clash].name
        raise InputError(
            f"{table.origin} calls the value {clash} {own}, and data.ignore "
            f"({_listed(settings.ignore)}) says that it means no class; take it out of one of them, such as with "
            "--set data.ignore=[]"
        )
    classes = {value: entry for value, entry in sorted(entries.items()) if entry.is_class}
    _require_several(list(classes.values()), table.origin)
    class_of = dict.fromkeys([*entries, *ignored], IGNORED) | {value: i for i, value in enumerate(classes)}
    return Meaning(
        kind="ids",
        is_grey=is_grey,
        names=tuple(entry.name for entry in classes.values()),
        colours=_colours(list(classes.values()), _palette(facts), list(classes)),
        class_of=class_of,
        origin=table.origin,
        stated=entries,
    )


def _with_values(table: ClassTable, *, reduce_zero_label: bool) -> dict[int, ClassEntry]:
    """Return the entries by the value that masks hold.

    Where the value 0 means nothing, lists count from 1, and so do files that say values and call 0 something.
    """
    stated = [entry.value for entry in table.entries]
    numbers = [i if value is None else value for i, value in enumerate(stated)]
    shift = int(reduce_zero_label and 0 in numbers)
    return {number + shift: entry for number, entry in zip(numbers, table.entries, strict=True)}


def _by_numbers(
    facts: MaskFacts, settings: MaskDataConfig, *, reduce_zero_label: bool, is_grey: bool, name: str
) -> Meaning:
    """Make every value that occurs a class of that name."""
    found = {value & 255 if is_grey else value for value in facts.pixels_of_values()}
    ignored = {*settings.ignore, *([0] if reduce_zero_label else [])}
    values = sorted(found - ignored)
    require(
        len(values) <= MAX_CLASSES,
        f"the masks of {name} hold {len(values)} different values ({_listed(values)}), more than the {MAX_CLASSES} "
        "classes of a model; are they numbers of objects? name the classes in data.classes=FILE",
    )
    entries = [ClassEntry(name=str(value), value=value) for value in values]
    class_of = dict.fromkeys(ignored, IGNORED) | {value: i for i, value in enumerate(values)}
    return Meaning(
        kind="ids",
        is_grey=is_grey,
        names=tuple(entry.name for entry in entries),
        colours=_colours(entries, _palette(facts), values),
        class_of=class_of,
        origin="the values in the masks",
    )


def _colours(
    entries: Sequence[ClassEntry], palette: Mapping[int, Colour], values: Sequence[int] = ()
) -> tuple[Colour, ...]:
    """Return the colours of classes: those of their table, or of the masks' palette, or PASCAL VOC's."""
    stated = [entry.colour for entry in entries if entry.colour is not None]
    if len(stated) == len(entries):
        return tuple(stated)
    shown = [palette[value] for value in values if value in palette]
    if len(shown) == len(entries) == len(set(shown)):
        return tuple(shown)
    return voc_colours(len(entries))


def _palette(facts: MaskFacts) -> dict[int, Colour]:
    pairs = zip(facts.flat("values").tolist(), facts.flat("colours").tolist(), strict=True)
    return {value: unpacked_colour(colour) for value, colour in pairs if colour >= 0}


def _require_several(classes: Sequence[ClassEntry], origin: str) -> None:
    require(
        2 <= len(classes) <= MAX_CLASSES,
        f"{origin} names {len(classes)} classes ({_listed([entry.name for entry in classes])}); segmentation knows 2 "
        f"to {MAX_CLASSES}, what is not the object being one, too",
    )


def _colours_without_table(facts: MaskFacts, table: ClassTable | None, name: str) -> str:
    totals = facts.pixels_of_values()
    most = max(totals, key=lambda value: totals[value], default=0)
    lacking = f"{table.origin} has no colours" if table is not None else "nothing says what they mean"
    return (
        f"the masks of {name} hold colours, most often {unpacked_colour(most)}, and {lacking}; give a table with the "
        "columns r, g, b and name, --set data.classes=FILE"
    )


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
