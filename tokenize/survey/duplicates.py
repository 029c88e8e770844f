"""Images that are there more than once: of the same bytes, and, if asked for, such that look alike.

Same bytes are looked for among images of equal length, whose bytes are hashed. What looks alike is told by a perceptual
hash of 64 bits (`imagehash.phash`: whether each of the lowest frequencies of a grey version of 32 x 32 px is above
their median), equal but for a few bits; the images must be decoded for it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample, is_lfs_pointer
from beit.common.images.decode import decode_image
from beit.common.processes.cores import available_cores
from beit.common.progress import Progress
from beit.common.sources.config import SourceConfig
from beit.common.sources.parquet import ParquetShard
from beit.common.sources.splits import split_of_path
from beit.common.sources.types import SampleRef, ShardReader, SourceShard
from beit.common.storage.paths import is_remote
from beit.tokenize.survey.document import Duplicates, NearDuplicates
from beit.tokenize.survey.listing import Listed
from beit.tokenize.survey.looking import Look, image_name, shown_as

_MOST_HASHED_BYTES = 8 << 30
"""Of images that have the length of another; of more, those that were looked at are compared. Arbitrary, a minute."""
_MOST_IN_BAND = 512
"""Hashes of one band that are all compared with each other; of more, each with the next 512 and more by value."""
_SHOWN = 20
"""Groups and pairs that are kept by name."""
_HASH_BITS = 64
_MOST_DIFFERENT_BITS = 4
"""Of two hashes of images that look alike. Of 600 photos, saved again at JPEG quality 50, shrunk to half their sides,
or made a tenth brighter, all differed from themselves in no more; with 5 % cut off, four in ten; of the 179,700 pairs
of different photos none."""

Place = tuple[SourceShard, SampleRef]


def same_bytes(listed: Listed, looks: Sequence[Look]) -> Duplicates | None:
    """Find the images of the same bytes, among all that were listed or, of too many, among those looked at.

    None for files on a server, which are not fetched for this.
    """
    if any(look.sha256 for look in looks):  # rows of Parquet, which were read whole
        places = [(look.shard, look.ref) for look in looks if look.sha256]
        return _grouped(places, [look.sha256 for look in looks if look.sha256], len(places))
    if not listed.shards or is_remote(listed.shards[0].location):
        return None
    every = list(listed)
    alike = _of_equal_length(every)
    if sum(ref.length for _, ref in alike) > _MOST_HASHED_BYTES:
        every = [(look.shard, look.ref) for look in looks]
        alike = _of_equal_length(every)
    by_shard: dict[int, list[Place]] = defaultdict(list)
    shards = {id(shard): shard for shard, _ in alike}
    for place in alike:
        by_shard[id(place[0])].append(place)
    places, hashes = [], []
    with (
        Progress(len(alike), unit="images", description="compare") as progress,
        ThreadPoolExecutor(available_cores()) as pool,
    ):
        for key, found in by_shard.items():
            with shards[key].open() as reader:
                for place, digest in zip(
                    found, pool.map(lambda place, r=reader: _digest(r, place[1]), found), strict=True
                ):  # type: ignore[misc]
                    progress.update(1)
                    if digest:
                        places.append(place)
                        hashes.append(digest)
    return _grouped(places, hashes, len(every))


def _of_equal_length(places: Sequence[Place]) -> list[Place]:
    lengths: dict[int, int] = defaultdict(int)
    for _, ref in places:
        lengths[ref.length] += 1
    return [(shard, ref) for shard, ref in places if ref.length and lengths[ref.length] > 1]


def _digest(reader: ShardReader, ref: SampleRef) -> bytes:
    try:
        data = reader.read(ref)
    except BadSample:  # counted where headers are read
        return b""
    return b"" if is_lfs_pointer(data) else hashlib.sha256(data).digest()  # pointers to one file are no images twice


def _grouped(places: Sequence[Place], hashes: Sequence[bytes], num_compared: int) -> Duplicates:
    by_hash: dict[bytes, list[Place]] = defaultdict(list)
    for place, digest in zip(places, hashes, strict=True):
        by_hash[digest].append(place)
    groups = [group for group in by_hash.values() if len(group) > 1]
    splits = [{_split(place) for place in group} - {""} for group in groups]
    labels = [{ref.label for _, ref in group} for group in groups]
    return Duplicates(
        num_compared=num_compared,
        num_copies=sum(len(group) - 1 for group in groups),
        groups=tuple(tuple(image_name(*place) for place in group[:_SHOWN]) for group in groups[:_SHOWN]),
        num_across_splits=sum(len(found) > 1 for found in splits),
        num_across_labels=sum(len(found) > 1 for found in labels),
    )


def _split(place: Place) -> str:
    shard, ref = place
    if shard.kind == "files":
        return split_of_path(ref.path, is_container=False)
    return split_of_path(shard.location, is_container=True)


def is_installed() -> bool:
    """Tell whether images that look alike can be looked for."""
    with suppress(ImportError):
        import imagehash  # noqa: F401

        return True
    return False


def way_to(is_wanted: bool) -> str:
    """Say how images that look alike are looked for, where they were not."""
    if is_installed():
        return "not looked for: --duplicates decodes the images and compares them"
    needs = "--duplicates needs" if is_wanted else "not looked for: --duplicates needs"
    return f"{needs} pip install 'beit[duplicates]'"


def look_alike(looks: Sequence[Look], settings: SourceConfig) -> NearDuplicates:
    """Decode the images that were looked at, and find those that look alike and are not of the same bytes."""
    usable = [look for look in looks if look.problem is None]
    by_shard: dict[int, list[Look]] = defaultdict(list)
    for look in usable:
        by_shard[id(look.shard)].append(look)
    known: list[tuple[Look, int, bytes]] = []
    with (
        Progress(len(usable), unit="images", description="decode") as progress,
        ThreadPoolExecutor(available_cores()) as pool,
    ):
        for found in by_shard.values():
            for look, result in zip(found, _perceptual(found, pool, settings), strict=True):
                progress.update(1)
                if result is not None:
                    known.append((look, *result))
    different = list({sha256: (look, value) for look, value, sha256 in reversed(known)}.values())[::-1]
    pairs = _close_pairs(np.array([value for _, value in different], np.uint64))
    return NearDuplicates(
        num_compared=len(known),
        num_images=len({place for i, j, _ in pairs for place in (i, j)}),
        pairs=tuple((different[i][0].name, different[j][0].name, bits) for i, j, bits in pairs[:_SHOWN]),
        num_undecodable=len(usable) - len(known),
    )


def _perceptual(
    looks: Sequence[Look], pool: ThreadPoolExecutor, settings: SourceConfig
) -> list[tuple[int, bytes] | None]:
    shard = looks[0].shard

    def one(reader: ShardReader, look: Look) -> tuple[int, bytes] | None:
        import imagehash

        try:
            data = reader.read(look.ref)
            image = decode_image(data, shown_as(settings))
        except BadSample:
            return None
        return int(str(imagehash.phash(image)), 16), hashlib.sha256(data).digest()

    if not isinstance(shard, ParquetShard):
        with shard.open() as reader:
            return list(pool.map(lambda look: one(reader, look), looks))
    found, first = [], 0
    for reader in shard.stream():
        end = first + len(reader)
        batch = [look for look in looks if first <= look.ref.offset < end]
        found += list(pool.map(lambda look, r=reader: one(r, look), batch))  # type: ignore[misc]
        first = end
        if len(found) == len(looks):
            break
    return found


def _close_pairs(hashes: NDArray[np.uint64]) -> list[tuple[int, int, int]]:
    """Return pairs of hashes that differ in few bits, and in how many, the closest first.

    Equal ones are a chain of pairs, of which the first stands for all of them in other pairs.

    Of hashes cut into one band more than bits may differ, two that are close agree in at least one band, so only those
    of the same band are compared.
    """
    alike: dict[int, list[int]] = defaultdict(list)
    for place, value in enumerate(hashes.tolist()):
        alike[value].append(place)
    found = {pair: 0 for places in alike.values() for pair in pairwise(places)}
    firsts = [places[0] for places in alike.values()]
    num_bands = _MOST_DIFFERENT_BITS + 1
    edges = [number * _HASH_BITS // num_bands for number in range(num_bands + 1)]
    for low, high in zip(edges, edges[1:], strict=False):
        bands = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        groups: dict[int, list[int]] = defaultdict(list)
        for place in firsts:
            groups[int(bands[place])].append(place)
        for group in groups.values():
            if len(group) > 1:
                found |= _close_in(sorted(group, key=lambda place: int(hashes[place])), hashes)
    return sorted(((i, j, bits) for (i, j), bits in found.items()), key=lambda pair: (pair[2], pair[0], pair[1]))


def _close_in(places: list[int], hashes: NDArray[np.uint64]) -> dict[tuple[int, int], int]:
    """Return how many bits differ between those of some hashes, ordered by value, that are close."""
    found = {}
    for start in range(0, len(places), _MOST_IN_BAND):
        block = np.array(places[start : start + 2 * _MOST_IN_BAND])
        differing = np.bitwise_count(hashes[block][:, None] ^ hashes[block])
        for i, j in np.argwhere(np.triu(differing <= _MOST_DIFFERENT_BITS, 1)).tolist():
            pair = sorted((int(block[i]), int(block[j])))
            found[pair[0], pair[1]] = int(differing[i, j])
    return found
