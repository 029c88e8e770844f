"""What `beit finetune segmentation DATA --check` says: what masks hold, and all that is wrong, before anything trains.

Here: the survey of a DATA and its table. What is looked at is `values/examined.py`, the reasons to refuse are
`values/problems.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from beit.common.errors import InputError, printable
from beit.common.pages.numbers import count, percent
from beit.common.pages.tables import aligned, folded, shortened
from beit.common.sources.config import SourceConfig
from beit.finetune.masks.classes import IGNORED, MAX_CLASSES, MaskClasses
from beit.finetune.masks.decode import value_text
from beit.finetune.masks.opening import open_parts, open_val
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.values.examined import Examined, examine
from beit.finetune.masks.values.meaning import Meaning, ids_of_model
from beit.finetune.masks.values.problems import hints_of, problems_of

_MOST_ROWS = 300
"""Values that a table lists; what has more is no mask of classes."""
_NAME_COLUMNS = 28
_NO_CLASS, _UNKNOWN = "(no class)", "(unknown)"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueFacts:
    """One value that masks hold."""

    value: str
    """The number, or red, green and blue."""
    name: str | None
    """What it is called; None where nothing says so."""
    is_class: bool
    """Whether it is a class."""
    is_known: bool
    """Whether it is a class, or is known to mean none."""
    pixels: int
    """In all masks."""
    share: float
    """Of the pixels of all classes, for a class; of all pixels, for others; in [0, 1]."""
    masks: int
    """In which it occurs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartFacts:
    """A part of a DATA."""

    name: str
    """What it is called."""
    images: int
    """That have a mask."""
    smallest: tuple[int, int]
    """Width and height of the image with the fewest pixels, as far as they can be read."""
    largest: tuple[int, int]
    """Of the one with the most."""
    without_mask: int
    """Images left over."""
    without_image: int
    """Masks left over."""
    unread: int
    """Images of which not even the size can be read."""
    unreadable: int
    """Masks that cannot be used."""
    other_size: int
    """Masks of another size than the image."""
    turned: int
    """Images that their EXIF data have turned."""
    wholly_ignored: int
    """Masks without a pixel of any class."""
    unknown_values: int
    """Values that are no class."""
    values: tuple[ValueFacts, ...]
    """All that occur, and those of classes that do not, ascending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What the masks of a DATA hold, and what keeps them from being trained on."""

    data: str
    classes: tuple[str, ...]
    """Names, in the order of their ids."""
    classes_from: str
    """Where they stand."""
    parts: tuple[PartFacts, ...]
    """What would be learned from, and, where there is something, what would be measured on."""
    notes: tuple[str, ...]
    """How the data were read."""
    problems: tuple[str, ...]
    """Why a training would be refused, a line each."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)

    def as_table(self) -> str:
        """Return it as text for a terminal."""
        named = (
            f"{count(len(self.classes), 'class', plural='classes')} by {self.classes_from}"
            if self.classes
            else "no classes"
        )
        blocks = ["\n".join([self.data, f"  {named}", *(folded(f"  {note}", indent="    ") for note in self.notes)])]
        blocks.append(aligned([["", *self._headings()], *self._counts()], align="<>"))
        if any(part.values for part in self.parts):
            blocks.append(self._values())
        if len(self.problems) > 1:  # of one the command's error says all
            blocks.append(
                "\n".join(["refused for:", *(folded(f"- {problem}", indent="  ") for problem in self.problems)])
            )
        return printable("\n\n".join(blocks), keep="\n")

    def _headings(self) -> list[str]:
        roles = ("train", "val")
        return [f"{role}" for role, _ in zip(roles, self.parts, strict=False)]

    def _counts(self) -> list[list[str]]:
        def row(label: str, field: str) -> list[str]:
            return [label, *(str(getattr(part, field)) for part in self.parts)]

        def size(label: str, field: str) -> list[str]:
            return [label, *("{} x {}".format(*getattr(part, field)) for part in self.parts)]

        return [
            row("images with a mask", "images"),
            size("smallest image", "smallest"),
            size("largest image", "largest"),
            row("images without a mask", "without_mask"),
            row("masks without an image", "without_image"),
            row("images that cannot be read", "unread"),
            row("masks that cannot be used", "unreadable"),
            row("masks of another size than the image", "other_size"),
            row("images turned by their EXIF data", "turned"),
            row("masks without any class", "wholly_ignored"),
            row("values that are no class", "unknown_values"),
        ]

    def _values(self) -> str:
        heading = ["value", "class"]
        for role in self._headings():
            heading += [f"{role} pixels", "masks"]
        rows = [heading]
        by_value = [{value.value: value for value in part.values} for part in self.parts]
        listed: dict[str, ValueFacts] = {}
        for part in by_value:
            listed |= {key: value for key, value in part.items() if key not in listed}
        for key, value in sorted(listed.items(), key=lambda item: _order(item[0])):
            row = [key, _shown(value)]
            for part in by_value:
                found = part.get(key)
                row += [percent(found.share), str(found.masks)] if found is not None else ["-", "0"]
            rows.append(row)
        if len(rows) > _MOST_ROWS:
            rows = [*rows[:_MOST_ROWS], [f"and {len(rows) - _MOST_ROWS} more"]]
        return aligned(rows, align="<<>")


def survey(data: str, settings: MaskDataConfig, *, reading: SourceConfig) -> Survey:
    """Look at every mask of a DATA, and of what it would be measured on, as `open_training_masks` does.

    Args:
        data: Images with masks.
        settings: What masks mean.
        reading: Which images are read.
    """
    opened = open_parts(data, settings, reading=reading)
    train = examine(opened.train, settings, name=opened.name, reading=reading)
    problems = list(problems_of(train, settings, for_training=True))
    examined = [train]
    notes = [*opened.train.notes, *hints_of(train, settings)]
    if (measured := open_val(opened, settings, reading=reading)) is not None:
        val, val_name = measured
        found = examine(val, settings, name=val_name, reading=reading)
        problems += problems_of(found, settings, for_training=False)
        problems += _other_classes(train, found)
        examined.append(found)
        notes += [note for note in (*val.notes, *hints_of(found, settings)) if note not in notes]
    meaning = train.meaning
    return Survey(
        data=data,
        classes=() if meaning is None else meaning.names,
        classes_from="" if meaning is None else meaning.origin,
        parts=tuple(_part(found) for found in examined),
        notes=tuple(notes),
        problems=tuple(problems),
    )


def _other_classes(train: Examined, val: Examined) -> list[str]:
    """Return the problem that `val` has classes which `train` lacks, if so."""
    if train.meaning is None or val.meaning is None or not 2 <= len(train.meaning.names) <= MAX_CLASSES:
        return []  # what is wrong with the first is said by itself
    model = MaskClasses(names=train.meaning.names, colours=train.meaning.colours)
    used = np.flatnonzero(val.pixel_counts[:, :-1].sum(axis=0)).tolist()
    try:
        ids_of_model(val.meaning, model, used, name=val.name)
    except InputError as error:
        return [str(error)]
    return []


def _part(found: Examined) -> PartFacts:
    facts = found.facts
    sizes = facts.image_sizes
    pixels = sizes.prod(axis=1)
    known = np.flatnonzero(pixels)
    smallest, largest = (0, 0), (0, 0)
    if len(known):
        ends = sizes[known[np.argmin(pixels[known])]], sizes[known[np.argmax(pixels[known])]]
        smallest, largest = ((int(end[0]), int(end[1])) for end in ends)
    return PartFacts(
        name=found.name,
        images=len(found),
        smallest=smallest,
        largest=largest,
        without_mask=len(found.source.without_mask),
        without_image=len(found.source.without_image),
        unread=int(facts.is_unread.sum()),
        unreadable=sum(bool(problem) for problem in facts.strings("problem")),
        other_size=int(facts.differs.sum()),
        turned=int(facts.is_turned.sum()),
        wholly_ignored=0 if found.meaning is None else int(found.is_wholly_ignored.sum()),
        unknown_values=0 if found.meaning is None else len(found.unknown),
        values=_values_of(found),
    )


def _values_of(found: Examined) -> tuple[ValueFacts, ...]:
    facts, meaning = found.facts, found.meaning
    pixels = facts.pixels_of_values()
    found_values, counts = np.unique(facts.flat("values"), return_counts=True)
    masks = dict(zip(found_values.tolist(), counts.tolist(), strict=True))
    kind = meaning.kind if meaning is not None else "colours" if "colours" in facts.strings("kind") else "ids"
    own: dict[int, int | None] = dict.fromkeys(pixels)
    if meaning is not None:
        own = {value: meaning.class_of.get(_as_read(value, meaning.is_grey)) for value in pixels}
        absent = set(range(len(meaning.names))) - set(own.values())
        for value, missing in meaning.class_of.items():
            if missing in absent:
                own[value], pixels[value], masks[value] = missing, 0, 0
    total = sum(pixels.values())
    in_classes = sum(number for value, number in pixels.items() if own[value] not in (None, IGNORED))
    rows = []
    for value, number in sorted(pixels.items()):
        class_id = own[value]
        is_class = class_id is not None and class_id != IGNORED
        rows.append(
            ValueFacts(
                value=value_text(_as_read(value, meaning is not None and meaning.is_grey), kind),
                name=_name_of(_as_read(value, meaning.is_grey), meaning) if meaning is not None else None,
                is_class=is_class,
                is_known=class_id is not None,
                pixels=number,
                share=number / max(1, in_classes if is_class else total),
                masks=masks[value],
            )
        )
    return tuple(rows)


def _name_of(value: int, meaning: Meaning) -> str | None:
    class_id = meaning.class_of.get(value, IGNORED)
    if class_id != IGNORED:
        return meaning.names[class_id]
    return meaning.stated[value].name if value in meaning.stated else None


def _shown(value: ValueFacts) -> str:
    if value.is_class:
        return shortened(value.name or "", _NAME_COLUMNS)
    state = _NO_CLASS if value.is_known else _UNKNOWN
    return f"{shortened(value.name, _NAME_COLUMNS - len(state) - 1)} {state}" if value.name else state


def _as_read(value: int, is_grey: bool) -> int:
    return value & 255 if is_grey else value


def _order(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (0, text)
