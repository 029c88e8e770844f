"""Which folders of a tree hold images and which hold their masks, by what they are called.

Here: the roles of folders, of any set and of published ones, and which part of a set (train, val, test) a file is of.
Which mask belongs to which image is `folders.py`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from beit.common.sources.splits import split_kind

Role = Literal["image", "mask", "neither"]
Layout = Literal["folders", "voc", "ade20k", "cityscapes", "camvid", "mapillary"]

_IMAGE_WORDS = ("images", "image", "imgs", "img", "photos", "photo", "pictures", "rgb", "input", "inputs", "stills")
_MASK_WORDS = (
    *("annotations", "annotation", "annots", "annot", "anno", "annos", "ann", "anns", "masks", "mask", "labels"),
    *(
        "label",
        "labelled",
        "labeled",
        "labelmaps",
        "gt",
        "gts",
        "groundtruth",
        "ground",
        "truth",
        "segmentation",
        "segmentations",
    ),
    *("seg", "segs", "segmaps", "targets", "target"),
)
_SPECIAL: dict[str, tuple[Role, str]] = {
    "jpegimages": ("image", ""),
    "segmentationclass": ("mask", ""),
    "segmentationclasspng": ("mask", ""),
    "segmentationobject": ("neither", ""),
    "segmentationobjectpng": ("neither", ""),
    "segmentationclassvisualization": ("neither", ""),
    "leftimg8bit": ("image", ""),
    "gtfine": ("mask", ""),
    "gtcoarse": ("mask", ""),
    "701_stillsraw_full": ("image", ""),
    "labeledapproved_full": ("mask", ""),
}
"""Folders of published sets, and what is left of their names without the word for the role."""
MAPILLARY_CONFIGS = ("config_v2.0.json", "config.json", "config_v1.2.json")
"""Names and colours of Mapillary Vistas; of a set with masks of two versions, those of the newer are used."""
_MAPILLARY_LABELS = ("v2.0/labels", "labels", "v1.2/labels")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Place(NamedTuple):
    """Where a file stands in its set."""

    role: Role
    folder: str
    """Of its image and its mask the same: the path of the folder without what names the role."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The folders of a tree that hold images or masks."""

    of: dict[str, tuple[Role, str]]
    """Of some folders, by path: the role, and what stands for the folder where the role is left out."""
    bare: frozenset[str] = frozenset()
    """Folders whose own files are images, since their masks lie in a folder inside."""

    def place(self, path: str) -> Place | None:
        """Return where a file stands; None if it is in no folder that has a role."""
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            found = self.of.get("/".join(parts[:depth]))
            if found is not None:
                role, rest = found
                kept = [*parts[: depth - 1], *([rest] if rest else []), *parts[depth:]]
                return Place(role, "/".join(kept))
        folder = "/".join(parts)
        return Place("image", folder) if folder in self.bare else None


def find_roles(paths: Sequence[str]) -> Roles:
    """Find the folders of images and of masks that stand side by side, at any depth.

    Args:
        paths: Of all files that may be images or masks, relative, with slashes.
    """
    children: dict[str, set[str]] = defaultdict(set)
    holding: set[str] = set()
    for path in paths:
        parts = path.split("/")[:-1]
        holding.add("/".join(parts))
        for depth, part in enumerate(parts):
            children["/".join(parts[:depth])].add(part)
    roles: dict[str, tuple[Role, str]] = {}
    bare: set[str] = set()
    for parent, names in children.items():
        found, is_bare = _sibling_roles(names, holds_files=parent in holding)
        roles.update({f"{parent}/{name}" if parent else name: role for name, role in found.items()})
        if is_bare:
            bare.add(parent)
    return Roles(roles, frozenset(bare))


def _sibling_roles(names: Iterable[str], *, holds_files: bool) -> tuple[dict[str, tuple[Role, str]], bool]:
    """Return the roles of folders that stand side by side, and whether the images lie beside them."""
    read = {name: _read(name) for name in sorted(names)}
    roles: dict[str, tuple[Role, str]] = {}
    is_bare = False
    for mask, (role, rest) in read.items():
        if role != "mask":
            continue
        images, shared = _images_of(mask, rest, read)
        if len(images) == 1:
            roles[images[0]], roles[mask] = ("image", shared), ("mask", shared)
        elif not images and not rest and holds_files:
            roles[mask] = ("mask", "")
            is_bare = True
    if roles:
        roles |= {name: ("neither", "") for name, (role, _) in read.items() if role == "neither"}
    return roles, is_bare


def _images_of(mask: str, rest: str, read: Mapping[str, tuple[str, str]]) -> tuple[list[str], str]:
    """Return the folders that may hold the images of a folder of masks, and what stands for both."""
    images = [name for name, (role, its_rest) in read.items() if role == "image" and its_rest == rest]
    others = [name for name, (role, _) in read.items() if role == "plain"]
    if images:
        return images, rest
    if images := [name for name in others if " ".join(_words(name)) == rest]:
        return images, rest
    # `Training_Input` and `Training_GroundTruth_v2`: the only ones of their part.
    part = _part_of_folder(mask)
    of_part = {
        role: [name for name, found in read.items() if found[0] == role and _part_of_folder(name) == part]
        for role in ("image", "mask")
    }
    if of_part["image"] and len(of_part["mask"]) == 1:
        return of_part["image"], part
    if not rest and len(others) == 1 and not split_kind(others[0]):
        return others, ""
    return [], rest


def is_mask_folder(name: str) -> bool:
    """Tell whether a folder is called as one of masks is."""
    return _read(name)[0] == "mask"


def has_role(name: str) -> bool:
    """Tell whether a folder is called as one of images or of masks alone is."""
    return _read(name)[0] != "plain"


def _read(name: str) -> tuple[Role | Literal["plain"], str]:
    """Return the role that the name of a folder says, and the other words in it."""
    if name.lower() in _SPECIAL:
        return _SPECIAL[name.lower()]
    words = _words(name)
    for role, known in (("mask", _MASK_WORDS), ("image", _IMAGE_WORDS)):
        if any(word in known for word in words):
            return role, " ".join(word for word in words if word not in known)  # type: ignore[return-value]
    return "plain", " ".join(words)


def _words(name: str) -> list[str]:
    """Return the words of a name, of `trainannot` both."""
    words = []
    for word in (found.lower() for found in _WORD.findall(name)):
        ends = [known for known in (*_MASK_WORDS, *_IMAGE_WORDS) if word != known and word.endswith(known)]
        end = max(ends, key=len, default="")
        words += [word[: -len(end)], end] if end and split_kind(word[: -len(end)]) else [word]
    return words


def part_of(path: str) -> str:
    """Return which part of a set a file is of, by the folders it lies in: train, validation, test, or nothing."""
    return next((kind for folder in path.split("/")[:-1] if (kind := _part_of_folder(folder))), "")


@cache
def _part_of_folder(folder: str) -> str:
    if kind := split_kind(folder):
        return kind
    role, rest = _read(folder)
    kinds = {kind for word in rest.split() if (kind := split_kind(word))} if role != "plain" else set()
    return kinds.pop() if len(kinds) == 1 else ""


def guess_layout(paths: Iterable[str]) -> Layout:
    """Tell which published layout a tree has; "folders" for any other."""
    folders = {folder for path in paths for folder in _ancestors(path)}
    names = {folder.rsplit("/", 1)[-1] for folder in folders}
    if "leftImg8bit" in names and names & {"gtFine", "gtCoarse"}:
        return "cityscapes"
    if "JPEGImages" in names and any(name.startswith("SegmentationClass") for name in names):
        return "voc"
    if any(folder.endswith("annotations/training") for folder in folders) and any(
        folder.endswith("images/training") for folder in folders
    ):
        return "ade20k"
    if _mapillary_parts(folders):
        return "mapillary"
    if any(name.endswith("annot") and name.removesuffix("annot") in names for name in names):
        return "camvid"
    return "folders"


def mapillary_roles(paths: Iterable[str]) -> Roles:
    """Return the roles of the folders of Mapillary Vistas: images, labels of one version, and what is neither."""
    roles: dict[str, tuple[Role, str]] = {}
    folders = {folder for path in paths for folder in _ancestors(path)}
    for part, labels in _mapillary_parts(folders).items():
        start = f"{part}/" if part else ""
        inside = {folder for folder in folders if folder.startswith(start) and folder != part}
        roles |= {folder: ("neither", "") for folder in inside if not f"{start}{labels}/".startswith(f"{folder}/")}
        roles |= {f"{start}images": ("image", ""), f"{start}{labels}": ("mask", "")}
    return Roles(roles)


def _mapillary_parts(folders: Set[str]) -> dict[str, str]:
    """Return the parts of a tree that are laid out as Mapillary Vistas is, and which of their folders has the masks."""
    found = {}
    for part in {folder.rpartition("/")[0] for folder in folders if folder.rpartition("/")[2] == "images"}:
        start = f"{part}/" if part else ""
        labels = next((name for name in _MAPILLARY_LABELS if f"{start}{name}" in folders), None)
        if part.rpartition("/")[2] not in ("", "training", "validation", "testing"):
            continue
        if labels is not None and f"{start}{labels.removesuffix('labels')}instances" in folders:
            found[part] = labels
    return found


def _ancestors(path: str) -> Iterable[str]:
    parts = path.split("/")[:-1]
    return ("/".join(parts[: depth + 1]) for depth in range(len(parts)))
