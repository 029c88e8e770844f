"""Where COCO's JSON files lie, and the images they speak of.

The usual places: `annotations/instances_train2017.json` beside `train2017/` or `images/train2017/`, Roboflow's
`train/_annotations.coco.json` among its images, and a JSON of any name beside images. What stands in the files is
`document.py`.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from beit.common.errors import InputError, require
from beit.common.images.formats import is_image_path
from beit.common.sources.labels import listed
from beit.common.storage.matching import is_folder, list_folder
from beit.common.storage.paths import WEB_SCHEMES, is_remote, join, normalise, split_query
from beit.common.storage.place import FileStat, place_of

_START_BYTES = 65536
_KEYS = re.compile(rb'"(?:images|annotations|categories|licenses|info)"\s*:')
_ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "json")
_KINDS = ("_annotations.coco", "instances", "stuff", "panoptic")
"""Beginnings of names, the first that a folder has is taken; any other name comes behind them, then the next ones."""
_WITHOUT_PIXELS = ("captions", "person_keypoints", "image_info")
_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|val|valid|validation|test)(?:\d{4})?(?:[^a-z]|$)")
_LEADING = re.compile(r"(?:\.\.?/|/|[A-Za-z]:/)+")
"""What a name may begin with that says nothing here: of the machine, or the folder, that the JSON was written in."""
_SAMPLED = 50
"""Images that are looked for in every folder to find out which one is meant; arbitrary."""


@dataclass(frozen=True, slots=True)
class FoundImages:
    """Which of the images that a JSON lists are there."""

    root: str
    """Folder or URL that the paths below are relative to."""
    files: list[FileStat]
    """Those that are there, by path."""
    rows: list[int]
    """Place of each in the JSON's list."""
    notes: list[str]
    """What is left out, a line each."""
    missing: list[str]
    """Names of those that are not there."""


def looks_like_coco(data: str) -> bool:
    """Tell whether this is COCO's JSON, or a folder with some in its usual places."""
    path, _ = split_query(data)
    if path.lower().endswith(".json"):
        return True
    return bool(annotation_files(normalise(path))) or coco_splits(data) is not None


def coco_splits(data: str) -> tuple[str, str] | None:
    """Return the JSON files of the training and of the validation part of a folder; None where it has not both."""
    folder = normalise(data)
    if folder.lower().endswith(".json") or not _can_be_listed(folder):
        return None
    files = annotation_files(folder)
    found: list[str] = []
    for part, words in _WORDS.items():
        own = [file for file in files if _split_of(file) == part]
        below = [file for word in words if not own for file in annotation_files(join(folder, word))[:1]]
        found += (own or below)[:1]
    return (found[0], found[1]) if len(found) == 2 else None


def annotation_files(folder: str) -> list[str]:
    """Return the COCO files that lie in a folder, or else in its folder annotations, those with pixels first."""
    if not _can_be_listed(folder):
        return []
    for place in (place_of(folder), *(place_of(join(folder, name)) for name in _ANNOTATION_FOLDERS[:1])):
        names = (
            [file.path for file in place.files() if file.path.lower().endswith(".json")] if place.is_folder() else []
        )
        found = [join(str(place), name) for name in sorted(names, key=lambda name: (_rank(name), name))]
        if found := [path for path in found if _is_coco(path)]:
            return found
    return []


def chosen_file(data: str) -> tuple[FileStat, list[str]]:
    """Return the JSON that a user means, and what to say of the choice."""
    path = normalise(data)
    if split_query(path)[0].lower().endswith(".json"):
        return place_of(path, is_first_contact=True).stat(), []
    files = annotation_files(path)
    if not files and (parts := coco_splits(data)) is not None:
        raise InputError(f"{data} holds COCO files of several parts; give one of them, such as {parts[0]}")
    require(
        bool(files),
        f"{data} holds no COCO file (JSON with images, annotations and categories), nor does its folder annotations; "
        "name the file itself",
    )
    best = [file for file in files if _rank(file) == _rank(files[0])]
    require(
        len(best) == 1,
        f"{data} holds {len(best)} COCO files ({listed([_base(file) for file in best])}); name the one to use, such as "
        f"{best[0]}",
    )
    others = [_base(file) for file in files if file != best[0]]
    return place_of(best[0]).stat(), [f"taken instead of {listed(others)}"] if others else []


def find_images(json_file: str, names: Sequence[str]) -> FoundImages:
    """Find the images that a JSON lists.

    They are looked for below its folder, or the one above if it lies in a folder `annotations`: in the folder where
    most of them have the names they are listed by; and those that have not, anywhere, if their base name is there once.

    Args:
        json_file: Path or URL of the JSON.
        names: File names it lists.
    """
    root, own = posixpath.split(json_file)
    if _base(root).lower() in _ANNOTATION_FOLDERS:
        root = posixpath.dirname(root)
    names = [_without_start(posixpath.normpath(name.replace("\\", "/"))) for name in names]
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    require(repeated is None, f"{json_file} lists the image {repeated} twice; join its annotations under one id")
    if not _can_be_listed(root):
        prefix = _remote_prefix(root, own, names[0])
        paths = [posixpath.join(prefix, name) for name in names]
        rows = sorted(range(len(paths)), key=paths.__getitem__)
        return FoundImages(root, [FileStat(paths[row], 0, "") for row in rows], rows, [], [])
    there = {file.path: file for file in list_folder(root) if is_image_path(file.path)}
    prefix = _prefix(there, names, own)
    found = {row: path for row, name in enumerate(names) if (path := posixpath.join(prefix, name)) in there}
    _match_base_names(found, names, there)
    require(
        bool(found),
        f"none of the {len(names)} images that {json_file} lists, such as {names[0]}, is in {root} or below; put the "
        "JSON beside the images, or into a folder annotations beside theirs",
    )
    notes = []
    taken = set(found.values())
    folders = {posixpath.dirname(path) for path in taken}
    unlisted = [path for path in there if path not in taken and posixpath.dirname(path) in folders]
    if unlisted:
        notes.append(f"{len(unlisted)} images beside them are not listed and left out ({listed(unlisted)})")
    rows = sorted(found, key=found.__getitem__)
    missing = [name for row, name in enumerate(names) if row not in found]
    return FoundImages(root, [there[found[row]] for row in rows], rows, notes, missing)


def panoptic_folder(json_file: str, name: str) -> str:
    """Return the folder of the PNG files of a panoptic JSON, of which one is called `name`."""
    folder = posixpath.dirname(json_file)
    stem = json_file.rpartition(".")[0]
    places = [stem, join(posixpath.dirname(folder), _base(stem)), folder, posixpath.dirname(folder)]
    for place in places:
        if place_of(join(place, name)).exists():
            return place
    raise InputError(f"{json_file} speaks of the mask {name}, which is not in {stem}; put its PNG files there")


def panoptic_files(folder: str) -> list[FileStat]:
    """Return sizes and times of the PNG files of a panoptic JSON, as far as their place tells."""
    return place_of(folder).files() if folder and _can_be_listed(folder) else []


def _without_start(name: str) -> str:
    found = _LEADING.match(name)
    return name[found.end() :] if found else name


def _match_base_names(found: dict[int, str], names: Sequence[str], there: dict[str, FileStat]) -> None:
    taken = set(found.values())
    by_base: dict[str, list[str]] = defaultdict(list)
    if len(found) < len(names):
        for path in there:
            if path not in taken:
                by_base[_base(path)].append(path)
    wanted = Counter(_base(name) for row, name in enumerate(names) if row not in found)
    for row, name in enumerate(names):
        if row not in found and wanted[_base(name)] == 1 and len(by_base[_base(name)]) == 1:
            found[row] = by_base[_base(name)][0]


def _prefix(there: dict[str, FileStat], names: Sequence[str], own: str) -> str:
    """Return the folder below which most images have the names they are listed by; of equals the JSON's namesake."""
    sample = [names[place * len(names) // min(len(names), _SAMPLED)] for place in range(min(len(names), _SAMPLED))]
    wanted: dict[str, set[str]] = defaultdict(set)
    for name in sample:
        wanted[_base(name)].add(name)
    hits: Counter[str] = Counter()
    for path in there:
        for name in wanted.get(_base(path), ()):
            if path == name or path.endswith(f"/{name}"):
                hits[path[: len(path) - len(name)].rstrip("/")] += 1
    part = _split_of(own)
    return max(hits, key=lambda folder: (hits[folder], _is_namesake(folder, own, part), -len(folder)), default="")


def _is_namesake(folder: str, own: str, part: str) -> int:
    name = _base(folder)
    return 2 if name and name in own else int(bool(part) and _split_of(name) == part)


def _remote_prefix(root: str, own: str, name: str) -> str:
    """Return the folder of the images on a server that lists none, by looking for one of them."""
    stem = own.rpartition(".")[0]
    split = stem.rpartition("_")[2]
    for prefix in ("", "images", split, f"images/{split}", stem):
        if place_of(join(root, posixpath.join(prefix, name))).exists():
            return prefix
    raise InputError(
        f"the image {name} of {join(root, own)} is not in {root}, nor in images or {split} there; put the JSON beside "
        "the images"
    )


def _can_be_listed(folder: str) -> bool:
    return (not is_remote(folder) or not folder.startswith(WEB_SCHEMES)) and is_folder(folder)


def _is_coco(path: str) -> bool:
    start = place_of(path).read(limit=_START_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"{") and _KEYS.search(start) is not None


def _rank(path: str) -> int:
    """Return how late a JSON of this name is taken."""
    name = _base(path).lower()
    if name.startswith(_WITHOUT_PIXELS):
        return len(_KINDS) + 1
    return next((place for place, kind in enumerate(_KINDS) if name.startswith(kind)), len(_KINDS))


def _split_of(path: str) -> str:
    """Return which part of a data set a name speaks of; empty for none."""
    found = _SPLIT.search(_base(path).lower())
    return "" if found is None else next((part for part, words in _WORDS.items() if found[1] in words), found[1])


def _base(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
