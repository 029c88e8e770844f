"""A file of names that says what class numbers mean: a JSON list or object, or a text with one name per line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from beit.common.errors import InputError, require
from beit.common.sources.labels import LABEL_SEPARATOR, meant_number, number_of, one_form, split_label
from beit.common.sources.lists import read_text

_LISTS_INSIDE = ("class_names", "id2label")
"""Where a JSON object of more than names has them: a model of ours or a store, a model of Hugging Face's."""
_NUMBERED_LINE = re.compile(r"\s*([0-9]{1,9})[\s,;:=]+\S")
_FORMS = "a JSON list, a JSON object of numbers and names, or one name per line, the first for number 0"


@dataclass(frozen=True, slots=True)
class ClassNames:
    """What class numbers mean."""

    file: str
    """Where that stands."""
    of: dict[int, str]
    """Name of each number, all different."""

    def named(self, label: str) -> str:
        """Return a label with the names of the numbers in it; what has none stays."""
        parts = ((part, meant_number(part)) for part in split_label(label))
        return LABEL_SEPARATOR.join(part if number is None else self.of.get(number, part) for part, number in parts)


def read_class_names(file: str) -> ClassNames:
    """Read a file or URL of class names."""
    text = read_text(file)
    pairs = _json_pairs(file, text) if text.lstrip()[:1] in ("[", "{") else _line_pairs(file, text)
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for number, value in pairs:
        name = one_form(value.strip()) if isinstance(value, str) else ""
        require(
            name != "" and LABEL_SEPARATOR not in name,
            f"{file} calls number {number} {value!r}; names must be texts without {LABEL_SEPARATOR!r}",
        )
        require(number not in names, f"{file} has two names for number {number}; leave one")
        require(
            name not in numbers,
            f"{file} calls both {numbers.get(name)} and {number} {name!r}; give each a name of its own",
        )
        names[number], numbers[name] = name, number
    require(bool(names), f"{file} holds no names; it must be {_FORMS}")
    return ClassNames(file, names)


def _line_pairs(file: str, text: str) -> Iterable[tuple[int, Any]]:
    lines = text.rstrip().splitlines()
    blank = next((number for number, line in enumerate(lines, start=1) if not line.strip()), None)
    require(blank is None, f"{file} line {blank} is empty, so the names behind it would get other numbers; remove it")
    numbers = sorted(int(found[1]) for line in lines if (found := _NUMBERED_LINE.match(line)))
    if len(lines) > 1 and numbers in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        raise InputError(
            f"{file} has a number before every name (line 1: {lines[0]!r}); write the names alone, in the order of "
            'their numbers from 0 on, or a JSON object such as {"0": "dog", "1": "cat"}'
        )
    return enumerate(lines)


def _json_pairs(file: str, text: str) -> Iterable[tuple[int, Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}); it must be {_FORMS}") from None
    if isinstance(content, dict):
        content = next((content[key] for key in _LISTS_INSIDE if isinstance(content.get(key), list | dict)), content)
    if isinstance(content, list):
        return enumerate(content)
    numbers = {key: number_of(key.strip()) for key in content}
    odd = next((key for key, number in numbers.items() if number is None), None)
    require(odd is None, f"{file} has the key {odd!r}, which is no number; it must be {_FORMS}")
    return [(number, content[key]) for key, number in numbers.items() if number is not None]
