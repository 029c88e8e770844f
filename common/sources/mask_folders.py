"""Masks that lie beside images, which are no pictures: who asks for the images of such a tree does not want them.

A mask is told by three things together: a folder (or an ending) that is called so, an image of the same name beside it,
and what is in it, of a few that are looked into. A class of pictures that happens to be called "masks" has no pairs, or
pictures in it. Not here: pairs for training, and what masks mean (`beit.finetune.masks`).
"""

from __future__ import annotations

import io
import itertools
import os
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import read_samples
from beit.common.images.decoding import MAX_PIXELS
from beit.common.images.formats import format_of
from beit.common.storage.paths import join
from beit.common.storage.place import FileStat, read_files
from beit.common.storage.samples import spread_evenly

_USUAL_PAIR = ("images", "annotations")
"""Where these stand side by side, the second holds masks, whatever is in it, unless names say that it is a class."""
_FOLDER = re.compile(
    r"(?i)mask|label|annot|segment|ground.?truth|trimap|target|gtfine|gtcoarse|(?:^|[^a-z])(?:segs?|gts?|anns?)(?:[^a-z]|$)"
)
"""In the names of folders of masks."""
MASK_END = re.compile(
    r"(?i)[_\-. ](?:(?:gtfine|gtcoarse)_)?(?:masks?|labels?|lab|labelids|labeltrainids|instanceids|instancetrainids|"
    r"color|l|seg|segmentation|segmap|gt|groundtruth|annotations?|ann|target|trainids)$"
)
"""What the name of a mask may have behind that of its image."""
IMAGE_END = re.compile(r"(?i)[_\-. ](?:leftimg8bit|sat|images?|img|rgb|im|photo)$")
"""What the name of an image may have behind what it shares with its mask."""
_SUFFIXES = (".png", ".tif", ".tiff")
"""Of masks whose values are what was drawn; in a JPEG compression made others of them."""
_MOST_ALONE = 0.1
"""Share of the files of a folder of masks that may lack an image; arbitrary."""
_LOOKED_AT = 5
_FEW_VALUES = 64
"""A mask has no more different values, a photo has; arbitrary."""
_PIXELS = 10_000
"""Of a large image this many are looked at, spread evenly."""
_EVEN = 0.9
"""Share of the pixels of a TIFF that have the value of those beside and below them, from which on it may be a mask: a
dark photograph has few values, too, but noise in them, and objects that are numbered are many. Arbitrary."""
_EVEN_ROWS = 1024
_NARROW = ("1", "L", "P", "I", "I;16", "I;16B")


ReadImages = Callable[[list[str]], Sequence[bytes | None]]
"""Returns the content of some images by their paths, None for each that cannot be read."""


class _Look(NamedTuple):
    """What a header and the pixels say of an image."""

    is_narrow: bool
    """One number per pixel."""
    has_few_values: bool
    """Over all of it."""
    is_even: bool
    """Whether neighbours mostly have the same value; of a PNG, where few values tell enough, the same as those."""

    @property
    def is_drawn(self) -> bool:
        """Whether it has few values, and areas of them."""
        return self.has_few_values and self.is_even


class MasksBeside(NamedTuple):
    """Masks among images."""

    paths: frozenset[str]
    """Of the masks."""
    places: tuple[str, ...]
    """Where they lie: folders with a slash behind, or names with a wildcard."""

    @property
    def above(self) -> set[str]:
        """The folders in which images and masks stand side by side."""
        return {place.rstrip("/").rpartition("/")[0] for place in self.places}

    @property
    def are_usual(self) -> bool:
        """Tell whether any lie in a folder that is known by its name alone."""
        return any(place.rstrip("/").rpartition("/")[2] == _USUAL_PAIR[1] for place in self.places)


def masks_beside(root: str, images: Sequence[FileStat]) -> MasksBeside:
    """Find the masks among the image files of a folder.

    Args:
        root: The folder or URL.
        images: Its image files, by paths relative to it.
    """

    def read(paths: list[str]) -> list[bytes | None]:
        try:
            return list(read_files([join(root, path) for path in paths]))
        except (InputError, OSError):  # one is gone, or the server is away: they are met again where they are read
            return [None] * len(paths)

    return masks_among([image.path for image in images], read)


def masks_among(images: Sequence[str], read: ReadImages) -> MasksBeside:
    """Find the masks among images by their paths, wherever these lie.

    Args:
        images: Their paths, with slashes, relative to one place.
        read: Returns the content of a few of them, None for what cannot be read.
    """
    tree = _Tree(images)
    found: dict[str, set[str]] = {}
    for top in tree.called_as_masks():
        if not any(f"{top}/".startswith(outer) for outer in found):
            paths = {path for folder in tree.below(top) for path in tree.paths[folder]}
            partners = tree.partners(top)
            # Photos of which none has the name of an image are a class of their own.
            is_usual = tree.is_usual(top) and (partners or all(path.lower().endswith(_SUFFIXES) for path in paths))
            if is_usual or _hold_masks(read, paths, partners):
                found[f"{top}/"] = paths
    for folder, names in tree.paths.items():
        if not any(f"{folder}/".startswith(outer) for outer in found):
            kinds = [(pairs := _with_an_end(names), set(pairs), True)]
            for ends in (_SUFFIXES[:1], _SUFFIXES[1:]):
                kinds.append((_of_the_same_name(names, ends), {path for path in names if _ends_in(path, ends)}, False))
            for pairs, paths, is_called_so in kinds:
                if pairs and _hold_masks(read, paths, pairs, is_called_so):
                    found[f"{folder}/*{_end_of(min(pairs))}" if folder else f"*{_end_of(min(pairs))}"] = set(pairs)
    return MasksBeside(frozenset().union(*found.values()), tuple(found))


class _Tree:
    """Folders, and the image files that lie directly in each.

    Args:
        paths: Of the files, relative, with slashes.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            self.paths[path.rpartition("/")[0]].append(path)
        self._sorted = sorted(f"{folder}/" for folder in self.paths)
        self._children: dict[str, set[str]] = defaultdict(set)
        for folder in self.paths:
            parts = folder.split("/")
            for depth, part in enumerate(parts):
                self._children["/".join(parts[:depth])].add(part)

    def called_as_masks(self) -> list[str]:
        """Return the folders, at any depth, that are called as masks are, outer ones first."""
        found: set[str] = set()
        for folder in self.paths:
            parts = folder.split("/")
            found.update("/".join(parts[: depth + 1]) for depth, part in enumerate(parts) if _FOLDER.search(part))
        return sorted(found)

    def below(self, top: str) -> list[str]:
        """Return a folder and those inside it, as far as there are files in them."""
        first = bisect_left(self._sorted, f"{top}/")
        inside = itertools.takewhile(lambda folder: folder.startswith(f"{top}/"), self._sorted[first:])
        return [folder[:-1] for folder in inside]

    def is_usual(self, top: str) -> bool:
        """Tell whether a folder is the second of `_USUAL_PAIR`, beside the first."""
        parent, _, name = top.rpartition("/")
        return name == _USUAL_PAIR[1] and _USUAL_PAIR[0] in self._children[parent]

    def partners(self, top: str) -> dict[str, str]:
        """Return the image of each mask below a folder: of its name in one sibling of it, or in the folder above."""
        parent, _, name = top.rpartition("/")
        start = f"{parent}/" if parent else ""
        places = [*(f"{start}{sibling}/" for sibling in sorted(self._children[parent] - {name})), start]
        return max((self._pairs(top, place) for place in places), key=len)

    def _pairs(self, top: str, place: str) -> dict[str, str]:
        pairs: dict[str, str] = {}
        for folder in self.below(top):
            beside = self.paths.get(f"{place}{folder[len(top) + 1 :]}".rstrip("/"))
            if beside:
                known = _by_name(beside)
                for path in self.paths[folder]:
                    image = known.get(_stem(path)) or known.get(MASK_END.sub("", _stem(path)))
                    if image is not None:
                        pairs[path] = image
        return pairs


def _stem(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[0]


def _by_name(paths: Sequence[str]) -> dict[str, str]:
    """Return images by their names without ending, and by what these share with those of masks."""
    return {IMAGE_END.sub("", _stem(path)): path for path in paths} | {_stem(path): path for path in paths}


def _with_an_end(paths: Sequence[str]) -> dict[str, str]:
    """Return the image of each mask of one folder: `cat.jpg` of `cat_mask.png`."""
    masks = [path for path in paths if _ends_in(path, _SUFFIXES) and MASK_END.search(_stem(path))]
    known = _by_name([path for path in paths if path not in set(masks)]) if masks else {}
    found = ((path, known.get(MASK_END.sub("", _stem(path)))) for path in masks)
    return {path: image for path, image in found if image is not None}


def _ends_in(path: str, ends: tuple[str, ...]) -> bool:
    return path.lower().endswith(ends)


def _of_the_same_name(paths: Sequence[str], ends: tuple[str, ...]) -> dict[str, str]:
    """Return the image of each mask of one folder, which ends in one of `ends`: `cat.jpg` of `cat.png`."""
    known = {_stem(path): path for path in paths if not _ends_in(path, ends)}
    masks = [path for path in paths if _ends_in(path, ends)]
    return {path: known[_stem(path)] for path in masks if _stem(path) in known}


def _hold_masks(read: ReadImages, paths: set[str], partners: dict[str, str], is_called_so: bool = True) -> bool:
    """Tell whether files are masks: nearly all have an image, and some that are looked at are no pictures.

    Args:
        read: See `masks_among`.
        paths: The files.
        partners: The image of each that has one.
        is_called_so: Whether names say that they are masks; else what is in them must leave no doubt.
    """
    if not partners or len(partners) < (1 - _MOST_ALONE) * len(paths):
        return False
    are_exact = all(_ends_in(path, _SUFFIXES) for path in paths)
    if not are_exact and not is_called_so:
        return False
    masks = sorted(partners)
    chosen = [masks[place] for place in spread_evenly(len(masks), _LOOKED_AT)]
    found = read([*chosen, *(partners[mask] for mask in chosen)])
    looks = [None if data is None else _look(data) for data in found]
    pairs = list(zip(looks[: len(chosen)], looks[len(chosen) :], strict=True))
    known = [(mask, image) for mask, image in pairs if mask is not None and image is not None]
    if not is_called_so and not all(mask.is_narrow and mask.is_drawn and not image.is_narrow for mask, image in known):
        return False
    if not are_exact:  # compression made more values of theirs, so only that they are grey beside colours is left
        return bool(known) and all(mask.is_narrow and not image.is_narrow for mask, image in known)
    return bool(known) and all(_is_mask_of(mask, image) for mask, image in known)


def _is_mask_of(mask: _Look, image: _Look) -> bool:
    if mask.is_narrow and not image.is_narrow:
        return True
    return mask.is_even and not image.is_drawn


def _look(data: bytes) -> _Look | None:
    form = format_of(data)
    if form is not None:
        # Of others nothing is known, so that what lies beside them must show by itself that it is a mask.
        return _look_into_tiff(data) if form.module == "tiff" else _Look(True, False, False)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.format != "PNG":
                return _Look(image.mode == "L", False, False)
            if image.width * image.height > MAX_PIXELS:
                return None
            pixels = np.asarray(image)
            values = pixels.reshape(image.width * image.height, -1)
            sample = values[:: max(1, len(values) // _PIXELS)]
            few = len(np.unique(sample, axis=0)) <= _FEW_VALUES
            return _Look(image.mode in _NARROW, few, few)
    except Exception:  # as many types as decoders have; whoever reads the image says what is wrong with it
        return None


def _look_into_tiff(data: bytes) -> _Look | None:
    try:
        samples = read_samples(data)
    except BadSample:  # which whoever reads the image says, or that its library is not installed
        return None
    values = samples.array
    flat = values.reshape(-1, values.shape[2])
    few = len(np.unique(flat[:: max(1, len(flat) // _PIXELS)], axis=0)) <= _FEW_VALUES
    rows = values[:_EVEN_ROWS]
    beside = (rows[:, 1:] == rows[:, :-1]).all(axis=2)
    below = (rows[1:] == rows[:-1]).all(axis=2)
    shares = [float(same.mean()) for same in (beside, below) if same.size]
    return _Look(samples.kind == "grey", few, min(shares, default=1.0) >= _EVEN)


def is_called_mask(path: str) -> bool:
    """Tell whether the name of a file, or of a folder above it, is one that masks have."""
    folder, _, _ = path.rpartition("/")
    return bool(MASK_END.search(_stem(path)) or any(map(_FOLDER.search, folder.split("/"))))


def could_be_mask(data: bytes, *, is_called_so: bool) -> bool:
    """Tell whether an image, looked at by itself, may be a mask.

    That is one with few different values, of one number per pixel: the colours of an icon are few, too, so that of
    colours only a name tells.

    Args:
        data: The encoded image.
        is_called_so: Whether its name says so.
    """
    look = _look(data)
    return look is not None and look.is_drawn and (look.is_narrow or is_called_so)


def _end_of(path: str) -> str:
    """Return what the name of a mask ends in, such as _mask.png."""
    name, ending = os.path.splitext(path)
    found = MASK_END.search(name)
    return f"{found[0] if found else ''}{ending}"
