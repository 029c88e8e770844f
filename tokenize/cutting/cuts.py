"""Which samples large images and files of several pages become: a list of cuts, by the headers of the files.

A cut is a run of tiles of one image that is made in one go: neighbours of a row, as many as are decoded together, where
parts of the image can be decoded without the rest (`common/images/large/windows.py`); else all of the image. So memory
stays bounded, each worker has something to do, and a tar of the store holds parts of many images. Making the tiles is
`tokenize/packing/pieces.py`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from beit.common.errors import BadSample
from beit.common.images.decoding import Decoding
from beit.common.images.large.tiles import CUT_PIXELS, Tiling
from beit.common.images.large.windows import Measured, measure
from beit.common.sources.tars import TarShard
from beit.common.sources.types import SampleRef, Source, SourceShard, place_in
from beit.common.storage.paths import is_remote
from beit.common.storage.place import FilePart
from beit.common.storage.threads import threads

_CUTS_PER_TAR = 4
"""At least, so that tars become about equally large."""


@dataclass(frozen=True, slots=True)
class CutRef(SampleRef):
    """Some tiles of an image, or of one of its pages; key, label and path are those of the image."""

    position: int
    """Of the image in its source."""
    size: tuple[int, int] | None
    """Width and height of the image in px by its header; None where that cannot be read."""
    page: int | None
    """Of several pages; None where the image is all there is."""
    first: int
    """Number of the first tile, row by row."""
    count: int
    """Tiles."""
    has_windows: bool = False
    """Whether they are decoded without the rest of the image."""

    @property
    def own_key(self) -> str:
        """Key of the image, or of its page."""
        return self.key if self.page is None else f"{self.key}~p{self.page:04d}"

    @property
    def order_key(self) -> str:
        """What the place of the cut in packing order is a hash of."""
        return f"{self.own_key}#{self.first}"


class CutRules(NamedTuple):
    """What decides how images are cut."""

    tiling: Tiling | None
    """None leaves pages whole."""
    decoding: Decoding
    most: int
    """Tiles of a cut."""

    @property
    def takes_each_page(self) -> bool:
        """Whether each page of a file is a sample."""
        return self.decoding.frame == "each"


def list_cuts(source: Source, refs: Sequence[SampleRef], shard_counts: Sequence[int], rules: CutRules) -> list[CutRef]:
    """Return the cuts of all images of a source, in its order; only headers are read, of Parquet all bytes."""
    measured = _measure_all(source, refs, shard_counts, rules.decoding)
    return [
        cut
        for position, (ref, found) in enumerate(zip(refs, measured, strict=True))
        for cut in cuts_of(position, ref, found, rules)
    ]


def cuts_of(position: int, ref: SampleRef, found: Measured | None, rules: CutRules) -> Iterator[CutRef]:
    """Yield the cuts of one image."""
    fields = (ref.key, ref.offset, ref.length, ref.label, ref.path, position)
    if found is None:
        yield CutRef(*fields, None, None, 0, 1)
        return
    pages = range(found.num_frames) if rules.takes_each_page and found.num_frames > 1 else (None,)
    for page in pages:
        for first, count in _runs(found, rules):
            yield CutRef(*fields, found.size, page, first, count, found.has_windows)


def _runs(found: Measured, rules: CutRules) -> Iterator[tuple[int, int]]:
    """Yield first tile and number of tiles of each cut."""
    if rules.tiling is None:
        yield 0, 1
        return
    rows, columns = rules.tiling.grid(found.size)
    if not found.has_windows:
        total = rows * columns
        yield from ((first, min(rules.most, total - first)) for first in range(0, total, rules.most))
        return
    step = rules.tiling.tile - rules.tiling.overlap
    high = min(rules.tiling.tile, found.size[1])
    most = max(1, min(rules.most // _CUTS_PER_TAR, CUT_PIXELS // (step * high)))
    for row in range(rows):
        for column in range(0, columns, most):
            yield row * columns + column, min(most, columns - column)


def places_of(source: Source, refs: Sequence[SampleRef], shard_counts: Sequence[int]) -> list[FilePart] | None:
    """Return where each image of a source lies; None where its containers have to be read from front to back."""
    found = []
    start = 0
    for shard, count in zip(source.shards, shard_counts, strict=True):
        for ref in refs[start : start + count]:
            place = place_in(shard, ref)
            if place is None:
                return None
            found.append(place)
        start += count
    return found


def _measure_all(
    source: Source, refs: Sequence[SampleRef], shard_counts: Sequence[int], decoding: Decoding
) -> list[Measured | None]:
    places = places_of(source, refs, shard_counts)
    if places is not None:
        look = _Look(decoding)
        return list(threads().imap(look, places, ahead=64) if is_remote(source.root) else map(look, places))
    found: list[Measured | None] = []
    start = 0
    for shard, count in zip(source.shards, shard_counts, strict=True):
        found += _measure_shard(shard, refs[start : start + count], decoding)
        start += count
    return found


def _measure_shard(shard: SourceShard, refs: Sequence[SampleRef], decoding: Decoding) -> Iterator[Measured | None]:
    if shard.kind == "parquet":
        from beit.common.sources.parquet import ParquetShard  # the other kinds work without loading pyarrow

        assert isinstance(shard, ParquetShard)
        rest = iter(refs)
        for rows in shard.stream():
            for _, ref in zip(range(len(rows)), rest, strict=False):
                yield _measured(lambda ref=ref, rows=rows: rows.read(ref), decoding)  # type: ignore[misc]
        return
    assert isinstance(shard, TarShard)
    with shard.open() as reader:
        for ref in refs:
            yield _measured(lambda ref=ref: reader.read(ref), decoding)  # type: ignore[misc]


def _measured(read: object, decoding: Decoding) -> Measured | None:
    try:
        return measure(io.BytesIO(read()), decoding)  # type: ignore[operator]
    except BadSample:
        return None


@dataclass(frozen=True, slots=True)
class _Look:
    decoding: Decoding

    def __call__(self, place: FilePart) -> Measured | None:
        try:
            with place.open() as file:
                return measure(file, self.decoding)
        except BadSample:
            return None
