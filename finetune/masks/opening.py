"""Open whatever a user calls their images with masks: a folder of any layout, COCO's JSON, Parquet, tars.

Here: which kind it is, and which of its parts is learned from and which measured on. The kinds are `folders.py`,
`coco.py`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from beit.common.errors import InputError, require
from beit.common.pages.numbers import count
from beit.common.sources.config import SourceConfig
from beit.common.sources.splits import container_parts
from beit.common.storage.matching import is_folder, list_folder
from beit.common.storage.paths import is_remote, join, normalise, split_query
from beit.common.storage.place import FileStat
from beit.finetune.masks.coco import coco_splits, looks_like_coco, open_coco
from beit.finetune.masks.folders import NothingPaired, PairList, list_pairs, source_of
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.tables import looks_like_tables, open_table_pairs
from beit.finetune.masks.tar_pairs import looks_like_tars, open_tar_pairs
from beit.finetune.masks.types import MaskedSource

_CONTAINERS = (".json", ".parquet", ".tar")
_TRAIN, _VALIDATION, _TEST = "train", "validation", "test"


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedParts:
    """What a DATA holds."""

    train: MaskedSource
    """To learn from; all of it where it has no parts."""
    val: MaskedSource | None
    """To measure on, where DATA has such a part beside one to learn from."""
    name: str
    """What `train` is called."""
    val_name: str = ""
    """What `val` is called."""


def open_parts(data: str, settings: MaskDataConfig, *, reading: SourceConfig) -> MaskedParts:
    """Open images with masks to learn from, and those to measure on if they lie beside them.

    Args:
        data: Folder, file, pattern or URL.
        settings: Its layout, and what masks mean.
        reading: Which images are read.
    """
    name, _ = split_query(data)
    found = _listed(data, settings)
    if found is None:
        places = _container_parts(data, settings)
        train = places.get(_TRAIN, data)
        val = places.get(_VALIDATION) if train != data else None
        source = _open_container(train, settings, reading=reading)
        if places and _TRAIN not in places:
            note = f"{name} has no part train: all of it is learned from, its parts {' and '.join(sorted(places))}"
            source = replace(source, notes=(*source.notes, note))
        return MaskedParts(
            train=source,
            val=None if val is None else _open_container(val, settings, reading=reading),
            name=split_query(train)[0],
            val_name=val or "",
        )
    parts = {pair.part for pair in found.pairs}
    if _TRAIN not in parts or len(parts) == 1:
        if parts - {_TRAIN, ""}:
            found.notes.append(f"{name} has no part train: all of it is learned from, {_counted(found, sorted(parts))}")
        return MaskedParts(train=_of_parts(found, parts, settings), val=None, name=name)
    others = sorted(parts - {_TRAIN, _VALIDATION})
    if others:
        found.notes.append(f"{name}: {_counted(found, others)} left out of the training, which uses the part train")
    return MaskedParts(
        train=_of_parts(found, [_TRAIN], settings),
        val=_of_parts(found, [_VALIDATION], settings) if _VALIDATION in parts else None,
        name=_part_name(name, found, _TRAIN),
        val_name=_part_name(name, found, _VALIDATION) if _VALIDATION in parts else "",
    )


def _of_parts(found: PairList, parts: Iterable[str], settings: MaskDataConfig) -> MaskedSource:
    """Return the pairs of some parts; that parts without a single mask are left out is noted."""
    paired = {pair.part for pair in found.pairs}
    for part in sorted({part for _, part in found.without_mask} - paired):
        number = sum(its_part == part for _, its_part in found.without_mask)
        have = "have no masks" if number > 1 else "has no mask"
        note = f"{found.root}: {count(number, 'image')} of {f'its part {part}' if part else 'no part'} {have}; left out"
        found.notes += [note] if note not in found.notes else []
    return _with_idle_settings(source_of(found, parts), "folders", settings, name=found.root)


def open_val(parts: MaskedParts, settings: MaskDataConfig, *, reading: SourceConfig) -> tuple[MaskedSource, str] | None:
    """Open what a training is measured on, and return its name, too: --val, or DATA's own part; None for neither.

    Args:
        parts: What DATA holds.
        settings: Which has the name of --val.
        reading: Which images are read.
    """
    if settings.val is None:
        if parts.val is None:
            return None
        own = tuple(note for note in parts.val.notes if note not in parts.train.notes)  # each is said once
        return replace(parts.val, notes=own), parts.val_name
    val, name = open_measured(settings.val, settings, reading=reading)
    notes = list(val.notes)
    if parts.val is not None:
        notes.append(f"{parts.val_name} is not used, since --val names {name}")
    table = parts.train.table
    if val.table is None and not val.is_ids and table is not None and settings.classes is None:
        notes.append(f"{name} has no file of classes: its values are taken to mean what {table.origin} says")
        val = replace(val, table=table)
    return replace(val, notes=tuple(notes)), name


def holds_masks(data: str) -> bool:
    """Tell whether `data` are images with masks, whole or not, and not images with labels or none."""
    try:
        open_parts(data, MaskDataConfig(), reading=SourceConfig())
    except InputError:
        return False
    return True


def open_pairs(data: str, settings: MaskDataConfig, *, reading: SourceConfig) -> MaskedSource:
    """Open images with masks to measure on: of a DATA with parts, the one for validation, or else the one for tests.

    Args:
        data: As `open_parts` takes it.
        settings: See there.
        reading: See there.
    """
    return open_measured(data, settings, reading=reading)[0]


def open_measured(data: str, settings: MaskDataConfig, *, reading: SourceConfig) -> tuple[MaskedSource, str]:
    """Open what `open_pairs` does, and return its name, too."""
    name, _ = split_query(data)
    found = _listed(data, settings)
    if found is None:
        places = _container_parts(data, settings)
        place = next((places[part] for part in (_VALIDATION, _TEST) if part in places), data)
        return _open_container(place, settings, reading=reading), split_query(place)[0]
    parts = {pair.part for pair in found.pairs}
    chosen = next((part for part in (_VALIDATION, _TEST) if part in parts), None)
    if chosen is None or len(parts) == 1:
        return _of_parts(found, parts, settings), name
    found.notes.append(f"{name}: measured on its part {chosen}; {_counted(found, sorted(parts - {chosen}))} not used")
    return _of_parts(found, [chosen], settings), _part_name(name, found, chosen)


def _listed(data: str, settings: MaskDataConfig) -> PairList | None:
    """Return the pairs of a folder; None for what is no folder of image files."""
    require(data != "", "DATA ('') must be a folder of images and masks, or a file that tells of some")
    text, query = split_query(data)
    root = normalise(text)
    if settings.layout == "coco" or query or root.lower().endswith(_CONTAINERS):
        return None
    if not is_folder(root):
        if is_remote(root) or any(sign in root for sign in "*?[{"):
            return None
        what = "is a file" if os.path.exists(root) else "does not exist"
        raise InputError(f"{root} {what}; give a folder of images and masks")
    files = list_folder(root)
    if _contained(files):
        return None
    try:
        return list_pairs(root, layout=settings.layout, files=files)
    except NothingPaired:
        if settings.layout == "auto" and looks_like_coco(data):
            return None
        raise


def _contained(files: Iterable[FileStat]) -> list[str]:
    """Return the tars or Parquet files among some files."""
    return [file.path for file in files if file.path.lower().endswith((".tar", ".parquet"))]


def _container_parts(data: str, settings: MaskDataConfig) -> dict[str, str]:
    """Return what is to be opened for each part of a DATA that is no folder of images; nothing where it has none."""
    root = normalise(split_query(data)[0])
    if settings.layout in ("auto", "coco") and (files := coco_splits(data)) is not None:
        return dict(zip((_TRAIN, _VALIDATION), files, strict=True))
    if root.lower().endswith(_CONTAINERS) or not is_folder(root):
        return {}
    found = _contained(list_folder(root))
    parts = container_parts(found) if found else {}
    pattern_root = root if is_remote(root) else glob.escape(root)
    return {part: join(pattern_root if "*" in pattern else root, pattern) for part, pattern in parts.items()}


def _open_container(data: str, settings: MaskDataConfig, *, reading: SourceConfig) -> MaskedSource:
    """Open COCO's JSON, Parquet or tars."""
    path = split_query(data)[0].lower()
    if path.endswith(".parquet") or (not path.endswith(_CONTAINERS) and looks_like_tables(data)):
        return _with_idle_settings(open_table_pairs(data, settings, reading=reading), "Parquet", settings, name=data)
    if path.endswith(".tar") or (not path.endswith(_CONTAINERS) and looks_like_tars(data)):
        return _with_idle_settings(open_tar_pairs(data, settings, reading=reading), "tars", settings, name=data)
    if settings.layout == "coco" or looks_like_coco(data):
        return _with_idle_settings(open_coco(data, settings, reading=reading), "COCO", settings, name=data)
    raise InputError(f"{data} is no folder of images and masks, nor tars, Parquet or COCO's JSON")


def _with_idle_settings(source: MaskedSource, kind: str, settings: MaskDataConfig, *, name: str) -> MaskedSource:
    """Note which settings are for another kind of data: not refused, since they may be meant for what --val names."""
    meant = {"image_column": "Parquet", "mask_column": "Parquet", "mask_member": "tars", "coco_background": "COCO"}
    notes = [
        f"data.{setting} ({value}) is for {its_kind}, and changes nothing for {split_query(name)[0]} ({kind})"
        for setting, its_kind in meant.items()
        if (value := getattr(settings, setting)) is not None and its_kind != kind
    ]
    return replace(source, notes=(*source.notes, *notes)) if notes else source


def _counted(found: PairList, parts: Sequence[str]) -> str:
    """Say how many images are of some parts."""
    counts = {part: sum(pair.part == part for pair in found.pairs) for part in parts}
    return " and ".join(
        f"{count(number, 'image')} {f'of its part {part}' if part else 'of no part'}" for part, number in counts.items()
    )


def _part_name(name: str, found: PairList, part: str) -> str:
    """Name a part as a user would give it, if it is a folder of its own."""
    tops: dict[bool, set[str]] = {True: set(), False: set()}
    for pair in found.pairs:
        tops[pair.part == part] |= {file.path.partition("/")[0] for file in (pair.image, pair.mask)}
    is_own = len(tops[True]) == 1 and not tops[True] & tops[False]
    return join(name, tops[True].pop()) if is_own else f"{name} ({part})"
