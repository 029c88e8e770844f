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
from typing import NamedTuple

from beit.common.errors import InputError
from beit.common.storage.paths import join

logger = logging.getLogger(__name__)

_KIND_OF_WORD = {
    word: kind
    for kind, words in {
        "train": ("train", "training", "trn", "trainval"),
        "validation": ("val", "valid", "validation", "dev", "eval", "evaluation", "holdout"),
        "test": ("test", "testing", "tst"),
        "unlabelled": ("unlabelled", "unlabeled"),
    }.items()
    for word in words
}
_KINDS = ("train", "validation", "test", "unlabelled")
_USES = {
    "train": "to train on",
    "validation": "to measure on (--val)",
    "test": "to evaluate on at the end",
    "unlabelled": "to pre-train on",
}
_WORDS_BESIDE = {
    *("set", "split", "data", "dataset", "folder", "dir", "images", "image", "imgs", "img", "jpg", "jpeg", "png"),
    *("public", "private"),
}
"""May stand beside the name of a split in that of its folder, or be glued to it: `train_images`, `Testset`, `val2017`.
Other words may if a sibling has them too: `seg_train` beside `seg_test`; a `test tube` is a class."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


_MOST_SPLITS = 8
"""Different names in a column of splits; arbitrary."""


class _Name(NamedTuple):
    kind: str
    """Which split is named; empty for none."""
    others: tuple[str, ...]
    """Words of the name that say nothing about splits."""


def warn_of_split_folders(root: str, paths: Iterable[str]) -> None:
    """Say so where loose images lie in folders of several splits, at any depth: all of them are used."""
    folders = _folders(paths)
    for parent, splits in sorted(_split_siblings(folders).items()):
        by_kind = _by_kind({name: kind for name, kind in splits.items() if kind != "unlabelled"})
        if len(by_kind) < 2:
            continue
        place = join(root, parent) if parent else root
        first = by_kind[next(kind for kind in _KINDS if kind in by_kind)]
        others = " and ".join(join(place, name) for name in sorted(set().union(*by_kind.values()) - set(first)))
        logger.warning(
            "%s mixes the splits %s: the images of %s are used, too; give one alone, such as %s",
            place,
            sorted(set().union(*by_kind.values())),
            others,
            join(place, first[0]),
        )
        return  # one line; the same names mostly stand in every parent


def warn_of_split_containers(root: str, paths: Sequence[str]) -> None:
    """Say so where tars or Parquet files belong to several splits by the names of their folders or their own."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        kind, part = _container_split(path)
        if kind and kind != "unlabelled":
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


def container_parts(paths: Sequence[str]) -> dict[str, str]:
    """Return a pattern for the tars or Parquet files of each part of a data set; nothing unless all are of some part.

    Args:
        paths: Of the containers, relative to one folder, with the same ending.
    Returns:
        By "train", "validation" and "test", as far as there are such.
    """
    prefixes: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        kind, part = _container_split(path)
        prefixes[kind].add(part)
    if len(prefixes) < 2 or "" in prefixes or any(len(parts) > 1 for parts in prefixes.values()):
        return {}
    suffix = paths[0].rpartition(".")[2]
    return {kind: f"{part}*.{suffix}" if part[-1] != "/" else part[:-1] for kind, (part,) in prefixes.items()}


def warn_of_split_rows(table: str, column: str, values: Iterable[str]) -> None:
    """Say so where a column of a table holds nothing but the names of several splits: all rows are used."""
    names = {value.strip() for value in values} - {""}
    read = [_read_name(name) for name in names] if len(names) <= _MOST_SPLITS else []
    kinds = {name.kind for name in read if not name.others} - {"unlabelled"}
    if len(kinds) > 1 and "" not in kinds and not any(name.others for name in read):
        logger.warning(
            "%s mixes the splits %s in its column %s, and all rows are used; write a table for each",
            table,
            sorted(names),
            column,
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
        if _kinds_of(level) and len(level[name]) > 1:
            raise InputError(
                f"{place} holds the split {name} only, and the classes are below it; give {join(place, name)}"
            )
        place, folders = join(place, name), {folder.partition("/")[2] for folder in folders}
        level = _children(folders)
    splits = _kinds_of(level)
    if not splits or not _are_no_classes(level, splits):
        return
    by_kind = _by_kind(splits)
    ways = ", ".join(f"{join(place, by_kind[kind][0])} {_USES[kind]}" for kind in _KINDS if kind in by_kind)
    raise InputError(f"{place} holds the splits {sorted(splits)}, and the classes are below them; give {ways}")


def _are_no_classes(level: dict[str, set[str]], splits: dict[str, str]) -> bool:
    inner = {name: folders - {""} for name, folders in level.items()}
    if len(_by_kind(splits)) == 1:
        return set(splits) == set(level) and any(len(inner[name]) > 1 for name in splits)
    shared = any(inner[one] & inner[other] for one in splits for other in splits if splits[one] != splits[other])
    return shared or (set(splits) == set(level) and any(inner[name] for name in splits))


def _folders(paths: Iterable[str]) -> set[str]:
    return {path.rpartition("/")[0] for path in paths}


def _children(folders: Iterable[str]) -> dict[str, set[str]]:
    """Return the first level of some folders, and of each what lies directly below it; "" stands for images."""
    children: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        name, _, rest = folder.partition("/")
        children[name].add(rest.partition("/")[0])
    return children


def _split_siblings(folders: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the names of splits below each folder that has some, and which they are."""
    siblings: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            siblings["/".join(parts[:depth])].add(part)
    return {parent: splits for parent, names in siblings.items() if (splits := _kinds_of(names))}


def _kinds_of(siblings: Iterable[str]) -> dict[str, str]:
    """Return which of some folders that lie side by side are splits, and of which kind."""
    read = {name: _read_name(name) for name in siblings}
    kinds: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for name in read.values():
        kinds[name.others].update([name.kind] if name.kind else [])
    return {
        text: name.kind for text, name in read.items() if name.kind and (not name.others or len(kinds[name.others]) > 1)
    }


def _by_kind(splits: dict[str, str]) -> dict[str, list[str]]:
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name in sorted(splits):
        by_kind[splits[name]].append(name)
    return by_kind


@cache
def _read_name(text: str) -> _Name:
    words: list[str] = _WORD.findall(text)
    kinds = {kind for word in words if (kind := _kind_of_word(word))}
    others = (word.lower() for word in words if not _kind_of_word(word) and word.lower() not in _WORDS_BESIDE)
    return _Name(kinds.pop(), tuple(others)) if len(kinds) == 1 else _Name("", ())


def split_kind(folder: str) -> str:
    """Return which part of a data set a folder's name says, and nothing else: a key of `_USES`, or empty."""
    name = _read_name(folder)
    return "" if name.others else name.kind


def split_of_path(path: str, *, is_container: bool) -> str:
    """Return the folder, or the beginning of a container's path, that says of which part of a data set it is; or empty.

    Args:
        path: Of an image, relative to the source, or of a tar or Parquet file.
        is_container: Whether it is the latter, whose own name counts, too.
    """
    if is_container:
        return _container_split(path)[1]
    folders = path.split("/")[:-1]
    return next(("/".join(folders[: depth + 1]) for depth, name in enumerate(folders) if split_kind(name)), "")


def _kind_of_word(word: str) -> str:
    """Return which split a word names, alone or with one of `_WORDS_BESIDE` glued to it; empty for none."""
    word = word.lower()
    ways = (word, *(word.removesuffix(beside) for beside in _WORDS_BESIDE))
    return next((_KIND_OF_WORD[way] for way in ways if way in _KIND_OF_WORD), "")


def _split_word(part: str) -> str:
    words: list[str] = _WORD.findall(part)
    return next(word.lower() for word in reversed(words) if _kind_of_word(word))


def _container_split(path: str) -> tuple[str, str]:
    """Return which split a container is of, and its path up to the name of the split; two empty texts for none."""
    *folders, name = path.split("/")
    words = [match for match in _WORD.finditer(name.rpartition(".")[0]) if _kind_of_word(match[0])]
    if words:
        part = "/".join([*folders, name[: words[-1].end()]])
        kinds = {_kind_of_word(word[0]) for word in words}
        return (kinds.pop(), part) if len(kinds) == 1 else ("", "")
    for depth in range(len(folders), 0, -1):
        if kind := _read_name(folders[depth - 1]).kind:
            return kind, "/".join(folders[:depth]) + "/"
    return "", ""
