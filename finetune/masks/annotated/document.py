"""COCO's JSON as a table: which annotations each image has, and where they stand in the file.

A file may have hundreds of megabytes and millions of annotations. It is read into memory once, each annotation is
decoded and dropped, and what stays is a table in the cache of some 20 bytes per annotation; whoever draws a mask reads
the few annotations it needs at their offsets. Not here: finding the images (`files.py`), drawing (`regions.py`).

    <cache>/coco/v2/<digest>.arrow   a row per image: file_name, width, height, starts, ends; notes in its metadata
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from beit.common.errors import LFS_ADVICE, InputError, is_lfs_pointer, require
from beit.common.pages.numbers import count
from beit.common.sources.types import listing_digest
from beit.common.storage.documents import reading, refuse_control_characters
from beit.common.storage.files import atomic_file, default_cache_dir
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.paths import is_remote
from beit.common.storage.place import FileStat, RemoteError, place_of
from beit.finetune.masks.annotated.regions import has_shape
from beit.finetune.masks.classes import Colour

logger = logging.getLogger(__name__)

_VERSION = "v2"
_SCHEMA = pa.schema(
    [
        pa.field("file_name", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("starts", pa.list_(pa.int64())),
        pa.field("ends", pa.list_(pa.int64())),
    ]
)
_NOTICE_BYTES = 50_000_000
"""From here on reading takes seconds, which is said before."""
_BLANK = re.compile(r"[ \t\n\r]*")
_WAY_OUT = "export it again"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoContent:
    """What a file says besides its images."""

    names: tuple[str, ...]
    """Of the classes, in the order of their ids in COCO."""
    colours: tuple[Colour | None, ...]
    """Of the classes, where the file gives any."""
    categories: dict[str, int]
    """Place among `names` of each of COCO's category ids."""
    is_panoptic: bool
    """Masks are PNG files beside the JSON instead of annotations."""
    notes: tuple[str, ...]
    """What was left out, a line each."""


def read_coco(file: FileStat) -> tuple[CocoContent, pa.Table, str]:
    """Return what a COCO file holds: its classes and notes, a table of its images, and where its text lies here.

    Args:
        file: The JSON, local or remote; a remote one is copied into the cache.
    """
    folder = default_cache_dir() / "coco" / _VERSION
    digest = listing_digest("", [file])
    kept = folder / f"{digest}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / f"{digest}.lock"):  # of several ranks one reads, the others wait for it
            text = _text_of(file, folder / f"{digest}.json")
            found = _read_kept(kept)
            if found is None:
                content, table = _scan(text, file)
                table = table.replace_schema_metadata({"coco": json.dumps(asdict(content))})
                with atomic_file(kept) as out, pa.ipc.new_file(out, table.schema) as writer:
                    writer.write_table(table)
                found = content, table
    except OSError as error:
        if isinstance(error, RemoteError):
            raise
        raise InputError(
            f"cannot keep what {file.path} holds in {folder} ({error}); point BEIT_CACHE at a folder with space"
        ) from None
    return *found, text


def read_annotations(text: str, starts: list[int], ends: list[int]) -> list[dict[str, Any]]:
    """Return annotations as the file has them.

    Args:
        text: From `read_coco`.
        starts: First byte of each.
        ends: Byte behind each.
    """
    place = place_of(text)
    with reading(text, way_out=_WAY_OUT), place.open() as file:
        annotations = []
        for start, end in zip(starts, ends, strict=True):
            file.seek(start)
            annotations.append(dict(json.loads(file.read(end - start))))
        return annotations


def _text_of(file: FileStat, copy: Path) -> str:
    """Return the path of the JSON, or of a copy of it where it is remote."""
    if not is_remote(file.path):
        return file.path
    if not copy.exists():
        with atomic_file(copy) as out:
            for piece in place_of(file.path, is_first_contact=True).pieces():
                out.write(piece)
    return str(copy)


def _read_kept(kept: Path) -> tuple[CocoContent, pa.Table] | None:
    if not kept.exists():
        return None
    try:
        table = pa.ipc.open_file(pa.memory_map(str(kept))).read_all()
        document = json.loads((table.schema.metadata or {})[b"coco"])
        content = CocoContent(
            names=tuple(document["names"]),
            colours=tuple(map(_colour, document["colours"])),
            categories=dict(document["categories"]),
            is_panoptic=bool(document["is_panoptic"]),
            notes=tuple(document["notes"]),
        )
        return content, table
    except (InputError, OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        logger.warning("what was kept in %s is damaged (%s); reading the JSON again", kept, error)
        return None


def _scan(text: str, file: FileStat) -> tuple[CocoContent, pa.Table]:
    data = place_of(text).read()
    require(not is_lfs_pointer(data), f"{file.path} {LFS_ADVICE}")
    if len(data) > _NOTICE_BYTES:
        logger.info("%s: reading %d MB of JSON, once; it takes about twice that in memory", file.path, len(data) >> 20)
    # One character per byte, so that places in the text are places in the file; what is kept of it is decoded again.
    shown = " " * len(_BOM) + data[len(_BOM) :].decode("latin-1") if data.startswith(_BOM) else data.decode("latin-1")
    del data
    with reading(file.path, way_out=_WAY_OUT):
        return _Scan(file.path).read(shown)


class _Scan:
    """One pass over the text of a COCO file, its lists in whatever order."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.images: dict[int | str, tuple[str, int, int]] = {}
        self.categories: dict[int | str, dict[str, Any]] = {}
        self.image_ids: list[int | str] = []  # of every annotation, as the next three
        self.category_ids: set[int | str] = set()
        self.places: list[tuple[int, int]] = []
        self.counts: Counter[str] = Counter()
        self.is_panoptic = False

    def read(self, text: str) -> tuple[CocoContent, pa.Table]:
        for name, start, end, value in _elements(text, self.label):
            element: dict[str, Any] = dict(value)
            if name == "images":
                element = dict(json.loads(text[start:end].encode("latin-1")))
                self._add_image(element)
            elif name == "categories":
                element = dict(json.loads(text[start:end].encode("latin-1")))
                self._add_category(element)
            else:
                self._add_annotation(element, start, end)
        for name, found in (("images", self.images), ("categories", self.categories)):
            require(bool(found), f"{self.label} lists no {name}, so it is not COCO's JSON of masks; {_WAY_OUT}")
        require(
            bool(self.places),
            f"{self.label} has {self.counts['shapeless'] or 'no'} annotations"
            + (" that are boxes only, without a mask" if self.counts["shapeless"] else "")
            + "; export polygons or masks",
        )
        category_of = _by_id(self.categories)
        unknown = sorted((number for number in self.category_ids if category_of(number) is None), key=str)
        require(
            not unknown,
            f"{self.label} has annotations of the categories {unknown[:5]}, which it does not list; {_WAY_OUT}",
        )
        self.category_ids = {listed for number in self.category_ids if (listed := category_of(number)) is not None}
        table = self._table()
        return self._content(), table

    def _add_image(self, image: dict[str, Any]) -> None:
        number, name, width, height = (image.get(key) for key in ("id", "file_name", "width", "height"))
        require(
            isinstance(number, int | str) and isinstance(name, str) and bool(name),
            f"{self.label} lists an image without id or file_name ({json.dumps(image)[:80]}); {_WAY_OUT}",
        )
        assert isinstance(number, int | str) and isinstance(name, str)
        refuse_control_characters([name], self.label)
        is_sized = all(isinstance(side, int) and 0 < side <= 65535 for side in (width, height))
        require(
            is_sized,
            f"{self.label}: image {name} has width {width} and height {height}; each must be a whole number of pixels, "
            f"1 to 65535; {_WAY_OUT}",
        )
        require(number not in self.images, f"{self.label} lists two images with the id {number}; {_WAY_OUT}")
        assert isinstance(width, int) and isinstance(height, int)
        self.images[number] = name, width, height

    def _add_category(self, category: dict[str, Any]) -> None:
        number, name = category.get("id"), category.get("name")
        require(
            isinstance(number, int | str) and isinstance(name, str) and bool(name.strip()),
            f"{self.label} lists a category without id or name ({json.dumps(category)[:80]}); {_WAY_OUT}",
        )
        assert isinstance(number, int | str)
        refuse_control_characters([name], self.label)
        require(number not in self.categories, f"{self.label} lists two categories with the id {number}; {_WAY_OUT}")
        self.categories[number] = category

    def _add_annotation(self, annotation: dict[str, Any], start: int, end: int) -> None:
        if "segments_info" in annotation:
            self.is_panoptic = True
            self.category_ids.update(dict(segment)["category_id"] for segment in annotation["segments_info"])
        elif has_shape(annotation.get("segmentation")):
            self.category_ids.add(annotation["category_id"])
        else:
            self.counts["shapeless"] += 1
            return
        self.image_ids.append(annotation["image_id"])
        self.places.append((start, end))

    def _table(self) -> pa.Table:
        rows: dict[int | str | None, int] = {number: row for row, number in enumerate(self.images)}
        image_of = _by_id(self.images)
        owners = np.array([rows.get(image_of(number), -1) for number in self.image_ids], dtype=np.int64)
        self.counts["strays"] = int((owners < 0).sum())
        places = np.array(self.places, dtype=np.int64).reshape(-1, 2)[owners >= 0]
        owners = owners[owners >= 0]
        order = np.argsort(owners, kind="stable")
        offsets = np.searchsorted(owners[order], np.arange(len(rows) + 1)).astype(np.int32)
        names, widths, heights = zip(*self.images.values(), strict=True)
        lists = [pa.ListArray.from_arrays(offsets, np.ascontiguousarray(places[order, side])) for side in (0, 1)]
        return pa.table([pa.array(names), widths, heights, *lists], schema=_SCHEMA)

    def _content(self) -> CocoContent:
        order = list(self.categories)
        if all(isinstance(number, int) for number in order):
            order = sorted(order, key=lambda number: int(number))
        notes = []
        if (umbrella := self._umbrella()) is not None:
            order.remove(umbrella)
            notes.append(
                f"the category {self.categories[umbrella]['name']!r} is left out: nothing is annotated with it, and "
                "the others stand below it"
            )
        names = list(dict.fromkeys(str(self.categories[number]["name"]).strip() for number in order))
        if len(names) < len(order):
            notes.append(f"{len(order)} categories have {len(names)} names; those of one name are one class")
        colours: dict[str, Colour | None] = {}
        for number in order:
            category = self.categories[number]
            colours.setdefault(str(category["name"]).strip(), _colour(category.get("color")))
        if number := self.counts["shapeless"]:
            notes.append(f"{count(number, 'annotation')} without a shape (boxes, points) left out")
        if number := self.counts["strays"]:
            notes.append(f"{count(number, 'annotation')} of images that are not listed left out")
        places = {name: place for place, name in enumerate(names)}
        return CocoContent(
            names=tuple(names),
            colours=tuple(colours[name] for name in names),
            categories={id_text(number): places[str(self.categories[number]["name"]).strip()] for number in order},
            is_panoptic=self.is_panoptic,
            notes=tuple(notes),
        )

    def _umbrella(self) -> int | str | None:
        """Return the category that only stands above all others, as Roboflow writes one."""
        for number, category in self.categories.items():
            others = [other for key, other in self.categories.items() if key != number]
            if number not in self.category_ids and others:
                if all(other.get("supercategory") == category["name"] for other in others):
                    return number
        return None


def _by_id(listed: Iterable[int | str]) -> Callable[[object], int | str | None]:
    """Return what finds the id of a list that an annotation means: the same, or else the same in writing, 7 for "7".

    Programs that go through tables write text where the list has numbers, and the reverse.
    """
    known = set(listed)
    texts: dict[str, int | str | None] = {}
    for number in known:
        texts[id_text(number)] = None if id_text(number) in texts else number

    def find(number: object) -> int | str | None:
        return number if isinstance(number, int | str) and number in known else texts.get(id_text(number))

    return find


def _colour(value: object) -> Colour | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(isinstance(part, int) and 0 <= part <= 255 for part in value):
        return None
    red, green, blue = value
    return red, green, blue


def _elements(text: str, label: str) -> Iterator[tuple[str, int, int, Any]]:
    """Yield the elements of the three lists one by one: the list's name, first place, last place, and the value."""
    decoder = json.JSONDecoder()
    try:
        position = _behind(text, 0, "{")
        while text[position] != "}":
            name, position = decoder.raw_decode(text, position)
            position = _behind(text, position, ":")
            if name in ("images", "categories", "annotations") and text[position] == "[":
                position = _behind(text, position, "[")
                while text[position] != "]":
                    value, end = decoder.raw_decode(text, position)
                    yield name, position, end, value
                    position = _next(text, end, "]")
                position += 1
            else:
                _, position = decoder.raw_decode(text, position)
            position = _next(text, position, "}")
    except (ValueError, IndexError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{label} is not valid JSON, or cut ({' '.join(str(error).split())}); copy or make it again"
        ) from None


def _behind(text: str, position: int, expected: str) -> int:
    """Return the place of what follows a character, blanks around it passed over."""
    position = _skip(text, position)
    if text[position] != expected:
        raise ValueError(f"expected {expected} at character {position}")
    return _skip(text, position + 1)


def _next(text: str, position: int, closing: str) -> int:
    """Return the place of what comes behind an element: the next one, or the closing bracket."""
    position = _skip(text, position)
    if text[position] == closing:
        return position
    return _behind(text, position, ",")


def _skip(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    assert found is not None
    return found.end()


def id_text(number: object) -> str:
    """Return an id as the keys of `CocoContent.categories` are written; tables of numbers may have made 1.0 of 1."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)
