"""Rearranging the images of containers on disk: read once from front to back, handed out in packing order.

Reading Parquet in packing order would decode each row group once per tar. So every image is first appended to the spool
file of its tar; then one spool file at a time is read at random, written as a tar and removed. What came with an image
in a tar goes along.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import BinaryIO, Protocol

from beit.common.errors import BadSample
from beit.common.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from beit.common.progress import Progress
from beit.common.sources.loose_files import FilesReader
from beit.common.sources.parquet import ParquetShard
from beit.common.sources.tars import TarReader, TarShard
from beit.common.sources.types import SampleRef, ShardReader, SourceShard
from beit.common.storage.tar_walk import TarMember
from beit.tokenize.parallel import Workers
from beit.tokenize.plan import Catalogue
from beit.tokenize.shards.copies import TarCopies

logger = logging.getLogger(__name__)

ImageData = bytes | BadSample
"""An encoded image, or why there is none."""

Place = tuple[int, int]
"""Offset and length in a spool file."""

Entry = Place | BadSample
"""Where the bytes are, or why there are none."""

_OWN_SUFFIXES = (*IMAGE_SUFFIXES, "cls", "json")
"""Last parts of suffixes that have a meaning in the tars we pack, where the image and its label are ours."""

_BUFFER_BYTES = 64 << 20
"""Images in memory before they are written; arbitrary."""


class PackingReader(Protocol):
    """Reads what is to be packed, by position in the catalogue; usable from several threads."""

    def image(self, position: int) -> ImageData:
        """Return the encoded image, or why there is none."""

    def side_members(self, position: int) -> dict[str, bytes]:
        """Return what came with the image in its tar, by the suffix it gets."""


class LooseFiles:
    """Reads the files of a folder or list.

    Args:
        root: That paths are relative to.
        catalogue: All images.
    """

    def __init__(self, root: str, catalogue: Catalogue) -> None:
        self._reader = FilesReader(root)
        self._refs = catalogue.refs

    def image(self, position: int) -> ImageData:
        """Return the encoded image, or why there is none."""
        return read_image(self._reader, self._refs[position])

    def side_members(self, position: int) -> dict[str, bytes]:
        """Return nothing."""
        return {}


class SpoolReader:
    """Reads the spool file of one group.

    Args:
        descriptor: Of the file.
        entries: Where each image lies.
        side: Where what came with it lies, by suffix.
    """

    def __init__(self, descriptor: int, entries: dict[int, Entry], side: dict[int, dict[str, Place]]) -> None:
        self._descriptor = descriptor
        self._entries = entries
        self._side = side

    def image(self, position: int) -> ImageData:
        """Return the encoded image, or why there is none."""
        entry = self._entries[position]
        return entry if isinstance(entry, BadSample) else self._read(entry)

    def side_members(self, position: int) -> dict[str, bytes]:
        """Return what came with the image in its tar, by the suffix it gets."""
        return {suffix: self._read(place) for suffix, place in self._side.get(position, {}).items()}

    def _read(self, place: Place) -> bytes:
        return os.pread(self._descriptor, place[1], place[0])


@dataclass(slots=True)
class _Item:
    """One image on its way to a spool file."""

    position: int
    image: ImageData
    side: dict[str, bytes]


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
        self._side: dict[int, dict[int, dict[str, Place]]] = defaultdict(dict)
        folder.mkdir()

    def fill(self, shards: list[SourceShard], workers: Workers) -> None:
        """Read the whole source once, front to back.

        Raises:
            InputError: the source is damaged.
            ResumableStop: somebody asked to stop.
            OSError: the disk is full.
        """
        first = 0
        with (
            Progress(len(self._group_of), unit="images", description="read") as progress,
            TarCopies(self._folder, workers.raise_if_stopped) as copies,
        ):
            for shard, count in zip(shards, self._catalogue.shard_counts, strict=True):
                for reader, rows, side in _in_pieces(shard, count, copies):
                    workers.raise_if_stopped()
                    progress.update(self._append(reader, [first + row for row in rows], side))
                first += count

    @contextmanager
    def reading(self, group: int) -> Iterator[SpoolReader]:
        """Open the spool file of a group, which is removed afterwards."""
        path = self._path(group)
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT)  # there is none if no image of the group had bytes
        try:
            yield SpoolReader(descriptor, self._entries[group], self._side[group])
        finally:
            os.close(descriptor)
        path.unlink()
        del self._entries[group], self._side[group]

    def remove(self) -> None:
        """Remove whatever is left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, group: int) -> Path:
        return self._folder / f"{group:06d}.bin"

    def _append(self, reader: ShardReader, positions: list[int], side: list[dict[str, TarMember]]) -> int:
        """Read images in the order of their container and append each to the spool file of its group."""
        by_group: dict[int, list[_Item]] = defaultdict(list)
        count = num_bytes = 0
        nothing: dict[str, TarMember] = {}
        for position, members in zip(positions, chain(side, repeat(nothing)), strict=False):
            if position not in self._group_of:
                continue
            item = _Item(position, read_image(reader, self._catalogue.refs[position]), _read_side(reader, members))
            by_group[self._group_of[position]].append(item)
            count += 1
            num_bytes += sum(len(data) for data in (item.image, *item.side.values()) if isinstance(data, bytes))
            if num_bytes > _BUFFER_BYTES:
                self._flush(by_group)
                num_bytes = 0
        self._flush(by_group)
        return count

    def _flush(self, by_group: dict[int, list[_Item]]) -> None:
        for group, items in by_group.items():
            try:
                with self._path(group).open("ab") as file:
                    for item in items:
                        self._write(file, group, item)
            except OSError as error:
                error.filename = error.filename or str(self._path(group))  # "no space left" alone does not tell where
                raise
        by_group.clear()

    def _write(self, file: BinaryIO, group: int, item: _Item) -> None:
        image = item.image
        entry: Entry = image if isinstance(image, BadSample) else (file.tell(), file.write(image))
        self._entries[group][item.position] = entry
        if item.side:
            places = {suffix: (file.tell(), file.write(data)) for suffix, data in item.side.items()}
            self._side[group][item.position] = places


def _in_pieces(
    shard: SourceShard, count: int, copies: TarCopies
) -> Iterator[tuple[ShardReader, range, list[dict[str, TarMember]]]]:
    """Yield readers of a shard, none of which holds much in memory, the rows each is for, and their side members."""
    if isinstance(shard, ParquetShard):
        first = 0
        for rows in shard.stream():
            yield rows, range(first, first + len(rows)), []
            first += len(rows)
        return
    assert isinstance(shard, TarShard)
    with copies.shard_at_hand(shard) as tar, tar.open() as reader:
        yield reader, range(count), tar.side_members()


def _read_side(reader: ShardReader, members: dict[str, TarMember]) -> dict[str, bytes]:
    if not members:
        return {}
    assert isinstance(reader, TarReader)
    found = {}
    for suffix, member in members.items():
        if member.size > MAX_IMAGE_BYTES:
            logger.warning("%s: %s is left behind, it has %d bytes", reader.label, member.name, member.size)
            continue
        renamed = f"source.{suffix}" if suffix.rpartition(".")[2] in _OWN_SUFFIXES else suffix
        found[renamed] = reader.read_range(member.offset, member.size)
    return found


def read_image(reader: ShardReader, ref: SampleRef) -> ImageData:
    """Read one image; an unusable one is returned, not raised, because it is counted later."""
    try:
        return reader.read(ref)
    except BadSample as error:
        return error
