"""Rearranging the images of containers on disk: read once from front to back, handed out in packing order.

Reading Parquet in packing order would decode each row group once per tar. So every image is first appended to the spool
file of its tar; then one spool file at a time is read at random, written as a tar and removed.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from beit.common.errors import BadSample
from beit.common.progress import Progress
from beit.common.source_parquet import ParquetShard
from beit.common.source_types import SampleRef, ShardReader, SourceShard
from beit.tokenize.parallel import Workers
from beit.tokenize.plan import Catalogue

ImageData = bytes | BadSample
"""An encoded image, or why there is none."""

Entry = tuple[int, int] | BadSample
"""Offset and length in the spool file, or why there are no bytes."""

_BUFFER_BYTES = 64 << 20
"""Images in memory before they are written; arbitrary."""


class Spool:
    """The spool files of a run.

    Args:
        folder: To put them in; made anew.
        catalogue: All images and their groups.
        groups: The groups that are wanted.
    """

    def __init__(self, folder: Path, catalogue: Catalogue, groups: list[int]) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._group_of = {position: group for group in groups for position in catalogue.groups[group].tolist()}
        self._entries: dict[int, dict[int, Entry]] = defaultdict(dict)
        folder.mkdir()

    def fill(self, shards: list[SourceShard], workers: Workers) -> None:
        """Read the whole source once, front to back.

        Raises:
            InputError: the source is damaged.
            ResumableStop: somebody asked to stop.
            OSError: the disk is full.
        """
        first = 0
        with Progress(len(self._group_of), unit="images", description="read") as progress:
            for shard, count in zip(shards, self._catalogue.shard_counts, strict=True):
                workers.raise_if_stopped()
                for reader, rows in _in_pieces(shard, count):
                    workers.raise_if_stopped()
                    progress.update(self._append(reader, [first + row for row in rows]))
                first += count

    @contextmanager
    def reading(self, group: int) -> Iterator[Callable[[int], ImageData]]:
        """Give a function from position to image, usable from several threads; afterwards the file is removed."""
        path, entries = self._path(group), self._entries[group]
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT)  # there is none if no image of the group had bytes

        def read(position: int) -> ImageData:
            entry = entries[position]
            return entry if isinstance(entry, BadSample) else os.pread(descriptor, entry[1], entry[0])

        try:
            yield read
        finally:
            os.close(descriptor)
        path.unlink()
        del self._entries[group]

    def remove(self) -> None:
        """Remove whatever is left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, group: int) -> Path:
        return self._folder / f"{group:06d}.bin"

    def _append(self, reader: ShardReader, positions: Iterable[int]) -> int:
        """Read images in the order of their container and append each to the spool file of its group."""
        by_group: dict[int, list[tuple[int, ImageData]]] = defaultdict(list)
        count = num_bytes = 0
        for position in positions:
            if position not in self._group_of:
                continue
            image = read_image(reader, self._catalogue.refs[position])
            by_group[self._group_of[position]].append((position, image))
            count += 1
            num_bytes += 0 if isinstance(image, BadSample) else len(image)
            if num_bytes > _BUFFER_BYTES:
                self._flush(by_group)
                num_bytes = 0
        self._flush(by_group)
        return count

    def _flush(self, by_group: dict[int, list[tuple[int, ImageData]]]) -> None:
        for group, images in by_group.items():
            self._entries[group] |= _append_images(self._path(group), images)
        by_group.clear()


def _in_pieces(shard: SourceShard, count: int) -> Iterator[tuple[ShardReader, range]]:
    """Yield readers of a shard, and the rows that each is for, such that none holds much in memory."""
    if not isinstance(shard, ParquetShard):
        with shard.open() as reader:
            yield reader, range(count)
        return
    first = 0
    for rows in shard.stream():
        yield rows, range(first, first + len(rows))
        first += len(rows)


def _append_images(path: Path, images: list[tuple[int, ImageData]]) -> dict[int, Entry]:
    entries: dict[int, Entry] = {}
    try:
        with path.open("ab") as file:
            for position, data in images:
                entries[position] = data if isinstance(data, BadSample) else (file.tell(), file.write(data))
    except OSError as error:
        error.filename = error.filename or str(path)  # "no space left" alone does not tell where
        raise
    return entries


def read_image(reader: ShardReader, ref: SampleRef) -> ImageData:
    """Read one image; an unusable one is returned, not raised, because it is counted later."""
    try:
        return reader.read(ref)
    except BadSample as error:
        return error
