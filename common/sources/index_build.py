"""Building the table of a DATA: listed once, sample by sample, and kept in a cache folder.

    <cache>/indexes/v2/<digest>/samples.arrow   one record batch per shard: key, offset, length, label, path
                                index.json      shards and identity; written last, so that it commits the table

The digest covers names, sizes and times of all files, so data that changed are listed again. An index costs about 100
bytes per sample and may be deleted at any time. Not here: how the table is used (`beit.common.sources.index`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from operator import methodcaller
from pathlib import Path

import pyarrow as pa

from beit.common.config import config_from_dict
from beit.common.errors import InputError, require
from beit.common.progress import Progress
from beit.common.sources.index import INDEX_FORMAT, IndexInfo, LabelledIndex
from beit.common.sources.loose_files import FilesShard
from beit.common.sources.opening import open_source
from beit.common.sources.types import SampleRef, Source, SourceShard
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.files import atomic_file, default_cache_dir, remove_stale
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.paths import is_remote, split_query
from beit.common.storage.samples import NO_LABEL

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
            if not (folder / "index.json").exists():
                _write(folder, source)
    except OSError as error:
        raise InputError(
            f"cannot keep an index in {folder} ({error}); point BEIT_CACHE at a folder with space"
        ) from None
    document = INDEX_FORMAT.check(read_json(folder / "index.json"), folder / "index.json")
    info = config_from_dict(IndexInfo, document, origin=str(folder / "index.json"))
    require(
        len(info.shard_names) == len(source.shards), f"{folder} is not an index of {source.root}; delete that folder"
    )
    shards = [_without_list(shard) for shard in source.shards]
    name, _ = split_query(str(spec))  # a signature must not stand in messages
    return LabelledIndex(folder / "samples.arrow", info, shards=shards, class_names=source.class_names, name=name)


def _without_list(shard: SourceShard) -> SourceShard:
    """Drop the file list of a shard: the table has it, and workers should not receive it twice."""
    return replace(shard, entries=()) if isinstance(shard, FilesShard) else shard


def _write(folder: Path, source: Source) -> None:
    names = _unique_names(source.shards)
    hasher = hashlib.sha256()
    sizes = []
    remove_stale(folder)
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
    write_json(folder / "index.json", asdict(info))


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
