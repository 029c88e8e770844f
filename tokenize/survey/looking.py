"""What the headers of images say: of all, or of a sample that is spread over the source."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

from beit.common.errors import BadSample
from beit.common.images.decoding import MAX_IMAGE_BYTES, MAX_SIDE_PX, Decoding
from beit.common.images.facts import facts_of_image
from beit.common.images.formats import words_of
from beit.common.images.header import BANDS, ImageFacts
from beit.common.images.ranges import DTYPE, ValueRange
from beit.common.processes.cores import available_cores
from beit.common.progress import Progress
from beit.common.sources.config import MAX_MEGAPIXELS, SourceConfig
from beit.common.sources.glance.headers import image_facts
from beit.common.sources.glance.transparency import hides_colours_of
from beit.common.sources.parquet import ParquetShard
from beit.common.sources.types import SampleRef, ShardReader, SourceShard, place_in
from beit.common.storage.paths import is_remote
from beit.common.storage.samples import spread_evenly
from beit.tokenize.survey.document import LeftOut, Looks, NamedSize, counted
from beit.tokenize.survey.listing import Listed

AnySize = frozenset[str]
"""Formats of which images of any size are read: in parts, or smaller."""
_THREADS_FOR_A_SERVER = 32
_DECODED = 64
"""Transparent images of which the pixels are looked at; arbitrary."""
_CLASSES = (0.01, 0.1, 0.5, 2.0, 8.0, 32.0)
"""Megapixels between classes of size; arbitrary, icons to cameras."""
WAYS_OUT = {
    "lfs-pointer": "a pointer of Git LFS: run git lfs pull where it was cloned",
    "unsupported": "no image of a known format, whatever its name",
    "empty": "no bytes; copy it again",
    "decode-error": "its header is damaged; copy it again",
    "truncated": "it ends early; copy it again",
    "no-range": "floats, of which two are black and white: --set source.range=[0,1]",
    "unreadable": "gone, or not yours to read",
    "bomb": "too many megapixels",
    "too-large": f"a side above {MAX_SIDE_PX} px, or more bytes than an image may have",
}


@dataclass(frozen=True, slots=True)
class Look:
    """One image, as far as its header tells."""

    shard: SourceShard
    ref: SampleRef
    facts: ImageFacts | None
    """None where there is no header to read."""
    problem: BadSample | None
    """Why it cannot be used, as far as that is known."""
    sha256: bytes = b""
    """Of the encoded image, where all of it had to be read anyway."""
    num_bytes: int = 0
    """Of the encoded image; 0 where only its beginning was read."""
    hides: bool | None = None
    """Whether it hides colours under its transparency; None where that was not looked at, or there is none."""

    @property
    def name(self) -> str:
        """What the user knows the image by."""
        return image_name(self.shard, self.ref)


def image_name(shard: SourceShard, ref: SampleRef) -> str:
    """Name an image of any source: by path, or by container and name in it."""
    return ref.path if shard.kind == "files" else f"{shard.location.rsplit('/', 1)[-1]}: {ref.path}"


def look_at(listed: Listed, limit: int, settings: SourceConfig, any_size: AnySize = frozenset()) -> list[Look]:
    """Read the headers of up to `limit` images, spread evenly; of all with a limit of 0. `any_size` is as in `survey`.

    Nothing is kept: whoever stops this loses nothing.
    """
    chosen = _chosen(listed, limit)
    looks: list[Look] = []
    is_away = any(is_remote(shard.location) for shard in listed.shards)
    threads = max(available_cores(), _THREADS_FOR_A_SERVER if is_away else 1)
    total = sum(len(refs) for _, refs in chosen)
    with Progress(total, unit="images", description="look") as progress, ThreadPoolExecutor(threads) as pool:
        for shard, refs in chosen:
            for look in _looks_of_shard(shard, refs, pool, settings, any_size):
                looks.append(look)
                progress.update(1)
    return looks


def _chosen(listed: Listed, limit: int) -> list[tuple[SourceShard, list[SampleRef]]]:
    total = sum(map(len, listed.refs))
    if not limit or limit >= total:
        return list(zip(listed.shards, listed.refs, strict=True))
    if listed.shards[0].kind == "parquet":  # of a row group, the first rows are quickly had
        share = -(-limit // len(listed.shards))
        return [(shard, refs[:share]) for shard, refs in zip(listed.shards, listed.refs, strict=True)]
    places = set(spread_evenly(total, limit).tolist())
    chosen, first = [], 0
    for shard, refs in zip(listed.shards, listed.refs, strict=True):
        picked = [ref for number, ref in enumerate(refs, start=first) if number in places]
        first += len(refs)
        if picked:
            chosen.append((shard, picked))
    return chosen


def _looks_of_shard(
    shard: SourceShard,
    refs: Sequence[SampleRef],
    pool: ThreadPoolExecutor,
    settings: SourceConfig,
    any_size: AnySize,
) -> Iterator[Look]:
    if isinstance(shard, ParquetShard):
        yield from _looks_of_rows(shard, refs, settings, any_size)
        return
    with shard.open() as reader:
        yield from pool.map(lambda ref: _look(shard, reader, ref, settings, any_size), refs)


def _looks_of_rows(
    shard: ParquetShard, refs: Sequence[SampleRef], settings: SourceConfig, any_size: AnySize
) -> Iterator[Look]:
    wanted, end = iter(refs), 0
    ref = next(wanted, None)
    for reader in shard.stream():
        end += len(reader)
        while ref is not None and ref.offset < end:
            yield _look(shard, reader, ref, settings, any_size)
            ref = next(wanted, None)
        if ref is None:
            return


def _look(shard: SourceShard, reader: ShardReader, ref: SampleRef, settings: SourceConfig, any_size: AnySize) -> Look:
    sha256, num_bytes = b"", ref.length
    try:
        if shard.kind == "parquet":
            data = reader.read(ref)
            facts, num_bytes = facts_of_image(data), len(data)
            sha256 = hashlib.sha256(data).digest()
        else:
            facts = image_facts(reader, ref, place=None if is_remote(shard.location) else place_in(shard, ref))
    except BadSample as error:
        return Look(shard, ref, None, error, sha256, num_bytes)
    problem = problem_of(facts, settings, num_bytes=num_bytes, any_size=any_size)
    hides = hides_colours_of(reader, ref, settings.decoding) if facts.has_alpha and not problem else None
    return Look(shard, ref, facts, problem, sha256, num_bytes, hides)


def shown_as(settings: SourceConfig) -> Decoding:
    """Return how images are decoded to be shown or compared: percentiles, which are yet to be found, count as unset."""
    decoding = settings.decoding
    return decoding if decoding.value_range.is_resolved else replace(decoding, value_range=ValueRange())


def problem_of(
    facts: ImageFacts, settings: SourceConfig, *, num_bytes: int = 0, any_size: AnySize = frozenset()
) -> BadSample | None:
    """Return why an image with such a header cannot be decoded by the settings; None where nothing is known of it."""
    problem = None if facts.format in any_size else too_large(facts, settings)
    if num_bytes > MAX_IMAGE_BYTES and facts.format not in any_size:
        problem = problem or BadSample("too-large", f"{num_bytes} bytes, at most {MAX_IMAGE_BYTES}")
    if problem is not None:
        return problem
    channels = settings.decoding.channels
    if isinstance(channels, tuple):
        if max(channels) > facts.channels and facts.colours != "CMYK":
            return BadSample("channels", f"{facts.channels}, and band {max(channels)} is wanted")
    elif facts.colours == BANDS:
        return BadSample("channels", f"{facts.channels} bands, of which none is chosen")
    if not facts.has_range and settings.decoding.value_range.kind == DTYPE:
        return BadSample("no-range", "floats without a range")
    return None


def too_large(facts: ImageFacts, settings: SourceConfig) -> BadSample | None:
    """Return why an image of this size is not decoded; None where it is."""
    if facts.megapixels > settings.max_megapixels:
        return BadSample("bomb", f"{facts.megapixels:.4g} megapixels, more than source.max_megapixels")
    if max(facts.width, facts.height) > MAX_SIDE_PX:
        return BadSample("too-large", f"{facts.width} x {facts.height} px, at most {MAX_SIDE_PX} px per side")
    return None


def summed_up(looks: Sequence[Look]) -> Looks | None:
    """Count what headers say; None where none could be read."""
    known = [(look, look.facts) for look in looks if look.facts is not None]
    if not known:
        return None
    every = [facts for _, facts in known]
    by_size = sorted(known, key=lambda pair: (pair[1].width * pair[1].height, pair[0].name))
    series = Counter(facts.series for facts in every if facts.series)
    classes = Counter(_size_class(facts.megapixels) for facts in every)
    return Looks(
        formats=counted(Counter(facts.format for facts in every)),
        megapixels={name: classes[name] for name in _class_names() if classes[name]},
        bits=counted(Counter(facts.depth for facts in every)),
        channels=counted(Counter(str(facts.channels) for facts in every)),
        colours=counted(Counter(facts.colours for facts in every)),
        frames=counted(Counter(str(facts.num_frames) for facts in every)),
        median_megapixels=statistics.median(facts.megapixels for facts in every),
        mean_megapixels=statistics.fmean(facts.megapixels for facts in every),
        shortest_side=min(min(facts.width, facts.height) for facts in every),
        longest_side=max(max(facts.width, facts.height) for facts in every),
        smallest=_named_size(*by_size[0]),
        largest=_named_size(*by_size[-1]),
        num_transparent=sum(facts.has_alpha for facts in every),
        num_decoded=sum(look.hides is not None for look in looks),
        num_hiding=sum(look.hides is True for look in looks),
        num_turned=sum(facts.transpose is not None for facts in every),
        num_animated=sum(facts.num_frames > 1 for facts in every),
        num_slices=sum(number for number in series.values() if number > 1),
        num_series=sum(number > 1 for number in series.values()),
    )


def _named_size(look: Look, facts: ImageFacts) -> NamedSize:
    return NamedSize(path=look.name, width=facts.width, height=facts.height)


def _class_names() -> list[str]:
    between = [f"{low:g} to {high:g}" for low, high in pairwise(_CLASSES)]
    return [f"below {_CLASSES[0]:g}", *between, f"{_CLASSES[-1]:g} and more"]


def _size_class(megapixels: float) -> str:
    return _class_names()[sum(megapixels >= edge for edge in _CLASSES)]


def unusable(looks: Sequence[Look], scale: float) -> list[LeftOut]:
    """Return the images that cannot be used, by reason, the commonest first, reckoned up to all."""
    by_reason: dict[str, list[Look]] = {}
    for look in looks:
        if look.problem is not None:
            by_reason.setdefault(look.problem.reason, []).append(look)
    return [
        LeftOut(
            reason=reason,
            count=round(len(found) * scale),
            is_estimated=scale > 1,
            example=found[0].name,
            way_out=_way_out(reason, found),
            is_unusable=True,
        )
        for reason, found in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _way_out(reason: str, found: Sequence[Look]) -> str:
    numbers = sorted({look.facts.channels for look in found if look.facts is not None})
    if reason == "channels":
        several = " or ".join(map(str, numbers))
        return f"of {several} bands: --set source.channels=[3,2,1] says which of them, counted from 1"
    sizes = [look.facts.megapixels for look in found if look.facts is not None]
    if reason != "bomb" or not sizes:
        return words_of(reason) or WAYS_OUT.get(reason, "")
    parts = {look.facts.format for look in found if look.facts is not None} & {"TIFF", "JPEG"}
    smaller = " (--short-side reads them smaller" + (", --tile in parts)" if "TIFF" in parts else ")") if parts else ""
    needed = math.ceil(max(sizes))  # of the largest, so that it admits all
    if needed > MAX_MEGAPIXELS:
        return f"up to {max(sizes):.4g} megapixels, more than any setting admits{smaller}"
    return f"up to {max(sizes):.4g} megapixels: --set source.max_megapixels={needed} admits them{smaller}"
