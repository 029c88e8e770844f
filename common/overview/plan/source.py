"""What is to be tokenised, looked at before anything is made of it: how many images, how large, and some of them.

Here: a source of images, and a token store that is there already. A bare number of images is `amounts.py`.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from beit.common.errors import BadSample, InputError, require
from beit.common.forecast.loading import PHOTO_MEGAPIXELS
from beit.common.images.decode import size_of_image
from beit.common.images.decoding import MAX_PIXELS
from beit.common.images.large.tiles import Tiling
from beit.common.images.large.windows import Measured, measure
from beit.common.overview.plan.document import Images
from beit.common.shards.schema import STORE_FILE, StoreInfo
from beit.common.sources.glance.few import Few, draw_listed, draw_of_source
from beit.common.sources.opening import list_samples, open_source
from beit.common.sources.tars import TarShard
from beit.common.sources.types import SampleRef, Source, SourceShard, place_in
from beit.common.storage.paths import is_remote, join, normalise
from beit.common.storage.place import place_of
from beit.common.storage.samples import spread_evenly

PHOTO_BYTES = 110_000
"""Of a photograph of which nothing is known: those of ImageNet, 1.28 million in 138 GB."""
_LISTED_TARS = 8
"""So many tars are listed as a whole; of more, as many of them stand for all."""
_LOOKED_AT = 16
"""Images whose sizes in bytes and pixels stand for all."""
_MEASURED = 1000
"""Images whose headers tell how many tiles there will be; more take as long as listing them. Arbitrary."""
_SAMPLED = 48
"""Images to measure on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A source as it is."""

    images: Images
    """In short."""
    kind: str
    """files, tar, parquet, or store; "" of a bare number."""
    num_shards: int
    """Tars, row groups, or runs of files; of a store its shards."""
    total_bytes: float
    """Of all images."""
    store: StoreInfo | None = None
    """Settings of a store that is there already."""
    num_held_out: int | None = None
    """Of such a store."""
    num_looked_at: int = 0
    """Images whose headers were read."""
    too_large: tuple[tuple[int, int], ...] = ()
    """Width and height of those of them that have more pixels than are admitted."""


def look_at(
    spec: str, *, image_member: str | None = None, tiling: Tiling | None = None, max_pixels: int = MAX_PIXELS
) -> Found:
    """Count the images of a source or of a finished token store; where they are to be cut, the tiles.

    Args:
        spec: What the user calls them.
        image_member: Which member of a tar's sample is the image.
        tiling: How they are to be cut.
        max_pixels: The most that an image may have.
    """
    if is_store(spec):
        return _store(spec)
    source = open_source(spec, image_member=image_member)
    few: Sequence[SourceShard] = source.shards
    if source.kind == "tar" and len(few) > _LISTED_TARS:
        few = [few[i] for i in spread_evenly(len(few), _LISTED_TARS)]
    refs = list(list_samples(Source(source.kind, source.root, list(few), source.class_names, source.digest)))
    listed = sum(map(len, refs))
    if not listed:
        raise InputError(f"{spec} has no images")
    scale = _scale(source, few)
    sample = _read(draw_listed(few, refs, _LOOKED_AT, is_quick=True))
    lengths = [ref.length for found in refs for ref in found if ref.length]
    mean = statistics.fmean(lengths) if lengths else statistics.fmean(map(len, sample)) if sample else PHOTO_BYTES
    count = round(listed * scale)
    sizes = [found[0] for data in sample if (found := size_of_image(data)) is not None]
    side, megapixels = _typical_size(sizes)
    images = Images(
        name=spec,
        count=count,
        mean_bytes=mean,
        is_counted=scale == 1.0,
        side_px=side,
        megapixels=megapixels,
    )
    if tiling is not None:
        images = _in_tiles(images, few, refs, tiling)
    return Found(
        images=images,
        kind=source.kind,
        num_shards=len(source.shards),
        total_bytes=count * mean,
        num_looked_at=len(sizes),
        too_large=tuple(_above(sizes, max_pixels)),
    )


def _in_tiles(images: Images, shards: Sequence[SourceShard], refs: Sequence[list[SampleRef]], tiling: Tiling) -> Images:
    """Count the tiles of images by their headers: of all of them, or of so many that they stand for all."""
    found = list(_measured(shards, refs))
    if not found:
        return images
    sizes = [one.size for one in found]
    tiles = [tile.box.size for size in sizes for tile in tiling.tiles(size)]
    mean = statistics.fmean(width * height for width, height in tiles)
    return replace(
        images,
        count=round(images.count * len(tiles) / len(sizes)),
        num_cut=images.count,
        is_counted=images.is_counted and len(sizes) == images.count,
        side_px=float(statistics.median(map(min, tiles))),
        megapixels=mean / 1e6,
        pixels_at_once=max(one.pixels_at_once for one in found),
    )


def _measured(shards: Sequence[SourceShard], refs: Sequence[list[SampleRef]]) -> Iterator[Measured]:
    """Yield what headers tell of images from all over some shards, of at most `_MEASURED` of them."""
    for one in draw_listed(shards, refs, _MEASURED):
        place = place_in(one.shard, one.ref)
        with suppress(BadSample), place.open() if place else io.BytesIO(one.read()) as file:
            if (found := measure(file)) is not None:
                yield found


def only_counted(count: int) -> Found:
    """Return what is assumed of so many images: photographs like ImageNet's, as loose files."""
    images = Images(name="", count=count, mean_bytes=PHOTO_BYTES, is_counted=False)
    return Found(images=images, kind="", num_shards=0, total_bytes=count * PHOTO_BYTES)


def is_store(spec: str) -> bool:
    """Whether a path or URL is a token store rather than images."""
    location = normalise(spec)
    if is_remote(location):
        return not Path(location).suffix and place_of(join(location, STORE_FILE), is_first_contact=True).exists()
    return (Path(location) / STORE_FILE).is_file()


def sample_images(spec: str, *, image_member: str | None = None, count: int = _SAMPLED) -> list[bytes]:
    """Read some images of a source, from all over it."""
    source = open_source(spec, image_member=image_member)
    found = _read(draw_of_source(source, count, is_quick=True))
    require(bool(found), f"none of the images of {spec} that were tried could be read")
    return found


def _store(spec: str) -> Found:
    from beit.common.store import open_store  # brings pyarrow, which nothing else here needs

    store = open_store(spec, check_images=False)
    table = store.shards
    count = int(table.num_samples.sum())
    few = [table[int(i)] for i in spread_evenly(len(table), _LISTED_TARS)]
    mean = sum(row.image_bytes for row in few) / max(1, sum(row.num_samples for row in few))
    images = Images(name=spec, count=count, mean_bytes=mean, is_counted=True)
    return Found(
        images=images,
        kind="store",
        num_shards=len(table),
        total_bytes=count * mean,
        store=store.info,
        num_held_out=int(table.num_held_out.sum()),
    )


def _scale(source: Source, few: Sequence[SourceShard]) -> float:
    """Return how much more the whole is than what was listed: by the sizes of its tars, else by their number."""
    if len(few) == len(source.shards):
        return 1.0
    listed, whole = (
        sum(shard.size for shard in shards if isinstance(shard, TarShard)) for shards in (few, source.shards)
    )
    return whole / listed if listed else len(source.shards) / len(few)


def _read(few: Iterable[Few]) -> list[bytes]:
    """Read images; unreadable ones are left out."""
    found = []
    for one in few:
        with suppress(BadSample):
            found.append(one.read())
    return found


def _above(sizes: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    return [size for size in sizes if size[0] * size[1] > most]


def _typical_size(sizes: Sequence[tuple[int, int]]) -> tuple[float | None, float]:
    """Return the median short side in pixels and the mean number of megapixels."""
    if not sizes:
        return None, PHOTO_MEGAPIXELS
    return float(statistics.median(map(min, sizes))), statistics.fmean(width * height for width, height in sizes) / 1e6
