"""Building the table of a DATA: listed once, sample by sample, and kept in a cache folder.

    <cache>/indexes/v2/<digest>/samples.arrow    one record batch per shard: key, offset, length, label, path
                                samples.sha256   of that file, so that a damaged one is made again
                                index.json       shards and identity; written last, so that it commits the table

The digest covers names, sizes and times of all files, so data that changed are listed again. An index costs about 100
bytes per sample and may be deleted at any time. Not here: how the table is used (`beit.common.sources.index`).
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from operator import methodcaller
from pathlib import Path

import pyarrow as pa

from beit.common.config import config_from_dict
from beit.common.errors import InputError
from beit.common.progress import Progress
from beit.common.sources.index import INDEX_FORMAT, IndexInfo, LabelledIndex
from beit.common.sources.loose_files import FilesShard
from beit.common.sources.opening import open_source
from beit.common.sources.types import SampleRef, Source, SourceShard
from beit.common.storage.documents import read_json, reading, write_json
from beit.common.storage.files import atomic_file, default_cache_dir, sha256_file, write_atomic
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.paths import is_remote, split_query
from beit.common.storage.samples import NO_LABEL

logger = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
    ]
)
_LISTING_THREADS = 16
"""Listing a remote tar is a chain of small requests; arbitrary."""
_MEASURED_SHARDS = 4
"""Row groups of one data set are alike, and measuring all of them would be reading the data; arbitrary."""


def build_index(spec: str | Path, cache_dir: Path | None = None) -> LabelledIndex:
    """Return the index of a DATA, from the cache or by listing every sample.

    Several processes may call this at once; one lists, the others wait for it.

    Args:
        spec: Folder, tars, Parquet files, text list or CSV, as `beit.common.sources.opening.open_source` takes them.
        cache_dir: Where indexes are kept; by default below `default_cache_dir()`.
    """
    source = open_source(spec)
    root = default_cache_dir() if cache_dir is None else cache_dir
    folder = root / "indexes" / f"v{INDEX_FORMAT.version}" / source.digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / "lock"):
            info = _read_kept(folder, source)
            if info is None:
                info = _write(folder, source)
    except OSError as error:
        raise InputError(
            f"cannot keep an index in {folder} ({error}); point BEIT_CACHE at a folder with space"
        ) from None
    shards = [_without_list(shard) for shard in source.shards]
    name, _ = split_query(str(spec))  # a signature must not stand in messages
    return LabelledIndex(
        folder / "samples.arrow",
        info,
        shards=shards,
        class_names=source.class_names,
        name=name,
        stamp=source.stamp,
    )


def _without_list(shard: SourceShard) -> SourceShard:
    """Drop the file list of a shard: the table has it, and workers should not receive it twice."""
    return replace(shard, entries=()) if isinstance(shard, FilesShard) else shard


def _read_kept(folder: Path, source: Source) -> IndexInfo | None:
    """Return what index.json says of a table that is whole; None where there is none, or it is damaged."""
    file, table = folder / "index.json", folder / "samples.arrow"
    if not file.exists():
        return None
    try:
        with reading(file):
            info = config_from_dict(IndexInfo, INDEX_FORMAT.check(read_json(file), file), origin=str(file))
        is_whole = len(info.shard_names) == len(info.shard_sizes) == len(source.shards)
        # Absent beside tables of before.
        stated = (folder / "samples.sha256").read_text() if (folder / "samples.sha256").exists() else None
        is_whole = is_whole and stated in (None, sha256_file(table))
        with pa.memory_map(str(table)) as mapped:
            found = pa.ipc.open_file(mapped)
            if is_whole and found.num_record_batches == len(source.shards) and found.schema.equals(_SCHEMA):
                return info
        reason = "it does not fit its table, or the files it was made from"
    except (InputError, OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
    logger.warning("the index kept in %s is damaged (%s); listing %s again", folder, reason, source.root)
    return None


def _write(folder: Path, source: Source) -> IndexInfo:
    names = _unique_names(source.shards)
    hasher = hashlib.sha256()
    sizes = []
    with atomic_file(folder / "samples.arrow") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for name, refs in zip(names, _list_all(source), strict=True):
            batch = _record_batch(refs)
            writer.write_batch(batch)
            sizes.append(len(refs))
            _update(hasher, name, batch)
    hasher.update("\0".join(source.class_names or ()).encode())
    info = IndexInfo(
        root=source.root,
        kind=source.kind,
        shard_names=tuple(names),
        shard_sizes=tuple(sizes),
        shard_bytes=_measure(source),
        sha256=hasher.hexdigest(),
    )
    write_atomic(folder / "samples.sha256", sha256_file(folder / "samples.arrow").encode())
    write_json(folder / "index.json", asdict(info))
    return info


def _list_all(source: Source) -> Iterator[list[SampleRef]]:
    """Yield the samples of every shard in order, showing progress where that takes long."""
    listed: Iterable[list[SampleRef]] = map(methodcaller("refs"), source.shards)
    if source.kind == "files":
        yield from listed
        return
    with (
        Progress(len(source.shards), unit="shards", description="indexing") as progress,
        ThreadPoolExecutor(_LISTING_THREADS) as pool,
    ):
        # Local tars are limited by the interpreter, and threads would take turns at one Parquet reader.
        if source.kind == "tar" and is_remote(source.root):
            listed = pool.map(methodcaller("refs"), source.shards)
        for refs in listed:
            yield refs
            progress.update(1)


def _record_batch(refs: Sequence[SampleRef]) -> pa.RecordBatch:
    columns = [
        [ref.key for ref in refs],
        [ref.offset for ref in refs],
        [ref.length for ref in refs],
        [NO_LABEL if ref.label is None else ref.label for ref in refs],
        [ref.path for ref in refs],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _update(hasher: hashlib._Hash, name: str, batch: pa.RecordBatch) -> None:
    hasher.update(f"{name}\0{batch.num_rows}\0".encode())
    hasher.update("\0".join(batch["key"].to_pylist()).encode())
    for column in ("offset", "length", "label"):
        hasher.update(batch[column].to_numpy().tobytes())


def _unique_names(shards: Sequence[SourceShard]) -> list[str]:
    repeated = {name for name, count in Counter(shard.name for shard in shards).items() if count > 1}
    return [f"{number:06d}-{shard.name}" if repeated else shard.name for number, shard in enumerate(shards)]


def _measure(source: Source) -> int:
    if source.kind != "parquet":
        return 0
    most = 0
    for shard in source.shards[:: max(1, len(source.shards) // _MEASURED_SHARDS)]:
        with shard.open() as reader:
            most = max(most, reader.nbytes)
    return most
