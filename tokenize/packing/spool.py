"""Rearranging the images of containers on disk: read once from front to back, handed out in packing order.

Reading Parquet in packing order would decode each row group once per tar. So every image is first appended to the spool
file of its tar; then one spool file at a time is read at random, written as a tar and removed.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path

from beit.common.errors import BadSample
from beit.common.progress import Progress
from beit.common.sources.parquet import ParquetShard
from beit.common.sources.tars import TarShard
from beit.common.sources.types import ShardReader, SourceShard
from beit.common.storage.paths import is_remote
from beit.common.storage.place import FilePart
from beit.common.storage.threads import threads
from beit.tokenize.parallel import Workers
from beit.tokenize.plan import Catalogue
from beit.tokenize.shards.copies import TarCopies

ImageData = bytes | BadSample
"""An encoded image, or why there is none."""

ReadImage = Callable[[int], bytes | FilePart]
"""Reads what is to be packed, or says where it lies, by position in the catalogue, or raises `BadSample`; several
threads may call it."""

Entry = tuple[int, int] | BadSample
"""Offset and length in a spool file, or why there is no image."""

_BUFFER_BYTES = 64 << 20
"""Images in memory before they are written; arbitrary."""
_TABLES_AT_ONCE = 8
"""Remote tables read beside each other: each has some rows, and a buffer, in memory. Arbitrary."""


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
        self._lock = threading.Lock()  # of the files and of what is known of them
        folder.mkdir()

    def fill(self, shards: list[SourceShard], workers: Workers) -> None:
        """Read the whole source once, front to back.

        Raises:
            ResumableStop: somebody asked to stop.
            OSError: the disk is full.
        """
        counts = self._catalogue.shard_counts
        tasks = list(zip(shards, accumulate(counts[:-1], initial=0), counts, strict=True))
        with (
            Progress(len(self._group_of), unit="images", description="read") as progress,
            TarCopies(self._folder, workers.raise_if_stopped) as copies,
        ):
            if shards and isinstance(shards[0], ParquetShard) and is_remote(shards[0].location):
                # A small table is a chain of requests; one after the other, a slow server would take the sum of them.
                read = partial(self._read_shard, copies=copies, progress=progress, check_stop=workers.raise_if_stopped)
                for _ in threads().imap(read, tasks, ahead=_TABLES_AT_ONCE, check_stop=workers.raise_if_stopped):
                    pass
                return
            for task in tasks:
                self._read_shard(task, copies, progress, workers.raise_if_stopped)

    def _read_shard(
        self,
        task: tuple[SourceShard, int, int],
        copies: TarCopies,
        progress: Progress,
        check_stop: Callable[[], None],
    ) -> None:
        shard, first, count = task
        for reader, rows in _in_pieces(shard, count, copies):
            check_stop()
            with self._lock:
                progress.update(self._append(reader, [first + row for row in rows]))

    @contextmanager
    def reading(self, group: int) -> Iterator[ReadImage]:
        """Open the spool file of a group, which is removed afterwards."""
        path, entries = self._path(group), self._entries.pop(group, {})
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT)  # there is none if no image of the group had bytes

        def read(position: int) -> bytes:
            entry = entries[position]
            if isinstance(entry, BadSample):
                raise entry
            return os.pread(descriptor, entry[1], entry[0])

        try:
            yield read
        finally:
            os.close(descriptor)
        path.unlink()

    def place(self, group: int, position: int) -> FilePart:
        """Return where an image of a group lies, by position in the catalogue.

        Raises:
            BadSample: there is none.
        """
        entry = self._entries[group][position]
        if isinstance(entry, BadSample):
            raise entry
        return FilePart(str(self._path(group)), *entry)

    def _path(self, group: int) -> Path:
        return self._folder / f"{group:06d}.bin"

    def _append(self, reader: ShardReader, positions: list[int]) -> int:
        """Read images in the order of their container and append each to the spool file of its group."""
        by_group: dict[int, list[tuple[int, ImageData]]] = defaultdict(list)
        count = num_bytes = 0
        for position in positions:
            if position not in self._group_of:
                continue
            image: ImageData
            try:
                image = reader.read(self._catalogue.refs[position])
            except BadSample as error:
                image = error
            by_group[self._group_of[position]].append((position, image))
            count += 1
            num_bytes += len(image) if isinstance(image, bytes) else 0
            if num_bytes > _BUFFER_BYTES:
                self._flush(by_group)
                num_bytes = 0
        self._flush(by_group)
        return count

    def _flush(self, by_group: dict[int, list[tuple[int, ImageData]]]) -> None:
        for group, images in by_group.items():
            entries = self._entries[group]
            try:
                with self._path(group).open("ab") as file:
                    for position, image in images:
                        entries[position] = image if isinstance(image, BadSample) else (file.tell(), file.write(image))
            except OSError as error:
                error.filename = error.filename or str(self._path(group))  # "no space left" alone does not tell where
                raise
        by_group.clear()


def _in_pieces(shard: SourceShard, count: int, copies: TarCopies) -> Iterator[tuple[ShardReader, range]]:
    """Yield readers of a shard, none of which holds much in memory, and the rows each is for."""
    if isinstance(shard, ParquetShard):
        first = 0
        for rows in shard.stream():
            yield rows, range(first, first + len(rows))
            first += len(rows)
        return
    assert isinstance(shard, TarShard)
    with copies.at_hand(shard) as tar, tar.open() as reader:
        yield reader, range(count)
