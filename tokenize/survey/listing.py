"""Which images a source has, as far as that is listed without reading any, and what lies beside them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from beit.common.images.formats import is_image_path, is_readable, needs_of, suffix_of
from beit.common.progress import Progress
from beit.common.sources.loose_files import lfs_pointers
from beit.common.sources.mask_folders import masks_beside
from beit.common.sources.parquet import ParquetShard
from beit.common.sources.splits import split_of_path
from beit.common.sources.tars import TarShard
from beit.common.sources.types import SampleRef, Source, SourceShard
from beit.common.storage.matching import list_folder, match_files
from beit.common.storage.paths import is_remote, normalise
from beit.common.storage.place import place_of
from beit.common.storage.samples import spread_evenly
from beit.common.storage.tar_walk import group_samples
from beit.tokenize.survey.document import LeftOut

_MOST_TARS, _MOST_ROW_GROUPS = 256, 32
"""That are listed, unless all are wanted; arbitrary, a minute at most."""
_SOURCES = "beit.common.sources"
"""Whose warnings are part of what is found."""
_CONTAINERS = (".tar", ".parquet", ".txt", ".csv")


@dataclass(frozen=True, slots=True)
class Listed:
    """The samples of a source, or of some of its shards."""

    shards: list[SourceShard]
    """Those that were listed."""
    refs: list[list[SampleRef]]
    """Of each of them."""
    num_images: int
    """In all shards of the source."""
    is_counted: bool
    """Whether that number is sure."""
    left_out: list[LeftOut]
    """Members of tars that are no images."""

    def __iter__(self) -> Iterator[tuple[SourceShard, SampleRef]]:
        for shard, refs in zip(self.shards, self.refs, strict=True):
            for ref in refs:
                yield shard, ref

    def splits(self, root: str) -> dict[str, int]:
        """Count the images of each part of a data set, by its folder or container below `root`; empty for one part."""
        found: Counter[str] = Counter()
        for shard, refs in zip(self.shards, self.refs, strict=True):
            if shard.kind == "files":
                found.update(split for ref in refs if (split := split_of_path(ref.path, is_container=False)))
            elif split := split_of_path(shard.location.removeprefix(root).lstrip("/"), is_container=True):
                found[split] += len(refs)
        return dict(sorted(found.items())) if len(found) > 1 else {}


def list_source(source: Source, *, all_shards: bool) -> Listed:
    """List the samples of a source; of very many shards those of some, unless all are wanted."""
    most = {"tar": _MOST_TARS, "parquet": _MOST_ROW_GROUPS}.get(source.kind, len(source.shards))
    shards = list(source.shards)
    if not all_shards:
        shards = [shards[place] for place in spread_evenly(len(shards), most)]
    refs: list[list[SampleRef]] = []
    without: list[str] = []
    with Progress(len(shards), unit="shards", description="list", enabled=source.kind != "files") as progress:
        for shard in shards:
            if isinstance(shard, TarShard):
                found, index = shard.scan()
                taken = {ref.key for ref in found}
                samples = group_samples(index.members, label=shard.location)
                without += [f"{shard.location}: {key}" for key in samples if key not in taken]
                refs.append(found)
            else:
                refs.append(shard.refs())
            progress.update(1)
    listed = sum(map(len, refs))
    total = listed
    if len(shards) < len(source.shards):
        rows = [shard.num_rows for shard in source.shards if isinstance(shard, ParquetShard)]
        total = sum(rows) if rows else round(listed * _size(source.shards) / max(1, _size(shards)))
    is_counted = len(shards) == len(source.shards) or source.kind == "parquet"
    left_out = []
    if without:
        left_out = [
            LeftOut(
                reason="samples without an image",
                count=round(len(without) * total / max(1, listed)),
                is_estimated=not is_counted,
                example=without[0],
                way_out="an image member ends in .jpg, .png, .webp or the like; source.image_member names another",
            )
        ]
    return Listed(shards, refs, total, is_counted, left_out)


def _size(shards: Sequence[SourceShard]) -> int:
    return sum(shard.size or 1 for shard in shards if isinstance(shard, TarShard))


def beside(spec: str) -> list[LeftOut]:
    """Return the files of a folder that are no images for tokenising: masks, hidden ones, other endings.

    Args:
        spec: As the user named the source; of a list or a pattern nothing lies beside.
    """
    root = normalise(spec)
    if root.lower().endswith(_CONTAINERS) or not place_of(root, is_first_contact=True).is_folder():
        return []
    files = list_folder(root)
    images = [file for file in files if is_image_path(file.path)]
    masks = masks_beside(root, images)
    found = []
    if masks.paths:
        folder = masks.places[0]
        found.append(
            LeftOut(
                reason="masks beside images",
                count=len(masks.paths),
                example=min(masks.paths),
                way_out=f"name {folder} itself to take them",
            )
        )
    if images or not any(file.path.lower().endswith(_CONTAINERS) for file in files):
        others = [file for file in files if not is_image_path(file.path)]
        pointers = lfs_pointers(root, others)
        if pointers:
            found.append(
                LeftOut(
                    reason="pointers of Git LFS",
                    count=len(pointers),
                    example=min(pointers),
                    way_out="run git lfs pull where the folder was cloned",
                )
            )
        found += _other_endings([file.path for file in others if file.path not in pointers])
    found += _without_library([file.path for file in images])
    if not is_remote(root):
        found += _hidden(Path(root))
    return found


def _other_endings(paths: Sequence[str]) -> list[LeftOut]:
    by_ending: dict[str, list[str]] = {}
    for path in paths:
        by_ending.setdefault(os.path.splitext(path)[1].lower(), []).append(path)
    return [
        LeftOut(
            reason=f"{ending or 'without an ending'}",
            count=len(found),
            example=found[0],
            way_out="no image by its ending",
        )
        for ending, found in sorted(by_ending.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _without_library(images: Sequence[str]) -> list[LeftOut]:
    """Return the images whose formats cannot be read here, by ending, with what would help."""
    by_ending: dict[str, list[str]] = {}
    for path in images:
        if not is_readable(suffix_of(path)):
            by_ending.setdefault(suffix_of(path), []).append(path)
    return [
        LeftOut(reason=f".{ending}", count=len(found), example=found[0], way_out=needs_of(ending))
        for ending, found in sorted(by_ending.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _hidden(root: Path) -> list[LeftOut]:
    found = []
    for folder, _, names in os.walk(root):
        inside = os.path.relpath(folder, root)
        is_hidden = any(part.startswith(".") and part != "." for part in inside.split(os.sep))
        found += [
            os.path.normpath(os.path.join(inside, name))
            for name in names
            if (is_hidden or name.startswith(".")) and is_image_path(name)
        ]
    if not found:
        return []
    return [
        LeftOut(
            reason="hidden images",
            count=len(found),
            example=min(found),
            way_out="a name that begins with a dot hides a file or folder; rename it to have it used",
        )
    ]


class _Kept(logging.Handler):
    """Keeps what beit warns of, instead of writing it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def keeping_warnings() -> Iterator[list[str]]:
    """Collect what is warned of while sources are opened, so that it stands in the table and not above it."""
    log, kept = logging.getLogger(_SOURCES), _Kept()
    handlers, propagates = log.handlers[:], log.propagate
    log.handlers, log.propagate = [kept], False
    try:
        yield kept.lines
    finally:
        log.handlers, log.propagate = handlers, propagates


def check_exists(spec: str) -> None:
    """Raise an `InputError` where nothing is where the user says."""
    root = normalise(spec)
    if not root.lower().endswith((".txt", ".csv")) and place_of(root, is_first_contact=True).is_folder():
        return
    match_files(spec)
