"""Pairs of images and masks in a tree of folders, whatever its layout.

Pairs are found by the path below the folders of images and of masks (`layouts.py`), or where masks lie beside their
images by a word behind the name (`cat.jpg` and `cat_mask.png`); what is in no folder of the same name is found by its
base name, if only one image has it. Not here: what lies in tars, tables and COCO's JSON.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field, replace

from beit.common.errors import InputError, require
from beit.common.images.formats import OTHER_NAMES, is_image_path
from beit.common.sources.lists import read_text
from beit.common.sources.loose_files import FileList, open_files
from beit.common.sources.mask_folders import IMAGE_END, MASK_END
from beit.common.sources.splits import split_kind
from beit.common.storage.matching import list_folder
from beit.common.storage.paths import join
from beit.common.storage.place import FileStat, place_of
from beit.finetune.masks.class_table import USUAL_FILES, ClassTable, read_class_table
from beit.finetune.masks.layouts import (
    MAPILLARY_CONFIGS,
    Layout,
    Roles,
    find_roles,
    guess_layout,
    has_role,
    is_mask_folder,
    mapillary_roles,
    part_of,
)
from beit.finetune.masks.types import MaskedSource
from beit.finetune.masks.values.published import cityscapes_label_ids, cityscapes_train_ids, pascal_voc, segnet_camvid

_OTHER_VIEWS = re.compile(r"(?i)_(color|instanceids|instancetrainids|polygons)$")
"""Masks of Cityscapes that say other things of an image."""
_VOC_YEAR = re.compile(r"(^|/)VOC20\d\d(_|/|$)")
_LISTS = "ImageSets/Segmentation/"
_MASK_ONLY_SUFFIXES = (".gif", ".bmp")
"""What masks may be and images not."""
_MASK_SUFFIXES = (".png", ".tif", ".tiff", *_MASK_ONLY_SUFFIXES)
"""What masks may be; by the first three an image may be called, too."""
_OTHER_MASKS = (".npy", ".npz", ".mat", ".xml", ".json", ".txt", ".jsonl")
"""How masks and outlines come that are not read here, for messages."""
_PARTS = ("train", "validation", "test")


class NothingPaired(InputError):
    """A folder without a single image that has a mask."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask."""

    image: FileStat
    mask: FileStat
    part: str
    """Part of the set: a name of `_PARTS`, or nothing."""


@dataclass(slots=True)
class PairList:
    """What a tree holds."""

    root: str
    layout: Layout
    pairs: list[Pair]
    without_mask: list[tuple[str, str]] = field(default_factory=list)
    """Images, and the part each is of."""
    without_image: list[tuple[str, str]] = field(default_factory=list)
    """Masks, and the part each is of."""
    table: ClassTable | None = None
    reduce_zero_label: bool = False
    notes: list[str] = field(default_factory=list)


def list_pairs(root: str, *, layout: str = "auto", files: Sequence[FileStat] | None = None) -> PairList:
    """Find the pairs of a folder.

    Args:
        root: Normalised path or URL of the folder.
        layout: Which layout it has; "auto" to tell by its folders.
        files: What lies there, where that is known.
    """
    listed = list(list_folder(root) if files is None else files)
    candidates = [file for file in listed if is_image_path(file.path) or _is_mask_only(file.path)]
    guessed = guess_layout(file.path for file in candidates)
    require(
        layout in ("auto", "folders", guessed),
        f"{root} does not look like {layout}: {_EXPECTED.get(layout, '')} is not there; leave data.layout out",
    )
    chosen: Layout = "folders" if layout == "folders" else guessed
    paths = [file.path for file in candidates]
    roles = mapillary_roles(paths) if chosen == "mapillary" else find_roles(paths)
    images, masks, others = _sorted_by_role(candidates, roles)
    if chosen == "cityscapes":
        masks = _cityscapes_masks(masks)
    if roles.of:
        found = _paired(root, images, masks)
        if others:
            found.notes.append(f"{root}: {_of_these(others)} in no folder of images with masks are left out")
    else:
        found = _paired_side_by_side(root, candidates)
    if not found.pairs:
        raise NothingPaired(_nothing_paired(root, listed, found))
    found.layout = chosen
    _read_layout(found, listed)
    _find_table(found, listed)
    return found


_EXPECTED = {
    "voc": "JPEGImages/ beside SegmentationClass/",
    "ade20k": "images/training/ beside annotations/training/",
    "cityscapes": "leftImg8bit/ beside gtFine/",
    "camvid": "train/ beside trainannot/",
    "mapillary": "training/images/ beside training/labels/ and instances/, or beside training/v2.0/labels/",
}


_NAMES = {
    "voc": "PASCAL VOC",
    "ade20k": "ADE20K",
    "cityscapes": "Cityscapes",
    "camvid": "CamVid as SegNet has it",
    "mapillary": "Mapillary Vistas",
}


def source_of(found: PairList, parts: Iterable[str] | None = None) -> MaskedSource:
    """Return the pairs, or those of some parts of the set, as a source."""
    wanted = None if parts is None else set(parts)

    def is_wanted(part: str) -> bool:
        return wanted is None or part in wanted

    pairs = sorted((pair for pair in found.pairs if is_wanted(pair.part)), key=lambda pair: pair.image.path)
    none = [None] * len(pairs)
    images = open_files(FileList(found.root, [pair.image for pair in pairs], list(none)))
    masks = open_files(FileList(found.root, [pair.mask for pair in pairs], list(none)))
    return MaskedSource(
        images=images,
        masks=tuple(masks.shards),
        table=found.table,
        reduce_zero_label=found.reduce_zero_label,
        mask_digest=masks.digest,
        without_mask=tuple(path for path, part in found.without_mask if is_wanted(part)),
        without_image=tuple(path for path, part in found.without_image if is_wanted(part)),
        notes=tuple(found.notes),
    )


@dataclass(frozen=True, slots=True)
class _Placed:
    file: FileStat
    folder: str
    """Where it stands, the same for an image and its mask."""
    stem: str
    """Base name without its ending, in one Unicode form."""

    @property
    def part(self) -> str:
        return part_of(self.file.path)


def _placed(file: FileStat, folder: str) -> _Placed:
    stem = os.path.splitext(file.path.rsplit("/", 1)[-1])[0]
    return _Placed(file, unicodedata.normalize("NFC", folder), unicodedata.normalize("NFC", stem))


def _sorted_by_role(files: Sequence[FileStat], roles: Roles) -> tuple[list[_Placed], list[_Placed], list[FileStat]]:
    images: list[_Placed] = []
    masks: list[_Placed] = []
    others: list[FileStat] = []
    for file in files:
        place = roles.place(file.path)
        if _is_mask_only(file.path) and (place is None or place.role != "mask"):
            continue
        if place is None:
            others.append(file)
        elif place.role != "neither":
            (images if place.role == "image" else masks).append(_placed(file, place.folder))
    return images, masks, others


def _paired(root: str, images: Sequence[_Placed], masks: Sequence[_Placed]) -> PairList:
    """Pair by folder and name, then by name alone."""
    by_place = _by_names(images, lambda image, stem: (image.folder, stem), root)
    by_name: dict[str, list[_Placed]] = defaultdict(list)
    for image in images:
        for stem in _image_stems(image.stem):
            by_name[stem].append(image)
    found = PairList(root, "folders", [])
    mask_of: dict[str, _Placed] = {}
    for mask in masks:
        owner = _found_by_place(mask, by_place) or _found_by_name(mask, by_name)
        if owner is None:
            found.without_image.append((mask.file.path, mask.part))
            continue
        other = mask_of.setdefault(owner.file.path, mask)
        require(
            other is mask,
            f"{join(root, owner.file.path)} has two masks, {other.file.path} and {mask.file.path}; leave one",
        )
        found.pairs.append(Pair(owner.file, mask.file, owner.part))
    found.without_mask += [(image.file.path, image.part) for image in images if image.file.path not in mask_of]
    return found


def _by_names(
    images: Sequence[_Placed], key: Callable[[_Placed, str], tuple[str, str]], root: str
) -> dict[tuple[str, str], _Placed]:
    places: dict[tuple[str, str], _Placed] = {}
    for image in images:
        other = places.setdefault(key(image, image.stem), image)
        require(
            other is image,
            f"{join(root, image.file.path)} and {other.file.path} differ in their endings only, so that their masks "
            "cannot be told apart; rename one",
        )
    for image in images:
        for stem in _image_stems(image.stem)[1:]:
            places.setdefault(key(image, stem), image)
    return places


def _found_by_place(mask: _Placed, by_place: dict[tuple[str, str], _Placed]) -> _Placed | None:
    places = ((mask.folder, stem) for stem in _mask_stems(mask.stem))
    return next((by_place[place] for place in places if place in by_place), None)


def _found_by_name(mask: _Placed, by_name: dict[str, list[_Placed]]) -> _Placed | None:
    for stem in _mask_stems(mask.stem):
        images = [image for image in by_name.get(stem, []) if not mask.part or image.part in ("", mask.part)]
        if len(images) > 1:
            raise InputError(
                f"the mask {mask.file.path} may be of {images[0].file.path} or of {images[1].file.path}; put masks "
                "into the same sub-folders as their images"
            )
        if images:
            return images[0]
    return None


def _is_mask_only(path: str) -> bool:
    """Tell whether a file may be a mask and no image."""
    return path.lower().endswith(_MASK_ONLY_SUFFIXES)


def _mask_stems(stem: str) -> list[str]:
    """Return the names that the image of a mask may have, the likeliest first."""
    stems = [stem]
    if is_image_path(stem):  # cat.jpg.png
        stems.append(os.path.splitext(stem)[0])
    for name in list(stems):
        if match := MASK_END.search(name):
            stems.append(name[: match.start()])
            if is_image_path(stems[-1]):
                stems.append(os.path.splitext(stems[-1])[0])
    return stems


def _image_stems(stem: str) -> list[str]:
    match = IMAGE_END.search(stem)
    return [stem, stem[: match.start()]] if match and match.start() else [stem]


def _paired_side_by_side(root: str, files: Sequence[FileStat]) -> PairList:
    """Pair files of one folder: `cat.jpg` with `cat_mask.png`, or else with `cat.png`."""
    placed = [_placed(file, file.path.rpartition("/")[0]) for file in files]
    stems = {(one.folder, one.stem) for one in placed}
    stems |= {(one.folder, stem) for one in placed for stem in _image_stems(one.stem)[1:]}

    def is_mask(one: _Placed) -> bool:
        return any((one.folder, stem) in stems for stem in _mask_stems(one.stem)[1:])

    masks = [one for one in placed if is_mask(one)]
    if not masks:
        counts = Counter((one.folder, one.stem) for one in placed)
        twice = [one for one in placed if counts[one.folder, one.stem] == 2]
        masks = [one for one in twice if one.file.path.lower().endswith(_MASK_SUFFIXES)]
    chosen = {mask.file.path for mask in masks}
    images = [one for one in placed if one.file.path not in chosen and not _is_mask_only(one.file.path)]
    if not masks:
        return PairList(root, "folders", [])
    return _paired(root, images, masks)


def _cityscapes_masks(masks: Sequence[_Placed]) -> list[_Placed]:
    """Choose trainIds where all images have them, else labelIds."""
    kinds: dict[str, list[_Placed]] = defaultdict(list)
    for mask in masks:
        if not _OTHER_VIEWS.search(mask.stem):
            kinds["trainids" if mask.stem.lower().endswith("trainids") else "labelids"].append(mask)
    is_complete = len(kinds["trainids"]) >= max(1, len(kinds["labelids"]))
    return kinds["trainids"] if is_complete else kinds["labelids"]


def _read_layout(found: PairList, files: Sequence[FileStat]) -> None:
    """Take from the layout what it says beyond pairs."""
    if found.layout != "folders":
        found.notes.append(f"{found.root}: laid out as {_NAMES[found.layout]}")
    if found.layout == "voc":
        _read_voc_lists(found, files)
    if found.layout == "ade20k":
        found.reduce_zero_label = True
        found.notes[-1] += (
            ", so the value 0 means no class, and 1 is the first (data.layout=folders would make 0 a class)"
        )


def _read_voc_lists(found: PairList, files: Sequence[FileStat]) -> None:
    """Keep what the lists of ImageSets/Segmentation name, in their parts; images in no list need no mask."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if _LISTS in f"/{file.path}" and file.path.endswith(".txt"):
            by_name[_stem(file.path)].append(file.path)
    chosen = {"train": by_name["train"], "validation": by_name["val"], "test": by_name["test"]}
    if not chosen["train"]:
        whole = by_name["trainval"] or by_name["default"]
        chosen = {"train": whole, "validation": [] if whole else chosen["validation"]}
    there = {_stem(path) for path in (*(pair.image.path for pair in found.pairs), *dict(found.without_mask))}
    part_of_stem: dict[str, str] = {}
    for part, lists in chosen.items():
        for line in (line for name in lists for line in read_text(join(found.root, name)).splitlines()):
            if line.strip():
                part_of_stem.setdefault(_stem_of_id(line.strip(), there), part)
    if absent := sorted(set(part_of_stem) - there):
        found.notes.append(f"{found.root}: {len(absent)} names in {_LISTS} have no image (first: {absent[0]})")
    if not part_of_stem:
        if found.without_mask:
            found.notes.append(f"{found.root}: {len(found.without_mask)} images of JPEGImages have no mask; left out")
        found.without_mask = []
        return
    unlisted = [pair for pair in found.pairs if _stem(pair.image.path) not in part_of_stem]
    if unlisted:
        found.notes.append(f"{found.root}: {len(unlisted)} masks are in no list of {_LISTS} and left out")
    found.pairs = [
        replace(pair, part=part_of_stem[stem])
        for pair in found.pairs
        if (stem := _stem(pair.image.path)) in part_of_stem
    ]
    found.without_mask = [
        (path, part_of_stem[stem]) for path, _ in found.without_mask if (stem := _stem(path)) in part_of_stem
    ]


def _stem_of_id(line: str, there: set[str]) -> str:
    """Return which image a line of a list names, by name or path; it may say more behind that."""
    for name in (line, line.split()[0]):
        base = name.rsplit("/", 1)[-1]
        for stem in (base, _stem(base)):
            if stem in there:
                return stem
    return line.split()[0]


def _stem(path: str) -> str:
    return os.path.splitext(path.rsplit("/", 1)[-1])[0]


def _find_table(found: PairList, files: Sequence[FileStat]) -> None:
    """Read what lies beside the data and says what values mean; else take what is published of the layout."""
    own = _own_table(found.root, {file.path for file in files})
    if own is not None:
        found.table = own
        return
    above, _, name = found.root.rpartition("/")
    if split_kind(name):  # what is beside the parts of a set holds for all of them
        beside = next((file for file in USUAL_FILES if place_of(join(above, file)).exists()), None)
        if beside is not None:
            found.table = read_class_table(join(above, beside))
            return
    if found.layout == "mapillary":
        found.table = _mapillary_table(found.root)
    elif found.layout == "cityscapes":
        is_train_ids = _stem(found.pairs[0].mask.path).lower().endswith("trainids")
        found.table = cityscapes_train_ids() if is_train_ids else cityscapes_label_ids()
    elif found.layout == "voc" and (_VOC_YEAR.search(found.root) or _VOC_YEAR.search(found.pairs[0].image.path)):
        found.table = pascal_voc()
    elif found.layout == "camvid":
        found.table = segnet_camvid()


def _mapillary_table(root: str) -> ClassTable | None:
    """Read the configuration of Mapillary Vistas, in the folder of the parts or above one."""
    above, _, name = root.rpartition("/")
    for folder in (root, above) if split_kind(name) else (root,):
        for file in MAPILLARY_CONFIGS:
            if place_of(join(folder, file)).exists():
                return read_class_table(join(folder, file))
    return None


def _own_table(root: str, paths: Set[str]) -> ClassTable | None:
    """Read the file of classes that lies highest in a tree; parts that have one each must mean the same by it."""
    folders = sorted({path.rpartition("/")[0] for path in paths}, key=lambda folder: (_depth(folder), folder))
    listed = [(folder, f"{folder}/{name}" if folder else name) for folder in folders for name in USUAL_FILES]
    there = [(folder, path) for folder, path in listed if path in paths]
    if not there:
        return None
    top = there[0][0]
    first = read_class_table(join(root, there[0][1]))
    for folder, path in there[1:]:
        if folder == top or _depth(folder) > _depth(top):
            continue
        other = read_class_table(join(root, path))
        require(
            other.entries == first.entries,
            f"{first.origin} and {other.origin} say different things of the classes; name the one that is right with "
            "data.classes",
        )
    return first


def _depth(folder: str) -> int:
    return len(folder.split("/")) if folder else 0


def _nothing_paired(root: str, files: Sequence[FileStat], found: PairList) -> str:
    """Say why a tree has no pairs, and the way out."""
    images = [file for file in files if is_image_path(file.path)]
    if found.without_image and found.without_mask:
        return (
            f"no mask in {root} has the name of an image: there are {found.without_mask[0][0]} and "
            f"{found.without_image[0][0]}; give both the same base name"
        )
    endings = Counter(os.path.splitext(file.path)[1].lower() for file in files)
    other = [f"{endings[ending]} {ending}" for ending in _OTHER_MASKS if endings[ending]]
    hint = f" ({', '.join(other)} are no masks here: masks are PNG, outlines COCO's JSON)" if other else ""
    unread = [file.path for file in files if _is_mask_only(file.path) and file.path not in dict(found.without_image)]
    if unread:
        hint = f" ({unread[0]} and the like are read as masks only; images are JPEG, PNG, WebP, {OTHER_NAMES})"
    if has_role(root.rsplit("/", 1)[-1]):
        return f"{root} holds no pairs of images and masks; give {root.rpartition('/')[0]}, where the others lie, too"
    lone = next((folder for folder in _folders(images) if is_mask_folder(folder.rsplit("/", 1)[-1])), None)
    if lone is not None and not found.without_mask and not unread:
        return (
            f"{join(root, lone)} looks like masks, and no folder beside it holds their images; put these into one "
            "called images, beside it"
        )
    if not images or (unread and not found.without_mask):
        return f"{root} holds no images{hint}; give the folder above images/ and annotations/"
    return (
        f"{root} holds {len(images)} images and no masks that could be told from them{hint}; put images into images/ "
        "and masks of the same base names into annotations/, or give the folder above both"
    )


def _folders(files: Sequence[FileStat]) -> list[str]:
    """Return the folders of some files, and those above them."""
    found: set[str] = set()
    for file in files:
        parts = file.path.split("/")[:-1]
        found.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    return sorted(found)


def _of_these(files: Sequence[FileStat]) -> str:
    return f"{len(files)} images (first: {files[0].path})"
