"""Whether what is given as pictures are masks, where no folder says so: among them, or all of them.

Folders of masks beside folders of images are left out when a source is opened (`mask_folders.py`). A list names each
file, and a tar is used as it is, so of these it is said only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

from beit.common.errors import BadSample
from beit.common.sources.glance.few import few_of
from beit.common.sources.labels import listed
from beit.common.sources.mask_folders import MasksBeside, could_be_mask, is_called_mask, masks_among
from beit.common.sources.types import SampleRef, ShardReader, Source
from beit.common.storage.paths import is_remote

logger = logging.getLogger(__name__)

_LOOKED_AT = 12
"""Images that must all look like masks for a source to be called one of masks; arbitrary."""
_FEWEST = 2


def warn_of_masks(source: Source) -> None:
    """Say so where masks lie among the images of a source, or where it holds nothing else."""
    for words in masks_in_words(source):
        logger.warning("%s: %s", source.root, words)


def masks_in_words(source: Source) -> list[str]:
    """Return in lines what looks like masks in a source; none of a remote one, of which files are not read twice."""
    if is_remote(source.root) or not source.shards:
        return []
    found = _among(source)
    if found.paths:
        return [
            f"{len(found.paths)} of its images look like masks of others ({listed(found.places)}) and are used as "
            "pictures; leave them out, or give the pictures alone"
        ]
    return [_ALL_MASKS] if _are_all_masks(source) else []


_ALL_MASKS = (
    "what was looked at are masks by all appearance: at most 64 different values in each, a number per pixel; if they "
    "are pictures, nothing is wrong; if not, give the images that they belong to, and the masks to beit finetune "
    "segmentation"
)


def _among(source: Source) -> MasksBeside:
    """Find masks among the files of a list, or in the first tar, which stands for all."""
    if source.kind == "files" and source.is_chosen:
        refs = [ref for shard in source.shards for ref in shard.refs()]
    elif source.kind == "tar":
        refs = source.shards[0].refs()
    else:
        return MasksBeside(frozenset(), ())
    with source.shards[0].open() as reader:
        return masks_among([ref.path for ref in refs], lambda paths: _read(reader, refs, paths))


def _read(reader: ShardReader, refs: Sequence[SampleRef], paths: Sequence[str]) -> list[bytes | None]:
    known = {ref.path: ref for ref in refs if ref.path in set(paths)}
    contents: dict[str, bytes] = {}
    for path, ref in known.items():
        with suppress(BadSample):  # met and counted where images are read
            contents[path] = reader.read(ref)
    return [contents.get(path) for path in paths]


def _are_all_masks(source: Source) -> bool:
    num_looked = 0
    for one in few_of(source, _LOOKED_AT):
        try:
            data = one.read()
        except BadSample:
            continue
        if not could_be_mask(data, is_called_so=is_called_mask(one.ref.path)):
            return False
        num_looked += 1
    return num_looked >= _FEWEST
