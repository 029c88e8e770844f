"""What labelled data hold behind names and labels, so that nothing is kept or continued over images that were edited.

The index of a DATA is equal for a copy of it elsewhere; it says where samples lie, not what is in them. Here is the
other half: the bytes of the images where these are few, else sizes and times of their files. A copy of few images is
recognised by its bytes; one of many needs the times of the original (`cp -p`, `rsync -t`, a tar), or a word of its
user.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.common.errors import BadSample, InputError
from beit.common.progress import Progress
from beit.common.sources.index import LabelledIndex
from beit.common.sources.types import SampleRef, ShardReader
from beit.common.storage.documents import Format, canonical_sha256, read_json, write_json
from beit.common.storage.paths import is_remote

logger = logging.getLogger(__name__)

MAX_BYTES, MAX_IMAGES = 1 << 30, 50_000
"""Up to here the images in use are read to know them, once: 4 s of a processor for 50 000 of 20 kB. Arbitrary."""
_FORMAT = Format("beit-contents", 1)
_THREADS = 8
_MANY_IMAGES = 1000  # from here on it is worth showing
_BYTES, _TIMES = "bytes:", "times:"

Contents = dict[str, str]
"""`index_sha256`: samples, their numbering and labels; `contents`: "bytes:SHA256", "times:SHA256", or empty where the
place of the images tells no versions of files."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Data of a run, and what chooses them."""

    index: LabelledIndex
    """The samples in use."""
    settings: tuple[str, ...] = ()
    """Names of settings; none where a command names the data itself."""


def contents_of(index: LabelledIndex) -> Contents:
    """Return the identity of the samples in use: names and labels, and contents."""
    return {"index_sha256": index.index_sha256, "contents": fingerprint(index)}


def fingerprint(index: LabelledIndex) -> str:
    """Return what stands for the contents of the samples in use, see `Contents`.

    The bytes are read once and their hash kept beside the index, in a folder that is named after sizes and times.
    """
    if not _is_small(index):
        if not index.stamp:
            logger.info("%s: versions of the files are not known; edits of images would not be noticed", index.name)
        return f"{_TIMES}{index.stamp}" if index.stamp else ""
    file = index.folder / f"contents-{index.index_sha256[:16]}.json"
    digest = _kept(file)
    if digest is None:
        digest = _digest(index)
        try:
            write_json(file, _FORMAT.header() | {"sha256": digest})
        except OSError as error:  # worth a second, no more
            logger.info("%s was not kept (%s)", file, error)
    return f"{_BYTES}{digest}"


def contents_sha256(index: LabelledIndex) -> str:
    """Return `contents_of` as one hash, for what is written beside a result."""
    return canonical_sha256(contents_of(index))


def difference(before: Any, now: Contents) -> str:
    """Say in a few words how data differ from what an earlier `contents_of` says of them; empty where they do not."""
    if not isinstance(before, Mapping) or before.get("index_sha256") != now["index_sha256"]:
        return "other images, names or labels"
    then = before.get("contents")
    if not then or not now["contents"] or then == now["contents"]:
        return ""
    is_by_bytes = str(then).startswith(_BYTES) and now["contents"].startswith(_BYTES)
    return "edited images" if is_by_bytes else "other times of files, as after edits or a copy without times"


def _is_small(index: LabelledIndex) -> bool:
    return not is_remote(index.info.root) and len(index) <= MAX_IMAGES and index.num_bytes() <= MAX_BYTES


def _kept(file: Path) -> str | None:
    try:
        digest = _FORMAT.check(read_json(file), file).get("sha256")
    except InputError:
        return None
    return digest if isinstance(digest, str) else None


def _digest(index: LabelledIndex) -> str:
    hasher = hashlib.sha256()
    progress = Progress(len(index), unit="images", description="comparing", enabled=len(index) > _MANY_IMAGES)
    with progress, ThreadPoolExecutor(_THREADS) as pool:
        for shard_id, size in enumerate(index.shard_sizes.tolist()):
            refs = [index.ref(shard_id, rank) for rank in range(size)]
            if refs:
                with index.shards[shard_id].open() as reader:
                    for digest in pool.map(_digest_of_image, itertools.repeat(reader), refs):
                        hasher.update(digest)
            progress.update(size)
    return hasher.hexdigest()


def _digest_of_image(reader: ShardReader, ref: SampleRef) -> bytes:
    try:
        return hashlib.sha256(reader.read(ref)).digest()
    except BadSample as error:  # it may be there another day, and is then other data
        return hashlib.sha256(f"no image: {error.reason}".encode()).digest()
