"""Building the table of a DATA: listed once, sample by sample, and kept in a cache folder.

    <cache>/indexes/v3/<digest>/samples.arrow   one record batch per shard: key, offset, length, label, path
                                index.json      shards and identity; commits the table
                                index.sha256    of both, so that a damaged index is made again

The digest covers names, sizes and times of all files, so data that changed are listed again. An index costs about 100
bytes per sample and may be deleted at any time. Not here: how the table is used (`beit.common.sources.index`).
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from beit.common.config import config_from_dict
from beit.common.errors import InputError, require
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.depth import NUM_FOR_PERCENTILES, find_range
from beit.common.sources.class_names import ClassNames
from beit.common.sources.config import SourceConfig
from beit.common.sources.glance.few import draw_of_index, named
from beit.common.sources.index import INDEX_FORMAT, IndexInfo, LabelledIndex
from beit.common.sources.labels import in_order, listed, number_of, one_form, stored_label
from beit.common.sources.loose_files import FilesShard
from beit.common.sources.opening import list_samples, open_source
from beit.common.sources.types import SampleRef, Source, SourceShard
from beit.common.storage.documents import read_json, reading, write_json
from beit.common.storage.files import atomic_file, default_cache_dir, remove_stale, sha256_file, write_atomic
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.paths import split_query
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
_HASHES = "index.sha256"
_MEASURED_SHARDS = 4
"""Row groups of one data set are alike, and measuring all of them would be reading the data; arbitrary."""


def build_index(
    spec: str | Path,
    cache_dir: Path | None = None,
    *,
    label_column: str | None = None,
    for_classes: bool = False,
    settings: SourceConfig | None = None,
) -> LabelledIndex:
    """Return the index of a DATA, from the cache or by listing every sample.

    Several processes may call this at once; one lists, the others wait for it.

    Args:
        spec: Folder, tars, Parquet files, text list or CSV, as `beit.common.sources.opening.open_source` takes them.
        cache_dir: Where indexes are kept; by default below `default_cache_dir()`.
        label_column: Column of the classes in tables, as `open_source` takes it.
        for_classes: See `open_source`.
        settings: Which images are read.
    """
    settings = settings or SourceConfig()
    require(
        settings.frame != "each",
        "source.frame (each) makes samples of pages, which beit tokenize packs (docs/images.md); here name one of "
        "them, such as 0, first or middle",
    )
    source = open_source(spec, label_column=label_column, for_classes=for_classes, image_member=settings.image_member)
    name, _ = split_query(str(spec))  # a signature must not stand in messages
    return index_source(source, name=name, cache_dir=cache_dir, decoding=settings.decoding)


def index_source(
    source: Source, *, name: str, cache_dir: Path | None = None, decoding: Decoding = USUAL
) -> LabelledIndex:
    """Return the index of a source, from the cache or by listing every sample, as `build_index` does.

    Args:
        source: Any images.
        name: What the user calls them.
        cache_dir: See `build_index`.
        decoding: How images are decoded.
    """
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
    names = source.class_names if info.numbers is None else info.numbers
    index = LabelledIndex(
        folder / "samples.arrow",
        info,
        shards=shards,
        class_names=names,
        name=name,
        stamp=source.stamp,
        columns=source.columns,
        label_notes=source.label_notes,
        decoding=decoding,
    )
    if not decoding.value_range.is_resolved:
        index = index.decoded_as(_with_range(index))
    return index if names is None else _with_clear_names(index, names, are_numbers=info.numbers is not None)


def _with_range(index: LabelledIndex) -> Decoding:
    """Find the values that percentiles stand for, over all images of an index, once."""
    wanted = index.decoding
    name = hashlib.sha256(f"{wanted.identity()} {index.stamp}".encode()).hexdigest()[:16]
    folder = index.folder
    with exclusive_lock(folder / "lock"):
        kept = folder / f"range-{name}.json"
        if kept.exists():
            return Decoding.from_json(read_json(kept))
        found = find_range(named(draw_of_index(index, NUM_FOR_PERCENTILES)), wanted, of=index.name)
        write_json(kept, found.as_json())
    return found


def open_labelled(
    data: str, *, class_names: ClassNames | None, label_column: str | None, settings: SourceConfig | None = None
) -> LabelledIndex:
    """Return the index of labelled images as a user describes them.

    Args:
        data: As `build_index` takes it.
        class_names: What numbers mean; None leaves them their texts as names.
        label_column: Column of the classes in tables; None for the usual one.
        settings: Which images are read.
    """
    index = build_index(data, label_column=label_column, for_classes=True, settings=settings)
    if label_column is not None and not index.columns:
        logger.warning("%s is neither Parquet nor CSV, so it has no column %s", index.name, label_column)
    return index if class_names is None else index.with_numbers_named(class_names)


def _with_clear_names(index: LabelledIndex, names: Sequence[str], *, are_numbers: bool) -> LabelledIndex:
    """Bring class names into one Unicode form, and numbers into their order."""
    if are_numbers:
        return index.reordered(in_order(names))
    same = next((name for name, count in Counter(names).items() if count > 1), None)
    require(
        same is None,
        f"{index.name} calls the classes {listed([str(i) for i, name in enumerate(names) if name == same])} all "
        f"{same!r}; give each a name of its own",
    )
    forms = [one_form(name) for name in names]
    twice = [name for name, count in Counter(forms).items() if count > 1]
    if twice:
        logger.warning(
            "%s has the same class name in two Unicode forms (%s); they are taken as one class",
            index.name,
            listed(twice),
        )
    return index if forms == list(names) else index.renamed(forms)


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
        stated = folder / _HASHES  # absent beside tables of before
        is_whole = is_whole and (not stated.exists() or stated.read_text() == _hashes(folder))
        with pa.memory_map(str(table)) as mapped:
            found = pa.ipc.open_file(mapped)
            if is_whole and found.num_record_batches == len(source.shards) and found.schema.equals(_SCHEMA):
                return info
        reason = "it does not fit its table, or the files it was made from"
    except (InputError, OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
    logger.warning("the index kept in %s is damaged (%s); listing %s again", folder, reason, source.root)
    return None


def _write(folder: Path, source: Source) -> IndexInfo:
    names = _unique_names(source.shards)
    hasher = hashlib.sha256()
    sizes = []
    remove_stale(folder)
    numbers: dict[str, int] | None = {} if source.class_names is None else None
    with atomic_file(folder / "samples.arrow") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for name, refs in zip(names, list_samples(source), strict=True):
            batch = _record_batch(refs, numbers)
            writer.write_batch(batch)
            sizes.append(len(refs))
            _update(hasher, name, batch, refs)
    hasher.update("\0".join(source.class_names or ()).encode())
    if numbers and {number_of(number) for number in numbers} != set(range(len(numbers))):
        # Classes were once counted up to the largest number: what is learned from others is another model now.
        hasher.update("\0".join(["numbers", *in_order(numbers)]).encode())
    info = IndexInfo(
        root=source.root,
        kind=source.kind,
        shard_names=tuple(names),
        shard_sizes=tuple(sizes),
        shard_bytes=_measure(source),
        sha256=hasher.hexdigest(),
        numbers=None if numbers is None or not numbers else tuple(numbers),
    )
    write_json(folder / "index.json", asdict(info))
    write_atomic(folder / _HASHES, _hashes(folder).encode())
    return info


def _hashes(folder: Path) -> str:
    return " ".join(sha256_file(folder / name) for name in ("samples.arrow", "index.json"))


def _record_batch(refs: Sequence[SampleRef], numbers: dict[str, int] | None) -> pa.RecordBatch:
    """Return the rows of one shard.

    Args:
        refs: Its samples.
        numbers: Where labels are numbers: id of the text of each so far, in the order of their coming; is extended.
    """
    labels = [ref.label for ref in refs]
    if numbers is not None:
        labels = [None if label is None else numbers.setdefault(str(label), len(numbers)) for label in labels]
    columns = [
        [ref.key for ref in refs],
        [ref.offset for ref in refs],
        [ref.length for ref in refs],
        [NO_LABEL if label is None else label for label in labels],
        [ref.path for ref in refs],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _update(hasher: hashlib._Hash, name: str, batch: pa.RecordBatch, refs: Sequence[SampleRef]) -> None:
    hasher.update(f"{name}\0{batch.num_rows}\0".encode())
    hasher.update("\0".join(batch["key"].to_pylist()).encode())
    for column in ("offset", "length"):
        hasher.update(batch[column].to_numpy().tobytes())
    # Labels as the source has them; of numbers written otherwise, such as 007, the number.
    labels = [NO_LABEL if ref.label is None else stored_label(ref.label) for ref in refs]
    if None in labels:
        hasher.update("\0".join(str(ref.label) for ref in refs).encode())
    else:
        hasher.update(np.array(labels, dtype=np.int64).tobytes())


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
