"""Files that say what the values of masks mean: names, and where masks hold colours, the colour of each.

Here: the forms such files have, and where they are looked for beside the data. Tables of published data sets are
`values/published.py`; what a table makes of the values that masks hold is `values/meaning.py`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from beit.common.errors import InputError, require
from beit.common.sources.class_names import ClassNames, read_class_names
from beit.common.sources.labels import one_form
from beit.common.sources.lists import read_text
from beit.common.sources.splits import split_kind
from beit.common.storage.paths import WEB_SCHEMES, join
from beit.common.storage.place import place_of
from beit.finetune.masks.classes import Colour

USUAL_FILES = (
    "classes.json",
    "class_dict.csv",
    "label_colors.txt",
    "labelmap.txt",
    "_classes.csv",
    "objectInfo150.txt",
    "classes.csv",
    "classes.txt",
    "class_names.txt",
)
"""What such files are called beside data, ours first: exports of SegNet, CVAT, Roboflow, ADE20K, LabelMe."""
_VOID = ("void", "ignore", "ignored", "unlabelled", "unlabeled", "dont care")
"""Names that mean no class."""
_LABELME_FIRST = "__ignore__"
"""First line of LabelMe's class_names.txt, for the value -1: the second is for 0."""
_VALUE_COLUMNS = ("value", "pixel value", "pixel_value", "id", "idx", "index", "label_id", "class_id", "category_id")
_NAME_COLUMNS = ("name", "class", "class_name", "category", "label", "names")
_VALUE_OR_NAME_COLUMNS = ("label", "class", "category")
"""Values, where they hold whole numbers and another column the names."""
_CHANNEL_COLUMNS = (("r", "red"), ("g", "green"), ("b", "blue"))
_COLOUR_COLUMNS = ("color", "colour", "rgb", "hex")
_HEX = re.compile(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_THREE = re.compile(r"\s*[\[(]?\s*(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})\s*[\])]?\s*")
_COLOUR_LINE = re.compile(r"\s*(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\S.*?)\s*")
_CVAT_LINE = re.compile(r"\s*([^:#][^:]*):\s*(\d{1,3}),(\d{1,3}),(\d{1,3})\s*:.*")
_NAME_LINE = re.compile(r"\s*([^,#][^,]*),\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*")
_BYTE, _LARGEST = 255, 65535
_FORMS = (
    "a JSON list of names, a JSON object of values and names, a table (CSV) with the columns value or r, g, b, and "
    "name, or one name per line"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassEntry:
    """What one value of masks means."""

    name: str
    value: int | None = None
    """As masks hold it; None where the file only gives an order."""
    colour: Colour | None = None
    """Where the file says it."""
    is_class: bool = True
    """Whether such pixels count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassTable:
    """What the values of masks mean."""

    origin: str
    """The file, or the data set, for messages."""
    entries: tuple[ClassEntry, ...]
    """In the order of the file."""
    is_published: bool = False
    """Whether it comes with this package, so that values in it which are no class need no mention."""

    @property
    def has_colours(self) -> bool:
        """Tell whether masks of colours can be read by it."""
        return all(entry.colour is not None for entry in self.entries)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the file."""
        return tuple(entry.name for entry in self.entries if entry.is_class)


def read_class_table(file: str) -> ClassTable:
    """Read a file or URL that names classes."""
    require(not file.lower().endswith((".yaml", ".yml")), f"{file} is YAML; it must be {_FORMS}")
    text = read_text(file)
    start = text.lstrip()[:1]
    if start in ("[", "{"):
        entries = list(_json_entries(file, text))
    elif found := (
        _matched(text, _COLOUR_LINE, _colour_entry)
        or _matched(text, _CVAT_LINE, _named_colour)
        or _matched(text, _NAME_LINE, _named_colour)
    ):
        entries = found
    elif (table := _delimited(file, text)) is not None:
        entries = table
    else:
        entries = _named(read_class_names(file))
    return _checked(file, entries)


def table_beside(root: str) -> ClassTable | None:
    """Return what a file beside tars or tables says; None where none is there. Web servers are not asked for each name.

    Args:
        root: Folder or URL that they lie in; where it is a part of a set, or called data, the one above counts, too.
    """
    if root.startswith(WEB_SCHEMES):
        return None
    above, _, name = root.rpartition("/")
    for folder in (root, above) if split_kind(name) or name == "data" else (root,):
        for file in (*USUAL_FILES, "id2label.json"):
            if place_of(join(folder, file)).exists():
                return read_class_table(join(folder, file))
    return None


def is_void(name: str) -> bool:
    """Tell whether a name means no class."""
    return re.sub(r"['’\-_\s]+", " ", name.lower()).strip(" ").replace("don t", "dont") in _VOID


def _checked(file: str, entries: Sequence[ClassEntry]) -> ClassTable:
    require(bool(entries), f"{file} names no classes; it must be {_FORMS}")
    for entry in entries:
        require(
            entry.value is None or 0 <= entry.value <= _LARGEST,
            f"{file} gives {entry.name} the value {entry.value}; values of masks are 0 to {_LARGEST}",
        )
    _refuse_twice(file, "the value", [(entry.value, entry.name) for entry in entries])
    _refuse_twice(file, "the colour", [(entry.colour, entry.name) for entry in entries])
    _refuse_twice(file, "the name", [(entry.name, entry.name) for entry in entries if entry.is_class])
    with_value = sum(entry.value is not None for entry in entries)
    require(with_value in (0, len(entries)), f"{file} gives some classes a value and others none; give each one")
    return ClassTable(origin=file, entries=tuple(entries))


def _refuse_twice(file: str, what: str, facts: Iterable[tuple[Any, str]]) -> None:
    names: dict[Any, str] = {}
    for fact, name in facts:
        if fact is None:
            continue
        require(fact not in names, f"{file} has {what} {fact} twice ({names.get(fact)} and {name}); leave it once")
        names[fact] = name


def _entry(name: Any, *, file: str, value: int | None = None, colour: Colour | None = None) -> ClassEntry:
    text = one_form(name.strip()) if isinstance(name, str) else ""
    require(text != "", f"{file} calls a class {name!r}; names must be texts")
    return ClassEntry(name=text, value=value, colour=colour, is_class=not is_void(text))


def _named(names: ClassNames) -> list[ClassEntry]:
    first = int(names.of.get(0) == _LABELME_FIRST)
    return [_entry(name, file=names.file, value=value - first) for value, name in names.of.items() if value >= first]


def _json_entries(file: str, text: str) -> Iterator[ClassEntry]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}); it must be {_FORMS}") from None
    is_within = False
    if isinstance(content, dict):
        whole, content = content, _inside(content)
        is_within = content is not whole
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        yield from (_json_entry(file, entry) for entry in content)
    elif isinstance(content, list):
        yield from (_entry(name, file=file) for name in content)
    elif content and all(_is_whole(value) for value in content.values()):
        yield from (_entry(name, file=file, value=value) for name, value in content.items())
    elif content and all(isinstance(value, list) and len(value) == 3 for value in content.values()):
        yield from (
            _entry(name, file=file, colour=_colour(file, ",".join(map(str, value)))) for name, value in content.items()
        )
    elif is_within and all(number.isdecimal() for number in content):
        yield from (_entry(name, file=file, value=int(number)) for number, name in content.items())
    else:
        yield from _named(read_class_names(file))


def _inside(content: dict[str, Any]) -> Any:
    """Return where an object of more than names has them: a segmentation model of ours, COCO, and others."""
    segmentation = content.get("segmentation")
    if isinstance(segmentation, dict) and isinstance(segmentation.get("classes"), dict):
        classes = segmentation["classes"]
        names, colours = classes.get("names"), classes.get("colours")
        if isinstance(names, list) and isinstance(colours, list) and len(names) == len(colours):
            pairs = zip(names, colours, strict=True)
            return [{"id": i, "name": name, "color": colour} for i, (name, colour) in enumerate(pairs)]
    return next(
        (content[key] for key in ("classes", "categories", "labels", "names") if _is_list(content.get(key))), content
    )


def _json_entry(file: str, entry: dict[str, Any]) -> ClassEntry:
    """Return what an object says of a class, as lists of categories have them."""
    by_name = {str(key).lower(): value for key, value in entry.items()}
    name = next((by_name[key] for key in _NAME_COLUMNS if key in by_name), None)
    value = next((by_name[key] for key in _VALUE_COLUMNS if key in by_name), None)
    if value is None:
        value = next((by_name[key] for key in _VALUE_OR_NAME_COLUMNS if _is_whole(by_name.get(key))), None)
    colour = next((by_name[key] for key in _COLOUR_COLUMNS if key in by_name), None)
    if isinstance(colour, list):
        colour = ",".join(map(str, colour))
    require(
        value is None or _is_whole(value),
        f"{file} gives {name!r} the value {value!r}; values must be whole numbers",
    )
    found = _entry(name, file=file, value=value, colour=None if colour is None else _colour(file, str(colour)))
    return replace(found, is_class=False) if by_name.get("evaluate") is False else found  # as Mapillary says it


def _is_list(value: object) -> bool:
    return isinstance(value, list | dict)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _matched(text: str, form: re.Pattern[str], make: Callable[[re.Match[str]], ClassEntry]) -> list[ClassEntry]:
    """Return an entry per line if all lines have one form, else nothing."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = [form.fullmatch(line) for line in lines]
    if any(match is None or max(map(int, _numbers(match))) > _BYTE for match in found):
        return []
    return [make(match) for match in found if match is not None]


def _numbers(match: re.Match[str]) -> list[str]:
    return [text for text in match.groups() if text.isdecimal()]


def _colour_entry(match: re.Match[str]) -> ClassEntry:
    red, green, blue, name = match.groups()
    return _entry(name, file="label_colors", colour=(int(red), int(green), int(blue)))


def _named_colour(match: re.Match[str]) -> ClassEntry:
    name, red, green, blue = match.groups()
    return _entry(name, file="labelmap", colour=(int(red), int(green), int(blue)))


def _delimited(file: str, text: str) -> list[ClassEntry] | None:
    """Return the rows of a table whose first line names its columns; None where it does not."""
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(map(str.strip, row))]
    columns = [cell.strip().lower() for cell in rows[0]] if rows else []
    name_at = _place(columns, _NAME_COLUMNS)
    if name_at is None or (len(columns) < 2 and not file.lower().endswith(".csv")):
        return None
    value_at, colour_at = _place(columns, _VALUE_COLUMNS), _place(columns, _COLOUR_COLUMNS)
    if value_at is None:
        likely = [columns.index(name) for name in _VALUE_OR_NAME_COLUMNS if name in columns]
        value_at = next((place for place in likely if _are_whole(rows[1:], place)), None)
    channels_at = [_place(columns, names) for names in _CHANNEL_COLUMNS]
    entries = []
    for number, cells in enumerate(rows[1:], start=1):
        row = [cell.strip() for cell in cells] + [""] * (len(columns) - len(cells))
        label = f"{file} row {number}"
        colour = None
        if all(place is not None for place in channels_at):
            colour = _colour(label, ",".join(row[place] for place in channels_at if place is not None))
        elif colour_at is not None:
            colour = _colour(label, row[colour_at])
        value = None if value_at is None else _whole(label, row[value_at])
        entries.append(_entry(row[name_at], file=label, value=value, colour=colour))
    return entries


def _place(columns: Sequence[str], names: Sequence[str]) -> int | None:
    return next((columns.index(name) for name in names if name in columns), None)


def _are_whole(rows: Sequence[Sequence[str]], place: int) -> bool:
    """Tell whether a column holds whole numbers alone, and some."""
    return bool(rows) and all(len(row) > place and row[place].strip().isdecimal() for row in rows)


def _whole(label: str, text: str) -> int:
    require(text.isdecimal(), f"{label} has the value {text!r}; values of masks are whole numbers")
    return int(text)


def _colour(label: str, text: str) -> Colour:
    """Read `#804080`, `128, 64, 128` or `[128, 64, 128]`."""
    if match := _HEX.fullmatch(text.strip()):
        red, green, blue = (int(part, 16) for part in match.groups())
        return red, green, blue
    match = _THREE.fullmatch(text)
    channels = [int(part) for part in match.groups()] if match else []
    require(
        len(channels) == 3 and max(channels) <= _BYTE,
        f"{label} has the colour {text!r}; write three numbers of 0 to {_BYTE}, or #rrggbb",
    )
    return channels[0], channels[1], channels[2]
