"""A few images from all over a source: the one way they are drawn, whatever they are looked at for.

What is recorded (percentiles of `source.range`) and what is only said (warnings, plans) is drawn by the same rule, and
always the same images. What is only said may be had for less: `is_quick`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from beit.common.rng import CounterRng
from beit.common.sources.types import SampleRef, ShardReader, Source, SourceShard
from beit.common.storage.paths import is_remote
from beit.common.storage.samples import locate, shard_starts, spread_evenly

if TYPE_CHECKING:  # an index needs pyarrow, which whoever draws of a source may do without
    from beit.common.sources.index import LabelledIndex

Wants = Callable[[str], bool]
"""Tells by its path whether an image is of interest."""

_MOST_SHARDS = 32
"""That are opened; arbitrary."""
_MOST_LISTED = {"tar": 8, "parquet": 32, "files": 32}
"""Shards that are listed for a look at a source which is not listed yet: to list a tar means to walk it."""
_MOST_ROW_GROUPS = 4
"""That are opened where it is to be quick."""
_MOST_OF_A_SERVER = 8
"""Images, one request each; arbitrary, about a second."""


class Few(NamedTuple):
    """One image, where it can be read."""

    shard: SourceShard
    """That it lies in."""
    reader: ShardReader
    """Of the shard, open until the next image is asked for."""
    ref: SampleRef
    """The image."""

    def read(self) -> bytes:
        """Return the encoded image; to be called before the next one is asked for.

        Raises:
            BadSample: it cannot be read.
        """
        return self.reader.read(self.ref)


def draw(
    shards: Sequence[SourceShard],
    sizes: Sequence[int],
    ref_of: Callable[[int, int], SampleRef],
    count: int,
    *,
    wants: Wants | None = None,
    is_quick: bool = False,
) -> Iterator[Few]:
    """Draw some images from all over a source: one by chance from each of equally long stretches, always the same.

    Args:
        shards: Of the source.
        sizes: Samples in each.
        ref_of: Where the sample of a shard and a rank in it lies.
        count: Images, at most; of sources with many shards those of a few stand for all.
        wants: Only such images.
        is_quick: Of row groups, which are read from their beginning, take the first rows.
    """
    filled = [number for number, size in enumerate(sizes) if size]
    from_front = is_quick and bool(shards) and shards[0].kind == "parquet"
    most = _MOST_ROW_GROUPS if from_front else _MOST_SHARDS
    few = [filled[int(place)] for place in spread_evenly(len(filled), most)]
    ranks: list[Sequence[int]] = [range(int(sizes[number])) for number in few]
    if wants is not None:
        ranks = [
            [rank for rank in own if wants(ref_of(number, rank).path)] for number, own in zip(few, ranks, strict=True)
        ]
    if from_front:
        share = -(-count // max(1, len(few)))
        for number, own in zip(few, ranks, strict=True):
            yield from _first_rows(shards[number], [ref_of(number, rank) for rank in own[:share]])
        return
    starts = shard_starts([len(own) for own in ranks])
    total, rng = int(starts[-1]), CounterRng(0, "drawn images")
    count = min(count, total)
    places = [rng.integers(i * total // count, (i + 1) * total // count - 1) for i in range(count)]
    for place, group in itertools.groupby(places, key=lambda position: locate(starts, position)[0]):
        shard = shards[few[place]]
        with shard.open() as reader:
            for position in group:
                yield Few(shard, reader, ref_of(few[place], ranks[place][position - int(starts[place])]))


def draw_listed(
    shards: Sequence[SourceShard], refs: Sequence[Sequence[SampleRef]], count: int, *, is_quick: bool = False
) -> Iterator[Few]:
    """Draw some images of shards that are listed."""
    return draw(shards, list(map(len, refs)), lambda shard, rank: refs[shard][rank], count, is_quick=is_quick)


def draw_of_source(source: Source, count: int, *, wants: Wants | None = None, is_quick: bool = False) -> Iterator[Few]:
    """Draw some images of a source of which nothing is listed yet; of one with many shards, those of some of them."""
    most = _MOST_ROW_GROUPS if is_quick and source.kind == "parquet" else _MOST_LISTED[source.kind]
    few = [source.shards[int(place)] for place in spread_evenly(len(source.shards), most)]
    refs = [shard.refs() for shard in few]
    sizes = list(map(len, refs))
    return draw(few, sizes, lambda shard, rank: refs[shard][rank], count, wants=wants, is_quick=is_quick)


def draw_of_index(
    index: LabelledIndex, count: int, *, wants: Wants | None = None, is_quick: bool = False
) -> Iterator[Few]:
    """Draw some of the samples in use of an index."""
    return draw(index.shards, index.shard_sizes.tolist(), index.ref, count, wants=wants, is_quick=is_quick)


def few_of(source: Source | LabelledIndex, most: int, *, wants: Wants | None = None) -> Iterator[Few]:
    """Draw images for something that is only said: quickly, of a server few.

    None of tars and tables on a server: each is fetched once, when it is needed.
    """
    if isinstance(source, Source):
        most = _spared(source.kind, source.root, most)
        return draw_of_source(source, most, wants=wants, is_quick=True) if most else iter(())
    most = _spared(source.info.kind, source.info.root, most)
    return draw_of_index(source, most, wants=wants, is_quick=True) if most else iter(())


def _spared(kind: str, root: str, most: int) -> int:
    if not is_remote(root):
        return most
    return min(most, _MOST_OF_A_SERVER) if kind == "files" else 0


def named(few: Iterable[Few]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield path and what reads it of each image, as `beit.common.images.depth` takes them."""
    for one in few:
        yield one.ref.path, one.read


def _first_rows(shard: SourceShard, refs: Sequence[SampleRef]) -> Iterator[Few]:
    from beit.common.sources.parquet import ParquetShard  # the other kinds work without loading pyarrow

    assert isinstance(shard, ParquetShard)
    reader = next(shard.stream(), None)
    if reader is not None:
        yield from (Few(shard, reader, ref) for ref in refs if ref.offset < len(reader))
