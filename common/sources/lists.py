"""Lists of image files: a text file with one path per line, or a CSV table of paths and classes."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from beit.common.errors import LFS_ADVICE, InputError, is_lfs_pointer, require
from beit.common.images.formats import ARRAY_SUFFIXES, IMAGE_SUFFIXES, is_array_path, is_image_path
from beit.common.sources.label_column import LABEL_COLUMNS, choose_label_column, matching, plain
from beit.common.sources.labels import as_label, in_order, joined_label, split_label
from beit.common.sources.loose_files import FileList
from beit.common.sources.splits import warn_of_split_rows
from beit.common.storage.paths import is_remote, join
from beit.common.storage.place import FileStat, MissingFile, place_of

_MAX_LIST_BYTES = 1 << 30
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "filepath", "file_path", "image_id")
_INDEX_COLUMNS = ("", "unnamed: 0")  # pandas writes its row numbers under such names
_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_MAX_PLAIN_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file as texts."""

    columns: list[str]
    """As the first line names them."""
    rows: list[list[str]]
    """As many cells each; rows without any content are left out."""

    def column(self, name: str) -> list[str]:
        """Return the cells of a column, without blanks around them."""
        place = self.columns.index(name)
        return [row[place].strip() for row in self.rows]


class _Labels(NamedTuple):
    """What the rows of a table say about classes, as texts; empty for none."""

    texts: list[str]
    are_known: bool
    """The table has classes at all."""
    notes: tuple[str, ...]


def text_listing(path: str) -> FileList:
    """Read a text list: one image path per line, relative to the list's folder or absolute; `#` starts a comment."""
    lines = (line.strip() for line in read_text(path).splitlines())
    paths = [line for line in lines if line and not line.startswith("#")]
    return FileList(*_listed_files(path, paths), [None] * len(paths))


def csv_listing(path: str, *, label_column: str | None = None) -> FileList:
    """Read a CSV table with a column of paths and, if there are labels, one of class numbers or names.

    Instead of the latter there may be one column per class that holds 0 or 1. Rows of one image are taken together.

    Args:
        path: Path or URL.
        label_column: Its column of classes; left out, the one that is called so.
    """
    table = _read_table(path)
    path_column = next(
        (name for wanted in _PATH_COLUMNS if (name := matching(table.columns, wanted)) is not None), None
    )
    if path_column is None:
        raise InputError(
            f"{path} has no path column (columns: {', '.join(table.columns)}); its first line must name the columns, "
            "such as path,label"
        )
    found = _row_labels(path, table, path_column, label_column)
    for name in table.columns:
        if plain(name) not in LABEL_COLUMNS and name not in (path_column, label_column):
            warn_of_split_rows(path, name, table.column(name))
    paths, texts, notes = table.column(path_column), found.texts, found.notes
    if found.are_known:
        paths, texts, merged = _merge_rows(path, paths, texts)
        notes += merged
    is_plain = all(text.isascii() and text.isdigit() and len(text) <= _MAX_PLAIN_DIGITS for text in texts if text)
    labels: list[int | str | None] = [(as_label(text) if is_plain else text) if text else None for text in texts]
    return FileList(
        *_listed_files(path, paths),
        labels,
        class_names=None if is_plain else tuple(in_order({text for text in texts if text})),
        columns=tuple(name.strip() for name in table.columns),
        label_notes=notes,
    )


def read_text(path: str) -> str:
    """Return what a text file or URL holds, which must be UTF-8."""
    try:
        data = place_of(path, is_first_contact=True).read(limit=_MAX_LIST_BYTES)
        require(not is_lfs_pointer(data), f"{path} {LFS_ADVICE}")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None


def _read_table(path: str) -> Table:
    text = read_text(path)
    text = text if "\n" in text else text.replace("\r", "\n")  # Excel writes such tables for old Macs
    text = re.sub(r"\Asep=.\r?\n", "", text)  # Excel's own line
    header = text.lstrip().partition("\n")[0]
    # A spreadsheet writes semicolons where commas stand in its numbers, and tabs on request.
    delimiter = max(",;\t", key=header.count)
    try:
        lines = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(map(str.strip, row))]
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV table ({error}); save it again") from None
    columns, rows = (lines[0], lines[1:]) if lines else ([], [])
    for number, row in enumerate(rows, start=1):
        if any(map(str.strip, row[len(columns) :])):
            raise InputError(
                f"{path} entry {number} ({delimiter.join(row)}) has {len(row)} cells, but the first line names "
                f"{len(columns)} columns; put several classes into one cell, joined by |, or quote the cell"
            )
    width = len(columns)
    return Table(columns, [row[:width] + [""] * (width - len(row)) for row in rows])


def _row_labels(path: str, table: Table, path_column: str, wanted: str | None) -> _Labels:
    columns = [name for name in table.columns if name != path_column]
    chosen, notes = choose_label_column(path, table.columns, usable=columns, wanted=wanted)
    if chosen is not None:
        require(table.columns.count(chosen) == 1, f"{path} has several columns {chosen!r}; give each a name of its own")
        return _Labels(table.column(chosen), True, notes)
    classes = [name for name in columns if plain(name) not in _INDEX_COLUMNS]
    flags = _flags(table, classes)
    if flags is None:
        return _Labels([""] * len(table.rows), False, ())
    names = [name.strip() for name in classes]
    texts = [
        joined_label((name for name, flag in zip(names, row, strict=True) if flag), path) or ""
        for row in zip(*flags, strict=True)
    ]
    return _Labels(texts, True, (f"{path}: one column of 0 and 1 per class ({', '.join(names)})",))


def _flags(table: Table, columns: Sequence[str]) -> list[list[bool]] | None:
    """Return the cells of columns of yes and no; None if there is another, or fewer than two."""
    flags: list[list[bool]] = []
    for name in columns:
        cells = [_FLAGS.get(cell.lower()) for cell in table.column(name)]
        if None in cells or table.columns.count(name) > 1:
            return None
        flags.append([bool(cell) for cell in cells])
    return flags if len(flags) > 1 and table.rows else None


def _merge_rows(path: str, paths: list[str], texts: list[str]) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Take the rows of one image together: its label names all classes of them."""
    labels: dict[str, list[str]] = {}
    first_names: dict[str, str] = {}
    for name, text in zip(paths, texts, strict=True):
        labels.setdefault(first_names.setdefault(_place(path, name), name), []).append(text)
    if len(labels) == len(paths):
        return paths, texts, ()
    merged = [
        found[0] if len(set(found)) == 1 else joined_label((one for text in found for one in split_label(text)), path)
        for found in labels.values()
    ]
    repeated = [name for name, found in labels.items() if len(found) > 1]
    note = (
        f"{path}: {len(repeated)} images stand in several rows, whose classes are taken together (first: {repeated[0]})"
    )
    return list(labels), [text or "" for text in merged], (note,)


def _place(list_path: str, path: str) -> str:
    """Return where a path of a list leads, however it is written: `1.jpg`, `./1.jpg` and `/list/1.jpg` are one file."""
    if is_remote(list_path):
        return os.path.normpath(path)
    return os.path.normpath(os.path.join(os.path.dirname(list_path), path))


def _listed_files(list_path: str, paths: list[str]) -> tuple[str, list[FileStat]]:
    """Return the folder that paths are relative to, and what is known of each file."""
    if not paths:
        raise InputError(f"{list_path} lists no images")
    root = list_path.rsplit("/", 1)[0] or "/"
    files, seen = [], set()
    for number, path in enumerate(paths, start=1):
        # A list is data: it may name files, not start downloads or other protocols.
        if "://" in path or "::" in path or (is_remote(root) and path.startswith("/")):
            raise InputError(f"{list_path} entry {number} ({path}) must be a path on the list's own storage, not a URL")
        name = path if is_image_path(path) or is_array_path(path) else _with_ending(root, path)
        if name is None:
            raise InputError(
                f"{list_path} entry {number} ({path!r}) must end in {', '.join(IMAGE_SUFFIXES + ARRAY_SUFFIXES)}"
            )
        file = _stat_listed(list_path, number, root, name)
        place = _place(list_path, file.path)
        if place in seen:
            raise InputError(f"{list_path} entry {number} ({path}) is listed twice; remove one")
        seen.add(place)
        files.append(file)
    return root, files


def _with_ending(root: str, path: str) -> str | None:
    """Return the one image file that is called `path` but for its ending, as in tables of ids; None without one."""
    if is_remote(root) or not path:
        return None
    names = (f"{path}.{ending}" for suffix in IMAGE_SUFFIXES + ARRAY_SUFFIXES for ending in (suffix, suffix.upper()))
    found = [name for name in names if os.path.isfile(join(root, name))]
    files = {os.stat(join(root, name)).st_ino for name in found}  # one under two names where letter case does not count
    return found[0] if len(files) == 1 else None


def _stat_listed(list_path: str, number: int, root: str, path: str) -> FileStat:
    if is_remote(root):
        return FileStat(path, 0, "")  # one request per line would cost more than a missing image, counted when read
    # The computer that wrote the list may spell accents otherwise than the one that wrote the files.
    for name in [path] if path.isascii() else [path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))]:
        try:
            return replace(place_of(join(root, name)).stat(), path=name)
        except MissingFile:
            continue
        except InputError as error:
            raise InputError(f"{list_path} entry {number}: {error}") from None
    raise InputError(f"{list_path} entry {number} ({path}) does not exist; paths are relative to {root}")
