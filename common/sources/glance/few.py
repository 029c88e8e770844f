"""A few images from all over a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from beit.common.sources.index import LabelledIndex
from beit.common.sources.types import SampleRef, ShardReader, Source, SourceShard
from beit.common.storage.paths import is_remote
from beit.common.storage.samples import spread_evenly

_MOST_SHARDS = {"tar": 8, "parquet": 4, "files": 64}
"""That are opened; arbitrary."""


_MOST_OF_A_SERVER = 8
"""Images, one request each; arbitrary, about a second."""


class Few(NamedTuple):
    """One image, where it can be read."""

    reader: ShardReader
    """Open until the next one is asked for."""
    ref: SampleRef
    """The image."""


def few_of_source(source: Source, most: int, *, wants: Callable[[str], bool] = lambda path: True) -> Iterator[Few]:
    """Yield up to `most` images of a source, of a server fewer.

    None of tars and tables there: each is fetched once, when it is needed.

    Args:
        source: Any.
        most: Images.
        wants: Tells by its path whether an image is of interest.
    """
    if source.kind != "files" and is_remote(source.root):
        return
    most = min(most, _MOST_OF_A_SERVER) if is_remote(source.root) else most
    shards = [source.shards[place] for place in spread_evenly(len(source.shards), _MOST_SHARDS[source.kind])]
    per_shard = -(-most // max(1, len(shards)))
    for shard in shards:
        yield from few_of_shard(shard, [ref for ref in shard.refs() if wants(ref.path)], per_shard)


def few_of_index(index: LabelledIndex, most: int, *, wants: Callable[[str], bool] = lambda path: True) -> Iterator[Few]:
    """Yield up to `most` of the images in use of an index, as `few_of_source` does."""
    kind, sizes = index.info.kind, index.shard_sizes.tolist()
    if kind != "files" and is_remote(index.info.root):
        return
    most = min(most, _MOST_OF_A_SERVER) if is_remote(index.info.root) else most
    used = [shard_id for shard_id, size in enumerate(sizes) if size]
    chosen = [used[place] for place in spread_evenly(len(used), _MOST_SHARDS[kind])]
    per_shard = -(-most // max(1, len(chosen)))
    for shard_id in chosen:
        refs = [index.ref(shard_id, rank) for rank in range(sizes[shard_id])]
        yield from few_of_shard(index.shards[shard_id], [ref for ref in refs if wants(ref.path)], per_shard)


def few_of_shard(shard: SourceShard, refs: Sequence[SampleRef], most: int) -> Iterator[Few]:
    """Yield up to `most` of some images of one shard, spread evenly; of a row group, which is long, the first rows."""
    if shard.kind == "parquet":
        yield from _first_rows(shard, refs[:most])
        return
    with shard.open() as reader:
        for place in spread_evenly(len(refs), most):
            yield Few(reader, refs[place])


def _first_rows(shard: SourceShard, refs: Sequence[SampleRef]) -> Iterator[Few]:
    from beit.common.sources.parquet import ParquetShard  # the other kinds work without loading pyarrow

    assert isinstance(shard, ParquetShard)
    reader = next(shard.stream(), None)
    if reader is not None:
        yield from (Few(reader, ref) for ref in refs if ref.offset < len(reader))
