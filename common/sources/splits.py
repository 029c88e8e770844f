"""Folders and files that are the training, validation and test part of a data set, recognised by their names.

Somebody who gives the folder above them mostly means one part. Loose images are told apart by their folders only, since
an image may be called anything; containers by their own names, too, as Hugging Face does it.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache

from beit.common.errors import InputError
from beit.common.storage.paths import join

logger = logging.getLogger(__name__)

_KIND_OF_WORD = {
    word: kind
    for kind, words in {
        "train": ("train", "training"),
        "validation": ("val", "valid", "validation", "dev"),
        "test": ("test", "testing"),
    }.items()
    for word in words
}
_KINDS = ("train", "validation", "test")
_WORDS_BESIDE = {"set", "split", "data", "dataset", "images", "image", "imgs", "img", "jpg", "jpeg", "png"}
"""May stand beside the name of a split in that of its folder: `train_images`, `val2017`. A `test tube` is a class."""
_WORD = re.compile(r"[a-z]+")


def warn_of_split_folders(root: str, paths: Iterable[str]) -> None:
    """Say so where loose images lie in folders of several splits, at any depth: all of them are used."""
    folders = _folders(paths)
    for parent, splits in sorted(_split_siblings(folders).items()):
        by_kind = _by_kind(splits)
        if len(by_kind) < 2:
            continue
        place = join(root, parent) if parent else root
        first = by_kind[next(kind for kind in _KINDS if kind in by_kind)]
        others = " and ".join(join(place, name) for name in sorted(splits) if name not in first)
        logger.warning(
            "%s mixes the splits %s: the images of %s are used, too; give one alone, such as %s",
            place,
            sorted(splits),
            others,
            join(place, first[0]),
        )
        return  # one line; the same names mostly stand in every parent


def warn_of_split_containers(root: str, paths: Sequence[str]) -> None:
    """Say so where tars or Parquet files belong to several splits by the names of their folders or their own."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        kind, part = _container_split(path)
        if kind:
            found[kind].append(part)
    if len(found) < 2:
        return
    example = found[next(kind for kind in _KINDS if kind in found)][0]
    suffix = paths[0].rpartition(".")[2]
    logger.warning(
        "%s mixes the splits %s, and all of them are used; give one alone, such as '%s'",
        root,
        sorted({_split_word(part) for parts in found.values() for part in parts}),
        join(root, f"{example}*.{suffix}" if not example.endswith("/") else example.rstrip("/")),
    )


def refuse_splits_as_classes(root: str, paths: Iterable[str]) -> None:
    """Refuse loose images whose folders would be classes, but are splits with the classes below.

    That is so where all folders are splits and there are folders below them, and where two splits have folders of the
    same name. Folders that have all images in one sub-folder are looked into, as `flowers/{train,test}` in `data/`.

    Args:
        root: Folder that was named.
        paths: Of all images below it.
    """
    folders = _folders(paths)
    place, level = root, _children(folders)
    while len(level) == 1 and "" not in level:
        (name,) = level
        if _split_kind(name) and len(level[name]) > 1:
            raise InputError(
                f"{place} holds the split {name} only, and the classes are below it; give {join(place, name)}"
            )
        place, folders = join(place, name), {folder.partition("/")[2] for folder in folders}
        level = _children(folders)
    splits = {name for name in level if _split_kind(name)}
    if not splits or not _are_no_classes(level, splits):
        return
    by_kind = _by_kind(splits)
    uses = {"train": "to train on", "validation": "to measure on (--val)", "test": "to evaluate on at the end"}
    ways = ", ".join(f"{join(place, by_kind[kind][0])} {uses[kind]}" for kind in _KINDS if kind in by_kind)
    raise InputError(f"{place} holds the splits {sorted(splits)}, and the classes are below them; give {ways}")


def _are_no_classes(level: dict[str, set[str]], splits: set[str]) -> bool:
    inner = {name: folders - {""} for name, folders in level.items()}
    if len(_by_kind(splits)) == 1:
        return splits == set(level) and any(len(inner[name]) > 1 for name in splits)
    shared = any(
        inner[one] & inner[other] for one in splits for other in splits if _split_kind(one) != _split_kind(other)
    )
    return shared or (splits == set(level) and any(inner[name] for name in splits))


def _folders(paths: Iterable[str]) -> set[str]:
    return {path.rpartition("/")[0] for path in paths}


def _children(folders: Iterable[str]) -> dict[str, set[str]]:
    """Return the first level of some folders, and of each what lies directly below it; "" stands for images."""
    children: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        name, _, rest = folder.partition("/")
        children[name].add(rest.partition("/")[0])
    return children


def _split_siblings(folders: Iterable[str]) -> dict[str, set[str]]:
    """Return the names of splits below each folder that has some."""
    siblings: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            if _split_kind(part):
                siblings["/".join(parts[:depth])].add(part)
    return siblings


def _by_kind(splits: Iterable[str]) -> dict[str, list[str]]:
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name in sorted(splits):
        by_kind[_split_kind(name)].append(name)
    return by_kind


@cache
def _split_kind(folder: str) -> str:
    """Return which split a folder is by its name; empty for none."""
    words = _WORD.findall(folder.lower())
    kinds: set[str] = {_KIND_OF_WORD.get(word, "") for word in words if word not in _WORDS_BESIDE}
    return kinds.pop() if len(kinds) == 1 else ""


def _split_word(part: str) -> str:
    words: list[str] = _WORD.findall(part.lower())
    return next(word for word in reversed(words) if word in _KIND_OF_WORD)


def _container_split(path: str) -> tuple[str, str]:
    """Return which split a container is of, and its path up to the name of the split; two empty texts for none."""
    *folders, name = path.split("/")
    words = [match for match in _WORD.finditer(name.lower().rpartition(".")[0]) if match[0] in _KIND_OF_WORD]
    if words:
        part = "/".join([*folders, name[: words[-1].end()]])
        return (_KIND_OF_WORD[words[-1][0]], part) if len({_KIND_OF_WORD[word[0]] for word in words}) == 1 else ("", "")
    for depth in range(len(folders), 0, -1):
        if kind := _split_kind(folders[depth - 1]):
            return kind, "/".join(folders[:depth]) + "/"
    return "", ""
